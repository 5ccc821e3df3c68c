/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's NBD server. We make the socket and hand it over, in a directory that nobody else can search, so that it is
 * never anybody else's, whatever user QEMU runs as.
 */
#pragma once

#include "qmp_client.h"

/**
 * vmsnap_qmp_server_start:
 * @listen_fd: a listening socket, which stays the caller's
 *
 * Starts QEMU's NBD server, of which there is one in a process.
 */
gboolean vmsnap_qmp_server_start(VmsnapQmp *qmp, int listen_fd, GError **error);

typedef enum {
    VMSNAP_QMP_SERVER_NONE, /* nobody listens */
    VMSNAP_QMP_SERVER_OURS,
    VMSNAP_QMP_SERVER_SILENT, /* somebody listens, who says nothing */
} VmsnapQmpServer;

/** Returns: who listens on the socket that an NBD server was started with, or on NULL. Blocks for a moment. */
VmsnapQmpServer vmsnap_qmp_server_look(const char *socket);

/**
 * vmsnap_qmp_server_stop:
 * @socket: path of the socket that it was started with
 *
 * Stops the NBD server, unless it is somebody else's, or serves somebody else as well, which is an error.
 */
gboolean vmsnap_qmp_server_stop(VmsnapQmp *qmp, const char *socket, GError **error);
