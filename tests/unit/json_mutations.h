/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Good JSON made bad in every place, one at a time. */
#pragma once

#include <json-glib/json-glib.h>

/** @json: a root that was changed; owned by the caller */
typedef void (*JsonMutationFunc)(JsonNode *json, gconstpointer data);

/**
 * json_mutate:
 * @text: an object or array
 *
 * Calls @func with the text as it is, then once for each way to replace one node of it, be it the root, by a value of
 * another kind, and each way to leave one member or element out. Returns: how often it was called.
 */
guint json_mutate(const char *text, JsonMutationFunc func, gconstpointer data);
