/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The few json-glib idioms that the manifest and the status share. */
#pragma once

#include <json-glib/json-glib.h>

static inline void vmsnap_json_add_string(JsonBuilder *json, const char *name, const char *value) {
    json_builder_set_member_name(json, name);
    json_builder_add_string_value(json, value);
}

static inline void vmsnap_json_add_string_or_null(JsonBuilder *json, const char *name, const char *value) {
    json_builder_set_member_name(json, name);
    if (value)
        json_builder_add_string_value(json, value);
    else
        json_builder_add_null_value(json);
}

/* JSON numbers of json-glib are signed; no disk comes near 8 EiB. */
static inline void vmsnap_json_add_bytes(JsonBuilder *json, const char *name, uint64_t value_bytes) {
    json_builder_set_member_name(json, name);
    json_builder_add_int_value(json, (gint64)value_bytes);
}

/** Returns: (transfer full): what was built, indented and with a newline at the end. */
static inline char *vmsnap_json_to_text(JsonBuilder *json) {
    g_autoptr(JsonNode) root = json_builder_get_root(json);
    g_autofree char *text = json_to_string(root, TRUE);
    return g_strconcat(text, "\n", NULL);
}
