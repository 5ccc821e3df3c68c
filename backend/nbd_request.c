/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_request.h"

#include <errno.h>
#include <string.h>

/* Of an answer: a server may tell millions, and whoever needs more asks again. */
#define MAX_EXTENTS 65536

VmsnapNbdRequest *vmsnap_nbd_request_new_read(void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                                              gpointer user_data) {
    VmsnapNbdRequest *request = g_new0(VmsnapNbdRequest, 1);
    g_assert(done);
    request->link.data = request;
    request->buffer = buffer;
    request->length = length;
    request->offset = offset;
    request->done = done;
    request->user_data = user_data;
    return request;
}

VmsnapNbdRequest *vmsnap_nbd_request_new_discard(uint64_t offset, uint64_t length, VmsnapDoneFunc done,
                                                 gpointer user_data) {
    VmsnapNbdRequest *request = vmsnap_nbd_request_new_read(NULL, length, offset, done, user_data);
    request->is_discard = TRUE;
    return request;
}

VmsnapNbdRequest *vmsnap_nbd_request_new_extents(uint64_t offset, uint64_t length, VmsnapExtentsFunc done,
                                                 gpointer user_data) {
    VmsnapNbdRequest *request = g_new0(VmsnapNbdRequest, 1);
    g_assert(done);
    request->link.data = request;
    request->extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    request->length = length;
    request->offset = offset;
    request->extents_done = done;
    request->user_data = user_data;
    return request;
}

void vmsnap_nbd_request_finish(VmsnapNbdRequest *request, int error) {
    if (request->extents_done)
        request->extents_done(error, error ? NULL : &g_array_index(request->extents, VmsnapExtent, 0),
                              error ? 0 : request->extents->len, request->user_data);
    else
        request->done(error, request->user_data);
    if (request->extents)
        g_array_unref(request->extents);
    g_free(request->aligned_buffer);
    g_free(request);
}

void vmsnap_nbd_request_reset(VmsnapNbdRequest *request) {
    request->received_bytes = 0;
    request->told_bytes = 0;
    if (request->extents)
        g_array_set_size(request->extents, 0);
}

/* The owner may free the request. */
static void request_tell(VmsnapNbdRequest *request, VmsnapNbdAnswer answer) {
    if (request->told)
        *request->told = TRUE;
    request->told = NULL;
    request->answered(request, answer, request->owner);
}

/* The range of a request in whole blocks of the server. */
static void request_align(const VmsnapNbdRequest *request, uint64_t *ret_start, uint64_t *ret_end) {
    uint64_t block_bytes = request->export->block_bytes;
    uint64_t end = (request->offset + request->length + block_bytes - 1) / block_bytes * block_bytes;
    *ret_start = request->offset / block_bytes * block_bytes;
    *ret_end = MIN(end, request->export->size_bytes);
}

static int read_received(void *user_data, const void *data, size_t length, uint64_t offset, unsigned status,
                         int *error) {
    (void)data;
    (void)error;
    VmsnapNbdRequest *request = user_data;
    uint64_t start, end;
    request_align(request, &start, &end);
    if (status != LIBNBD_READ_ERROR && offset == start + request->received_bytes)
        request->received_bytes += length;
    return 0;
}

static gboolean read_is_whole(const VmsnapNbdRequest *request) {
    uint64_t start, end;
    request_align(request, &start, &end);
    return request->received_bytes == end - start;
}

/* What libnbd fails commands with when it loses the connection. The protocol has no such error: no server can send it.
 */
static VmsnapNbdAnswer answer_of_error(int error) {
    return error == ENOTCONN ? VMSNAP_NBD_ANSWER_LOST : VMSNAP_NBD_ANSWER_ERROR;
}

/* libnbd's completion callbacks; 1 tells it to forget the command. */
static int read_completed(void *user_data, int *error) {
    VmsnapNbdRequest *request = user_data;
    if (*error) {
        request_tell(request, answer_of_error(*error));
    } else if (read_is_whole(request)) {
        if (request->aligned_buffer)
            memcpy(request->buffer, request->aligned_buffer + request->offset % request->export->block_bytes,
                   request->length);
        request_tell(request, VMSNAP_NBD_ANSWER_GOOD);
    } else if (request->unfragmented) {
        request_tell(request, VMSNAP_NBD_ANSWER_ERROR);
    } else {
        request->unfragmented = TRUE;
        request->received_bytes = 0;
        request_tell(request, VMSNAP_NBD_ANSWER_AGAIN);
    }
    return 1;
}

static int extents_completed(void *user_data, int *error) {
    VmsnapNbdRequest *request = user_data;
    if (*error)
        request_tell(request, answer_of_error(*error));
    else
        request_tell(request, request->extents->len > 0 ? VMSNAP_NBD_ANSWER_GOOD : VMSNAP_NBD_ANSWER_ERROR);
    return 1;
}

