/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "json_text.h"

#include "vmsnap/error.h"

#define MAX_DEPTH 16
#define MAX_WORDS_CHARACTERS 500

/* json-glib goes as deep as the text does, until there is no stack left. What is in strings counts as well. */
static gboolean is_shallow(const char *text) {
    unsigned depth = 0;
    for (; *text && depth <= MAX_DEPTH; text++) {
        if (*text == '[' || *text == '{')
            depth++;
        else if ((*text == ']' || *text == '}') && depth > 0)
            depth--;
    }
    return depth <= MAX_DEPTH;
}

JsonNode *vmsnap_json_parse(const char *text, GError **error) {
    g_autoptr(JsonNode) root = is_shallow(text) ? json_from_string(text, error) : NULL;
    if (root && JSON_NODE_HOLDS_OBJECT(root))
        return g_steal_pointer(&root);
    if (error && !*error)
        g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "not a JSON object of vmsnap's");
    return NULL;
}

JsonObject *vmsnap_json_as_object(JsonNode *node) {
    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

/* Made once, and never changed. */
static gpointer make_empty(gpointer data) {
    (void)data;
    return json_array_new();
}

JsonArray *vmsnap_json_as_array(JsonNode *node) {
    static GOnce empty = G_ONCE_INIT;
    return node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : g_once(&empty, make_empty, NULL);
}

JsonObject *vmsnap_json_get_object(JsonArray *array, guint place) {
    return vmsnap_json_as_object(json_array_get_element(array, place));
}

JsonNode *vmsnap_json_find_any(JsonObject *object, const char *name) {
    return object ? json_object_get_member(object, name) : NULL;
}

JsonObject *vmsnap_json_find_object(JsonObject *object, const char *name) {
    return vmsnap_json_as_object(vmsnap_json_find_any(object, name));
}

JsonNode *vmsnap_json_find(JsonObject *object, const char *name, GType type) {
    JsonNode *node = vmsnap_json_find_any(object, name);
    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type ? node : NULL;
}

/* It goes to terminals, logs and status.json. */
char *vmsnap_json_dup_words(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_STRING);
    if (!node)
        return NULL;
    g_autofree char *valid = g_utf8_make_valid(json_node_get_string(node), -1);
    g_autoptr(GString) words = g_string_new(NULL);
    const char *c = valid;
    for (int n = 0; *c && n < MAX_WORDS_CHARACTERS; c = g_utf8_next_char(c), n++) {
        gunichar read = g_utf8_get_char(c);
        g_string_append_unichar(words, g_unichar_iscntrl(read) ? ' ' : read);
    }
    return g_string_free(g_steal_pointer(&words), FALSE);
}

const char *vmsnap_json_find_text(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_STRING);
    const char *text = node ? json_node_get_string(node) : NULL;
    return text && text[0] && g_utf8_validate(text, -1, NULL) ? text : NULL;
}
