/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* JSON that somebody else may have written. */
#pragma once

#include <json-glib/json-glib.h>

/**
 * vmsnap_json_parse:
 *
 * Returns: (transfer full): the object that @text is; or NULL with @error set, also if it is nested more deeply than
 * any text of ours, which json-glib would not survive.
 */
JsonNode *vmsnap_json_parse(const char *text, GError **error);

/**
 * vmsnap_json_dup_words:
 *
 * Returns: (transfer full): a member that is text for people, or NULL: on one line, valid, and not too long, whatever
 * was sent.
 */
char *vmsnap_json_dup_words(JsonObject *object, const char *name);

/** Returns: (transfer none): the object that @node, which may be NULL, holds, or NULL. */
JsonObject *vmsnap_json_as_object(JsonNode *node);

/** Returns: (transfer none): the array that @node, which may be NULL, holds; or an empty one. */
JsonArray *vmsnap_json_as_array(JsonNode *node);

/** Returns: (transfer none): the object at a place of an array, or NULL if something else is there. */
JsonObject *vmsnap_json_get_object(JsonArray *array, guint place);

/** Returns: (transfer none): the member of that name, or NULL, also if @object is. */
JsonNode *vmsnap_json_find_any(JsonObject *object, const char *name);

/** As vmsnap_json_find_any(), if it is an object. */
JsonObject *vmsnap_json_find_object(JsonObject *object, const char *name);

/** As vmsnap_json_find_any(), if it is of that type of value. */
JsonNode *vmsnap_json_find(JsonObject *object, const char *name, GType type);

/** Returns: (transfer none): a string member, or NULL if it is empty, or not UTF-8: that could not be sent back. */
const char *vmsnap_json_find_text(JsonObject *object, const char *name);
