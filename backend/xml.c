/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "xml.h"

#include <string.h>

xmlDoc *vmsnap_xml_parse(const char *xml) {
    return xmlReadMemory(xml, (int)strlen(xml), "libvirt", NULL,
                         XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
}

char *vmsnap_xml_find_text(xmlXPathContext *context, const char *expression) {
    g_autofree char *as_string = g_strdup_printf("string(%s)", expression);
    g_autoptr(xmlXPathObject) result = xmlXPathEvalExpression((const xmlChar *)as_string, context);
    if (!result || !result->stringval || !result->stringval[0])
        return NULL;
    return g_strdup((const char *)result->stringval);
}

gboolean vmsnap_xml_is_true(xmlXPathContext *context, const char *expression) {
    g_autofree char *as_boolean = g_strdup_printf("boolean(%s)", expression);
    g_autoptr(xmlXPathObject) result = xmlXPathEvalExpression((const xmlChar *)as_boolean, context);
    return result && result->boolval;
}

char *vmsnap_xml_find_source(xmlXPathContext *context) {
    static const char *const expressions[] = {"source/@file", "source/@dev", "source/@dir"};
    for (size_t i = 0; i < G_N_ELEMENTS(expressions); i++) {
        char *source = vmsnap_xml_find_text(context, expressions[i]);
        if (source)
            return source;
    }
    g_autofree char *pool = vmsnap_xml_find_text(context, "source/@pool");
    g_autofree char *volume = vmsnap_xml_find_text(context, "source/@volume");
    if (pool && volume)
        return g_strdup_printf("%s/%s", pool, volume);
    g_autofree char *protocol = vmsnap_xml_find_text(context, "source/@protocol");
    g_autofree char *name = vmsnap_xml_find_text(context, "source/@name");
    return protocol ? g_strdup_printf("%s:%s", protocol, name ? name : "") : NULL;
}

/* Escapes white space, too: in an attribute XML would make blanks of it. */
void vmsnap_xml_append_attribute(GString *xml, const char *name, const char *value) {
    g_autofree char *escaped = g_markup_escape_text(value, -1);
    g_autoptr(GString) text = g_string_new(escaped);
    (void)g_string_replace(text, "\t", "&#9;", 0);
    (void)g_string_replace(text, "\n", "&#10;", 0);
    (void)g_string_replace(text, "\r", "&#13;", 0);
    g_string_append_printf(xml, " %s='%s'", name, text->str);
}