/* Returns: FALSE if there are too many already. */
static gboolean request_add_extent(VmsnapNbdRequest *request, VmsnapExtentKind kind, uint64_t length_bytes) {
    GArray *extents = request->extents;
    VmsnapExtent *last = extents->len > 0 ? &g_array_index(extents, VmsnapExtent, extents->len - 1) : NULL;
    VmsnapExtent extent = {.length_bytes = length_bytes, .kind = kind};
    if (last && last->kind == kind)
        last->length_bytes += length_bytes;
    else if (extents->len < MAX_EXTENTS)
        g_array_append_val(extents, extent);
    else
        return FALSE;
    request->told_bytes += length_bytes;
    return TRUE;
}

/*
 * In the context of content, only ZERO tells it; HOLE tells how it is stored. In that of a bitmap there is one flag,
 * and others are not known yet: without any, nothing has changed.
 */
static VmsnapExtentKind kind_of(const char *context, uint32_t flags) {
    if (g_str_equal(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
        return flags & LIBNBD_STATE_ZERO ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA;
    return flags == 0 ? VMSNAP_EXTENT_CLEAN : VMSNAP_EXTENT_DIRTY;
}

/* Entries are pairs of length and flags. */
static int extents_received(void *user_data, const char *context, uint64_t offset, uint32_t *entries, size_t n_entries,
                            int *error) {
    (void)error;
    VmsnapNbdRequest *request = user_data;
    if (!g_str_equal(context, request->export->context))
        return 0;
    /* A server may send more than one answer, and only the first may say what a byte is. */
    uint64_t skip = request->offset + request->told_bytes - MIN(request->offset, offset);
    uint64_t left = request->length - request->told_bytes;
    for (size_t i = 0; i + 1 < n_entries && left > 0; i += 2) {
        uint64_t skipped = MIN(entries[i], skip);
        uint64_t length_bytes = MIN(entries[i] - skipped, left);
        skip -= skipped;
        left -= length_bytes;
        if (length_bytes > 0 && !request_add_extent(request, kind_of(context, entries[i + 1]), length_bytes))
            break;
    }
    return 0;
}

static int64_t request_send_extents(VmsnapNbdRequest *request, struct nbd_handle *nbd) {
    uint64_t start, end;
    request_align(request, &start, &end);
    nbd_extent_callback received = {.callback = extents_received, .user_data = request};
    nbd_completion_callback completed = {.callback = extents_completed, .user_data = request};
    return nbd_aio_block_status(nbd, end - start, start, received, completed, 0);
}

static int64_t request_send_read(VmsnapNbdRequest *request, struct nbd_handle *nbd) {
    uint64_t start, end;
    request_align(request, &start, &end);
    if (end - start != request->length && !request->aligned_buffer)
        request->aligned_buffer = g_malloc(end - start);
    void *buffer = request->aligned_buffer ? request->aligned_buffer : request->buffer;
    uint32_t flags = request->unfragmented ? LIBNBD_CMD_FLAG_DF : 0;
    nbd_chunk_callback received = {.callback = read_received, .user_data = request};
    nbd_completion_callback completed = {.callback = read_completed, .user_data = request};
    return nbd_aio_pread_structured(nbd, buffer, end - start, start, received, completed, flags);
}

static int discard_completed(void *user_data, int *error) {
    request_tell(user_data, *error ? answer_of_error(*error) : VMSNAP_NBD_ANSWER_GOOD);
    return 1;
}

static int64_t request_send_command(VmsnapNbdRequest *request, struct nbd_handle *nbd) {
    nbd_completion_callback discarded = {.callback = discard_completed, .user_data = request};
    if (request->is_discard)
        return nbd_aio_trim(nbd, request->length, request->offset, discarded, 0);
    return request->extents ? request_send_extents(request, nbd) : request_send_read(request, nbd);
}

/*
 * libnbd may complete a command before the call returns. The request may be gone then, and the cookie means nothing:
 * libnbd takes it from the command, which it has freed by that time.
 */
gboolean vmsnap_nbd_request_send(VmsnapNbdRequest *request, struct nbd_handle *nbd) {
    /* Where nothing is told all is data, or all has changed. */
    if (request->extents && !request->export->has_extents) {
        (void)request_add_extent(request, VMSNAP_EXTENT_DATA, request->length);
        request_tell(request, VMSNAP_NBD_ANSWER_GOOD);
        return TRUE;
    }
    gboolean told = FALSE;
    request->told = &told;
    int64_t cookie = request_send_command(request, nbd);
    if (told)
        return TRUE;
    request->told = NULL;
    return cookie >= 0;
}
