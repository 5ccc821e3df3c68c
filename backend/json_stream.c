/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where an object ends is found by counting brackets outside of strings, each byte looked at once however small the
 * pieces are; only then is it parsed. json-glib goes as deep as the text does, so too deep a text never gets there.
 */
#include "json_stream.h"

#include "vmsnap/error.h"

#include <string.h>

/* QEMU nests as deeply as a chain of backing files is long, of which it allows 200. */
#define MAX_DEPTH 512
#define RESYNC_BYTE 0xFF

struct VmsnapJsonStream {
    size_t max_bytes;
    GByteArray *bytes; /* owned */
    size_t begin;      /* what is before that is done with */
    size_t scanned;    /* how far it was looked at */
    unsigned depth;
    gboolean in_string;
    gboolean escaped;  /* the byte before was a backslash in a string */
    gboolean skipping; /* until RESYNC_BYTE */
};

VmsnapJsonStream *vmsnap_json_stream_new(size_t max_bytes) {
    VmsnapJsonStream *stream = g_new0(VmsnapJsonStream, 1);
    stream->max_bytes = max_bytes;
    stream->bytes = g_byte_array_new();
    return stream;
}

void vmsnap_json_stream_free(VmsnapJsonStream *stream) {
    if (!stream)
        return;
    g_byte_array_unref(stream->bytes);
    g_free(stream);
}

void vmsnap_json_stream_push(VmsnapJsonStream *stream, const char *data, size_t length) {
    /* To remove nothing moves all the rest to where it is. */
    if (stream->begin > 0)
        g_byte_array_remove_range(stream->bytes, 0, (guint)stream->begin);
    stream->scanned -= stream->begin;
    stream->begin = 0;
    g_byte_array_append(stream->bytes, (const guint8 *)data, (guint)length);
}

/* What has been looked at is done with. */
static void stream_begin_anew(VmsnapJsonStream *stream) {
    stream->begin = stream->scanned;
    stream->depth = 0;
    stream->in_string = stream->escaped = FALSE;
}

void vmsnap_json_stream_skip(VmsnapJsonStream *stream) {
    stream->skipping = TRUE;
}

static gboolean set_error(GError **error, const char *reason) {
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, reason);
    return FALSE;
}

static void scan_in_string(VmsnapJsonStream *stream, guint8 byte) {
    if (stream->escaped)
        stream->escaped = FALSE;
    else if (byte == '\\')
        stream->escaped = TRUE;
    else if (byte == '"')
        stream->in_string = FALSE;
}

/* Returns: whether the object ends with this byte. */
static gboolean scan_byte(VmsnapJsonStream *stream, guint8 byte) {
    if (stream->in_string) {
        scan_in_string(stream, byte);
        return FALSE;
    }
    if (byte == '"')
        stream->in_string = TRUE;
    else if (byte == '{' || byte == '[')
        stream->depth++;
    else if (byte == '}' || byte == ']')
        return --stream->depth == 0;
    return FALSE;
}

/* Looks for the end of the next object. Returns: FALSE with @error set if there is none to come. */
static gboolean stream_scan(VmsnapJsonStream *stream, gboolean *ret_found, GError **error) {
    *ret_found = FALSE;
    while (stream->scanned < stream->bytes->len && !*ret_found) {
        guint8 byte = stream->bytes->data[stream->scanned++];
        if (byte == RESYNC_BYTE)
            stream->skipping = FALSE;
        if (byte == RESYNC_BYTE || stream->skipping || (stream->depth == 0 && g_ascii_isspace(byte)))
            stream_begin_anew(stream);
        else if (stream->depth == 0 && byte != '{')
            return set_error(error, "it sends something else than JSON objects");
        else
            *ret_found = scan_byte(stream, byte);
        if (stream->depth > MAX_DEPTH)
            return set_error(error, "it sends JSON that is nested too deeply");
        if (stream->scanned - stream->begin > stream->max_bytes)
            return set_error(error, "it sends a JSON object that is too long");
    }
    return TRUE;
}

gboolean vmsnap_json_stream_pop(VmsnapJsonStream *stream, JsonNode **ret_node, GError **error) {
    gboolean found;
    *ret_node = NULL;
    if (!stream_scan(stream, &found, error))
        return FALSE;
    if (!found)
        return TRUE;
    g_autoptr(JsonParser) parser = json_parser_new_immutable();
    const char *text = (const char *)stream->bytes->data + stream->begin;
    gboolean parsed = json_parser_load_from_data(parser, text, (gssize)(stream->scanned - stream->begin), NULL);
    stream_begin_anew(stream);
    g_autoptr(JsonNode) root = parsed ? json_parser_steal_root(parser) : NULL;
    if (!root || !JSON_NODE_HOLDS_OBJECT(root))
        return set_error(error, "it sends JSON that is wrong");
    *ret_node = g_steal_pointer(&root);
    return TRUE;
}
