/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Spreads requests over the connections of one export: each goes where the fewest wait. */
#include "nbd_pool.h"

#include "nbd_handle.h"
#include "vmsnap/error.h"

struct VmsnapNbdPool {
    GPtrArray *connections;       /* of VmsnapNbdConnection, owned; at least one; immutable after new, as all of this */
    VmsnapNbdConnection *changes; /* owned; that one which tells what has changed; NULL without a bitmap */
};

/** What all connections of a pool are made with. */
typedef struct {
    VmsnapSnapshot *snapshot;
    const VmsnapNbdServer *server;
    const char *export_name;
    unsigned timeout_ms;
} Target;

static VmsnapNbdConnection *pool_connect_one(VmsnapNbdPool *pool, const Target *target, const char *context,
                                             GError **error) {
    g_autoptr(VmsnapNbdConnection) connection = vmsnap_nbd_connection_new(
        target->snapshot, target->server, target->export_name, context, target->timeout_ms, error);
    if (!connection)
        return NULL;
    if (pool->connections->len == 0 || vmsnap_nbd_connection_get_size(connection) == vmsnap_nbd_pool_get_size(pool))
        return g_steal_pointer(&connection);
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "its size changes from one connection to the next");
    return NULL;
}

static gboolean pool_connect(VmsnapNbdPool *pool, const Target *target, guint max_connections, GError **error) {
    VmsnapNbdConnection *connection;
    do {
        connection = pool_connect_one(pool, target, LIBNBD_CONTEXT_BASE_ALLOCATION, error);
        if (!connection)
            return FALSE;
        g_ptr_array_add(pool->connections, connection);
    } while (vmsnap_nbd_connection_is_multi_conn(connection) && pool->connections->len < max_connections);
    return TRUE;
}

static gboolean pool_connect_changes(VmsnapNbdPool *pool, const Target *target, const char *bitmap, GError **error) {
    if (!bitmap)
        return TRUE;
    g_autofree char *context = g_strconcat(VMSNAP_NBD_CONTEXT_BITMAP, bitmap, NULL);
    pool->changes = pool_connect_one(pool, target, context, error);
    if (!pool->changes)
        return FALSE;
    if (vmsnap_nbd_connection_has_extents(pool->changes))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "it does not tell what has changed (%s)", context);
    return FALSE;
}

VmsnapNbdPool *vmsnap_nbd_pool_new(VmsnapIoThreads *threads, VmsnapSnapshot *snapshot, const VmsnapNbdServer *server,
                                   const char *export_name, const char *bitmap, guint max_connections,
                                   unsigned timeout_ms, GError **error) {
    const Target target = {
        .snapshot = snapshot, .server = server, .export_name = export_name, .timeout_ms = timeout_ms};
    g_autoptr(VmsnapNbdPool) pool = g_new0(VmsnapNbdPool, 1);
    g_autoptr(GError) reason = NULL;
    pool->connections = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_nbd_connection_free);
    if (!pool_connect(pool, &target, max_connections, &reason) ||
        !pool_connect_changes(pool, &target, bitmap, &reason)) {
        g_autofree char *verb = g_strdup_printf("connect to NBD export '%s' on", export_name);
        vmsnap_nbd_server_set_error(server, verb, reason->message, error);
        return NULL;
    }
    for (guint i = 0; i < pool->connections->len; i++)
        vmsnap_nbd_connection_attach(g_ptr_array_index(pool->connections, i), threads);
    if (pool->changes)
        vmsnap_nbd_connection_attach(pool->changes, threads);
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

void vmsnap_nbd_pool_discard(VmsnapNbdPool *pool, uint64_t offset, uint64_t length, VmsnapDoneFunc done,
                             gpointer user_data) {
    vmsnap_nbd_connection_discard(pool_choose(pool), offset, length, done, user_data);
}

void vmsnap_nbd_pool_extents(VmsnapNbdPool *pool, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                             VmsnapExtentsFunc done, gpointer user_data) {
    gboolean of_changes = question == VMSNAP_EXTENTS_OF_CHANGES;
    g_assert(!of_changes || pool->changes);
    vmsnap_nbd_connection_extents(of_changes ? pool->changes : pool_choose(pool), offset, length, done, user_data);
}

void vmsnap_nbd_pool_close(VmsnapNbdPool *pool) {
    for (guint i = 0; i < pool->connections->len; i++)
        vmsnap_nbd_connection_close(g_ptr_array_index(pool->connections, i));
    if (pool->changes)
        vmsnap_nbd_connection_close(pool->changes);
}

void vmsnap_nbd_pool_free(VmsnapNbdPool *pool) {
    if (!pool)
        return;
    g_ptr_array_unref(pool->connections);
    vmsnap_nbd_connection_free(pool->changes);
    g_free(pool);
}

gboolean vmsnap_nbd_pool_check_size(const VmsnapNbdPool *pool, const VmsnapDisk *disk, GError **error) {
    uint64_t export_bytes = vmsnap_nbd_pool_get_size(pool);
    if (disk->size_bytes == export_bytes)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use the export of disk '%s': it has %" G_GUINT64_FORMAT
                " bytes, and the disk %" G_GUINT64_FORMAT "; try again if it has just been resized",
                disk->name, export_bytes, disk->size_bytes);
    return FALSE;
}
