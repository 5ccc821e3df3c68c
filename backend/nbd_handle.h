/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libnbd's handles: how one is made, and what an export told when it was opened. A handle serves one connection only,
 * so that each new connection is a new handle.
 */
#pragma once

#include "nbd_server.h"

#include <stdint.h>

/** A bitmap of QEMU's by its name after this: tells what has changed. The other context that is used tells content. */
#define VMSNAP_NBD_CONTEXT_BITMAP "qemu:dirty-bitmap:"

/** What an export told. None of it may change from one connection to the next. */
typedef struct {
    const char *context; /* what it is asked for extents by, and not told; belongs to the connection */
    uint64_t size_bytes;
    uint64_t block_bytes;   /* ranges must be made of blocks of this size */
    gboolean is_multi_conn; /* several connections show the same data */
    gboolean has_extents;   /* it tells them */
} VmsnapNbdExport;

/**
 * vmsnap_nbd_handle_new:
 * @context: the one in which to ask for extents: content or changes. A server finds out about all that were agreed on
 *   whenever it is asked, and the content is what may take long
 *
 * Begins to connect, as vmsnap_nbd_server_connect(). Returns: the handle, or NULL with libnbd's error set.
 */
struct nbd_handle *vmsnap_nbd_handle_new(const VmsnapNbdServer *server, const char *export_name, const char *context);

/** Blocks until the server has let @nbd in. Returns: FALSE if it has not within @timeout_ms. */
gboolean vmsnap_nbd_handle_wait(struct nbd_handle *nbd, unsigned timeout_ms);

/** Returns: why vmsnap_nbd_handle_wait() has failed just now, on the same thread, in words for the user. */
const char *vmsnap_nbd_handle_get_failure(struct nbd_handle *nbd);

/** Returns: whether the server tells of an export that can be used. */
gboolean vmsnap_nbd_handle_get_export(struct nbd_handle *nbd, const char *context, VmsnapNbdExport *ret_export);

/** Returns: what has changed, in words for the user, or NULL if it is the same export as far as one can tell. */
const char *vmsnap_nbd_export_find_change(const VmsnapNbdExport *before, const VmsnapNbdExport *after);

/** Sends and receives what is possible. Returns: -1 with libnbd's error set if the connection is of no use any more. */
int vmsnap_nbd_handle_notify(struct nbd_handle *nbd, GIOCondition events);

/** Returns: what the handle waits for. */
GIOCondition vmsnap_nbd_handle_get_events(struct nbd_handle *nbd);
