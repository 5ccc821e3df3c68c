/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All connections to one NBD export. */
#pragma once

#include "nbd_connection.h"

typedef struct VmsnapNbdPool VmsnapNbdPool;

/**
 * vmsnap_nbd_pool_new:
 * @threads: must outlive the pool; they may be started later
 * @snapshot: broken when a connection is lost for good, before its reads fail; must outlive the pool
 * @server: must outlive the pool
 * @bitmap: of QEMU's, by which the export tells what has changed; or NULL
 * @max_connections: at least 1; more than one are made only where the server allows it
 * @timeout_ms: for the server to let each connection in, to let it in again after it was cut, and to answer
 *
 * Connects. Blocks. Returns: the pool, or NULL with @error set.
 */
VmsnapNbdPool *vmsnap_nbd_pool_new(VmsnapIoThreads *threads, VmsnapSnapshot *snapshot, const VmsnapNbdServer *server,
                                   const char *export_name, const char *bitmap, guint max_connections,
                                   unsigned timeout_ms, GError **error);

uint64_t vmsnap_nbd_pool_get_size(const VmsnapNbdPool *pool);

/** Returns: FALSE with @error set if the export of @disk is not as large as the disk. */
gboolean vmsnap_nbd_pool_check_size(const VmsnapNbdPool *pool, const VmsnapDisk *disk, GError **error);

/** As vmsnap_disk_read(). */
void vmsnap_nbd_pool_read(VmsnapNbdPool *pool, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                          gpointer user_data);

/** As vmsnap_disk_release(), of an export that can be written to. */
void vmsnap_nbd_pool_discard(VmsnapNbdPool *pool, uint64_t offset, uint64_t length, VmsnapDoneFunc done,
                             gpointer user_data);

/** As vmsnap_disk_extents(). */
void vmsnap_nbd_pool_extents(VmsnapNbdPool *pool, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                             VmsnapExtentsFunc done, gpointer user_data);

/**
 * vmsnap_nbd_pool_close:
 *
 * Closes the connections, whose threads have been stopped: what is in flight fails before this returns, and so does
 * whatever comes later.
 */
void vmsnap_nbd_pool_close(VmsnapNbdPool *pool);

/** NULL-safe. */
void vmsnap_nbd_pool_free(VmsnapNbdPool *pool);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapNbdPool, vmsnap_nbd_pool_free)
