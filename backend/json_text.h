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

/** Returns: (transfer none): the member of that name if it is of that type of value, or NULL. */
JsonNode *vmsnap_json_find(JsonObject *object, const char *name, GType type);
