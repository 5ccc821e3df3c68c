/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_handle.h"

/*
 * libnbd would clear each buffer before the answer comes, since that may leave gaps; which costs a third of what the
 * receiving does, and makes wrong bytes of them. So it is told not to, and nbd_request.c notices gaps.
 */
struct nbd_handle *vmsnap_nbd_handle_new(const VmsnapNbdServer *server, const char *export_name, const char *context) {
    struct nbd_handle *nbd = nbd_create();
    if (nbd && nbd_set_pread_initialize(nbd, false) == 0 && nbd_add_meta_context(nbd, context) == 0 &&
        vmsnap_nbd_server_connect(server, nbd, export_name))
        return nbd;
    nbd_close(nbd);
    return NULL;
}

gboolean vmsnap_nbd_handle_wait(struct nbd_handle *nbd, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    while (nbd_aio_is_connecting(nbd)) {
        gint64 left_ms = (deadline_us - g_get_monotonic_time()) / 1000;
        if (left_ms <= 0 || nbd_poll(nbd, (int)MIN(left_ms, G_MAXINT)) < 0)
            return FALSE;
    }
    return nbd_aio_is_ready(nbd) == 1;
}

const char *vmsnap_nbd_handle_get_failure(struct nbd_handle *nbd) {
    const char *reason = nbd_get_error();
    if (nbd_aio_is_connecting(nbd))
        return "no answer";
    return reason ? reason : "the server closed the connection";
}

gboolean vmsnap_nbd_handle_get_export(struct nbd_handle *nbd, const char *context, VmsnapNbdExport *ret_export) {
    int64_t size_bytes = nbd_get_size(nbd);
    int64_t block_bytes = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
    if (size_bytes < 0)
        return FALSE;
    *ret_export = (VmsnapNbdExport){
        .context = context,
        .size_bytes = (uint64_t)size_bytes,
        .block_bytes = block_bytes > 0 ? (uint64_t)block_bytes : 1,
        .is_multi_conn = nbd_can_multi_conn(nbd) == 1,
        .has_extents = nbd_can_meta_context(nbd, context) == 1,
    };
    return TRUE;
}

const char *vmsnap_nbd_export_find_change(const VmsnapNbdExport *before, const VmsnapNbdExport *after) {
    if (before->size_bytes != after->size_bytes)
        return "its size changed";
    if (before->block_bytes != after->block_bytes)
        return "its block size changed";
    if (before->is_multi_conn != after->is_multi_conn)
        return "what several connections see changed";
    if (before->has_extents != after->has_extents)
        return "whether it tells extents changed";
    return NULL;
}

int vmsnap_nbd_handle_notify(struct nbd_handle *nbd, GIOCondition events) {
    unsigned direction = nbd_aio_get_direction(nbd);
    if ((events & ~G_IO_OUT) && (direction & LIBNBD_AIO_DIRECTION_READ))
        return nbd_aio_notify_read(nbd);
    if ((events & ~G_IO_IN) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        return nbd_aio_notify_write(nbd);
    return 0;
}

GIOCondition vmsnap_nbd_handle_get_events(struct nbd_handle *nbd) {
    unsigned direction = nbd_aio_get_direction(nbd);
    return (direction & LIBNBD_AIO_DIRECTION_READ ? G_IO_IN : 0) |
           (direction & LIBNBD_AIO_DIRECTION_WRITE ? G_IO_OUT : 0);
}
