/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where an NBD server listens, and who that is in words for people. A server has exports, each of which is opened by
 * connections of its own.
 *
 * What is served must be the same from one connection to the next, or a file would be made of two instants. So a unix
 * socket is held by a descriptor, and connected to through that: whatever becomes of its name, it is this very socket
 * or none, and no right to search its directory is needed for it. (But the right to write to the socket is, and so
 * a server of another user is lost when the connection is cut after the daemon has given up its capabilities, unless
 * the socket's mode lets everybody in.) And nobody who listens means that the server has ended, at a host and port as
 * well: what listens there later may be another one, or serve another instant, although it looks the same.
 */
#pragma once

#include <glib.h>
#include <libnbd.h>

/** Immutable. */
typedef struct {
    char *name;         /* path or URI, for people */
    const char *who;    /* static: who answers there */
    const char *cause;  /* static: why nobody does any more */
    const char *remedy; /* static: what to look at if he does not let us in; or NULL */
    char *uri;          /* NULL for a socket of ours */
    int socket_fd;      /* owned; O_PATH; -1 for TCP */
} VmsnapNbdServer;

/**
 * vmsnap_nbd_server_new_private:
 * @path: of a unix socket of ours, which QEMU serves, in a directory that only its owner can search
 *
 * Makes it writable for everybody, so that no capability is needed to connect to it.
 * Returns: (transfer full): the server, or NULL with @error set.
 */
VmsnapNbdServer *vmsnap_nbd_server_new_private(const char *path, GError **error);

/**
 * vmsnap_nbd_server_new_uri:
 * @uri: of a server of somebody else's; the name of an export in it is of no interest
 *
 * Does not connect, nor change anything. Returns: (transfer full): the server, or NULL with @error set.
 */
VmsnapNbdServer *vmsnap_nbd_server_new_uri(const char *uri, GError **error);

/** NULL-safe. */
void vmsnap_nbd_server_free(VmsnapNbdServer *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapNbdServer, vmsnap_nbd_server_free)

/**
 * vmsnap_nbd_server_connect:
 * @nbd: new; other settings have been made
 *
 * Begins to connect. Does not block, unless the name of a host has to be found: then for as long as the system's
 * resolver takes. Any thread. Returns: FALSE with libnbd's error set.
 */
gboolean vmsnap_nbd_server_connect(const VmsnapNbdServer *server, struct nbd_handle *nbd, const char *export_name);

/** Sets @error to "failed to VERB 'SERVER': REASON", with what to look at. */
void vmsnap_nbd_server_set_error(const VmsnapNbdServer *server, const char *verb, const char *reason, GError **error);

/** Returns: (transfer full): the version of libnbd, or NULL. */
char *vmsnap_nbd_get_version(void);

/** Returns: whether its socket has been removed. Any thread. */
gboolean vmsnap_nbd_server_is_gone(const VmsnapNbdServer *server);
