/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One connection to one NBD export, which is made anew when it is cut. */
#pragma once

#include "io_threads.h"
#include "nbd_server.h"
#include "vmsnap/backend.h"

typedef struct VmsnapNbdConnection VmsnapNbdConnection;

/**
 * vmsnap_nbd_connection_new:
 * @snapshot: broken if the connection is lost for good, before the reads in flight fail; must outlive the connection
 * @server: not consumed, must outlive the connection
 * @export_name: what to open there
 * @context: which extents it can be asked for; see vmsnap_nbd_handle_new()
 * @timeout_ms: for the server to let us in, to let us in again, and to answer
 *
 * Connects. Blocks. Nothing is sent before vmsnap_nbd_connection_attach().
 * Returns: the connection, or NULL with @error set.
 */
VmsnapNbdConnection *vmsnap_nbd_connection_new(VmsnapSnapshot *snapshot, const VmsnapNbdServer *server,
                                               const char *export_name, const char *context, unsigned timeout_ms,
                                               GError **error);

uint64_t vmsnap_nbd_connection_get_size(const VmsnapNbdConnection *connection);

/** Returns: whether several connections to this export show the same data. */
gboolean vmsnap_nbd_connection_is_multi_conn(const VmsnapNbdConnection *connection);

/** Returns: whether the server tells extents in the context of the connection. */
gboolean vmsnap_nbd_connection_has_extents(const VmsnapNbdConnection *connection);

/** Gives the connection to one of @threads, which receives for it from then on and must outlive it. */
void vmsnap_nbd_connection_attach(VmsnapNbdConnection *connection, VmsnapIoThreads *threads);

/** Returns: how many requests wait for an answer. Any thread. */
int vmsnap_nbd_connection_get_load(const VmsnapNbdConnection *connection);

/** As vmsnap_disk_read(). */
void vmsnap_nbd_connection_read(VmsnapNbdConnection *connection, void *buffer, size_t length, uint64_t offset,
                                VmsnapDoneFunc done, gpointer user_data);

/** As vmsnap_disk_release(), of an export that can be written to. */
void vmsnap_nbd_connection_discard(VmsnapNbdConnection *connection, uint64_t offset, uint64_t length,
                                   VmsnapDoneFunc done, gpointer user_data);

/** As vmsnap_disk_extents(). */
void vmsnap_nbd_connection_extents(VmsnapNbdConnection *connection, uint64_t offset, uint64_t length,
                                   VmsnapExtentsFunc done, gpointer user_data);

/**
 * vmsnap_nbd_connection_close:
 *
 * Closes a connection whose thread has been stopped: what is in flight fails before this returns, and so does whatever
 * comes later. Idempotent.
 */
void vmsnap_nbd_connection_close(VmsnapNbdConnection *connection);

/** Closes and frees; NULL-safe. */
void vmsnap_nbd_connection_free(VmsnapNbdConnection *connection);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapNbdConnection, vmsnap_nbd_connection_free)
