/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * JSON objects, one after the other, out of bytes that come in pieces of any size: what QEMU's monitor and the guest
 * agent send. Pure: no descriptor.
 */
#pragma once

#include <json-glib/json-glib.h>

typedef struct VmsnapJsonStream VmsnapJsonStream;

/** @max_bytes: a longer object is an error */
VmsnapJsonStream *vmsnap_json_stream_new(size_t max_bytes);

/** NULL-safe. */
void vmsnap_json_stream_free(VmsnapJsonStream *stream);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapJsonStream, vmsnap_json_stream_free)

/** Adds what has come. */
void vmsnap_json_stream_push(VmsnapJsonStream *stream, const char *data, size_t length);

/** All until the next byte 0xFF is dropped, whatever it is: what somebody else has left. */
void vmsnap_json_stream_skip(VmsnapJsonStream *stream);

/**
 * vmsnap_json_stream_pop:
 * @ret_node: (transfer full): the next object, or NULL if it is not whole yet
 *
 * A byte 0xFF, which is in no JSON, begins anew: what was not whole before it is dropped. Returns: FALSE with @error
 * set if what has come is something else; then the stream is of no use any more.
 */
gboolean vmsnap_json_stream_pop(VmsnapJsonStream *stream, JsonNode **ret_node, GError **error);
