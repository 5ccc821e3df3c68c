/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The few idioms with which libvirt's XML is read and written. */
#pragma once

#include <glib.h>
#include <libxml/parser.h>
#include <libxml/xpath.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlDoc, xmlFreeDoc)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlXPathContext, xmlXPathFreeContext)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlXPathObject, xmlXPathFreeObject)

/** Returns: (transfer full): the document, or NULL if @xml is none. */
xmlDoc *vmsnap_xml_parse(const char *xml);

/** Returns: (transfer full): the text that an XPath expression finds, or NULL if it finds none. */
char *vmsnap_xml_find_text(xmlXPathContext *context, const char *expression);

/** Returns: whether an XPath expression is true. */
gboolean vmsnap_xml_is_true(xmlXPathContext *context, const char *expression);

/**
 * vmsnap_xml_find_source:
 * @context: at a <disk>, or what its image rests on: a <backingStore>
 *
 * Returns: (transfer full): the path, device or URI-like text of its image, or NULL if it has none.
 */
char *vmsnap_xml_find_source(xmlXPathContext *context);

/** Appends an attribute, also one whose value has quotes or line breaks. */
void vmsnap_xml_append_attribute(GString *xml, const char *name, const char *value);
