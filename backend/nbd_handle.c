/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_handle.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Connecting and chmod(2) take no descriptor, but this name for one. */
static char *socket_name(int socket_fd) {
    return g_strdup_printf("/proc/self/fd/%d", socket_fd);
}

/*
 * A symbolic link would lead to the disk of another machine: the directory belongs to QEMU's user. The mode of a socket
 * that has another name is left alone for the same reason. If it cannot be changed, connecting will tell whether that
 * matters.
 */
int vmsnap_nbd_socket_open(const char *path) {
    struct stat status;
    int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode)) {
        g_autofree char *name = socket_name(fd);
        if (status.st_nlink == 1)
            (void)chmod(name, 0666);
        return fd;
    }
    (void)close(fd);
    errno = ENOTSOCK;
    return -1;
}

gboolean vmsnap_nbd_socket_is_gone(int socket_fd) {
    struct stat status;
    return fstat(socket_fd, &status) == 0 && status.st_nlink == 0;
}

/*
 * libnbd would clear each buffer before the answer comes, since that may leave gaps; which costs a third of what the
 * receiving does, and makes wrong bytes of them. So it is told not to, and nbd_request.c notices gaps.
 */
struct nbd_handle *vmsnap_nbd_handle_new(int socket_fd, const char *export_name, const char *context) {
    g_autofree char *name = socket_name(socket_fd);
    struct nbd_handle *nbd = nbd_create();
    if (nbd && nbd_set_pread_initialize(nbd, false) == 0 && nbd_set_export_name(nbd, export_name) == 0 &&
        nbd_add_meta_context(nbd, context) == 0 && nbd_aio_connect_unix(nbd, name) == 0)
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
