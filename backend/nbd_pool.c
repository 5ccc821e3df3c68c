/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Spreads requests over the connections of one export: each goes where the fewest wait. */
#include "nbd_pool.h"

#include "nbd_handle.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <unistd.h>

struct VmsnapNbdPool {
    int socket_fd;          /* owned; immutable after new, as connections */
    GPtrArray *connections; /* of VmsnapNbdConnection, owned; at least one */
};

static gboolean pool_connect(VmsnapNbdPool *pool, VmsnapSnapshot *snapshot, const char *export_name,
                             guint max_connections, unsigned timeout_ms, GError **error) {
    do {
        VmsnapNbdConnection *connection =
            vmsnap_nbd_connection_new(snapshot, pool->socket_fd, export_name, timeout_ms, error);
        if (!connection)
            return FALSE;
        g_ptr_array_add(pool->connections, connection);
        if (vmsnap_nbd_connection_get_size(connection) != vmsnap_nbd_pool_get_size(pool)) {
            g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                                "its size changes from one connection to the next");
            return FALSE;
        }
        if (!vmsnap_nbd_connection_is_multi_conn(connection))
            break;
    } while (pool->connections->len < max_connections);
    return TRUE;
}

static gboolean pool_open_socket(VmsnapNbdPool *pool, const char *socket, GError **error) {
    pool->socket_fd = vmsnap_nbd_socket_open(socket);
    if (pool->socket_fd >= 0)
        return TRUE;
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, g_strerror(errno));
    return FALSE;
}

VmsnapNbdPool *vmsnap_nbd_pool_new(VmsnapIoThreads *threads, VmsnapSnapshot *snapshot, const char *socket,
                                   const char *export_name, guint max_connections, unsigned timeout_ms,
                                   GError **error) {
    g_autoptr(VmsnapNbdPool) pool = g_new0(VmsnapNbdPool, 1);
    pool->connections = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_nbd_connection_free);
    if (!pool_open_socket(pool, socket, error) ||
        !pool_connect(pool, snapshot, export_name, max_connections, timeout_ms, error)) {
        g_prefix_error(error, "failed to connect to NBD export '%s' on '%s': ", export_name, socket);
        return NULL;
    }
    for (guint i = 0; i < pool->connections->len; i++)
        vmsnap_nbd_connection_attach(g_ptr_array_index(pool->connections, i), threads);
    return g_steal_pointer(&pool);
}

uint64_t vmsnap_nbd_pool_get_size(const VmsnapNbdPool *pool) {
    return vmsnap_nbd_connection_get_size(g_ptr_array_index(pool->connections, 0));
}

static VmsnapNbdConnection *pool_choose(VmsnapNbdPool *pool) {
    VmsnapNbdConnection *best = g_ptr_array_index(pool->connections, 0);
    for (guint i = 1; i < pool->connections->len; i++) {
        VmsnapNbdConnection *connection = g_ptr_array_index(pool->connections, i);
        if (vmsnap_nbd_connection_get_load(connection) < vmsnap_nbd_connection_get_load(best))
            best = connection;
    }
    return best;
}

void vmsnap_nbd_pool_read(VmsnapNbdPool *pool, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                          gpointer user_data) {
    vmsnap_nbd_connection_read(pool_choose(pool), buffer, length, offset, done, user_data);
}

void vmsnap_nbd_pool_extents(VmsnapNbdPool *pool, uint64_t offset, uint64_t length, VmsnapExtentsFunc done,
                             gpointer user_data) {
    vmsnap_nbd_connection_extents(pool_choose(pool), offset, length, done, user_data);
}

void vmsnap_nbd_pool_close(VmsnapNbdPool *pool) {
    for (guint i = 0; i < pool->connections->len; i++)
        vmsnap_nbd_connection_close(g_ptr_array_index(pool->connections, i));
}

void vmsnap_nbd_pool_free(VmsnapNbdPool *pool) {
    if (!pool)
        return;
    g_ptr_array_unref(pool->connections);
    if (pool->socket_fd >= 0)
        (void)close(pool->socket_fd);
    g_free(pool);
}
