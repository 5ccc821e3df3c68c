/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_server.h"

#include "nbd_uri.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Connecting and chmod(2) take no descriptor, but this name for one. */
static char *socket_name(int socket_fd) {
    return g_strdup_printf("/proc/self/fd/%d", socket_fd);
}

/* Returns: a descriptor, or -1 with errno set. */
static int socket_open(const char *path, int flags, struct stat *ret_status) {
    int fd = open(path, O_PATH | O_CLOEXEC | flags);
    if (fd < 0 || (fstat(fd, ret_status) == 0 && S_ISSOCK(ret_status->st_mode)))
        return fd;
    (void)close(fd);
    errno = ENOTSOCK;
    return -1;
}

/*
 * A symbolic link would lead to the disk of another machine: the directory belongs to QEMU's user. The mode of a socket
 * that has another name is left alone for the same reason. If it cannot be changed, connecting will tell whether that
 * matters.
 */
VmsnapNbdServer *vmsnap_nbd_server_new_private(const char *path, GError **error) {
    struct stat status;
    int fd = socket_open(path, O_NOFOLLOW, &status);
    if (fd < 0) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to open the NBD socket '%s': %s", path,
                    g_strerror(errno));
        return NULL;
    }
    g_autofree char *name = socket_name(fd);
    if (status.st_nlink == 1)
        (void)chmod(name, 0666);
    VmsnapNbdServer *server = g_new0(VmsnapNbdServer, 1);
    server->name = g_strdup(path);
    server->who = "QEMU";
    server->cause = "the guest was stopped, or somebody else ended the backup job";
    server->socket_fd = fd;
    return server;
}

VmsnapNbdServer *vmsnap_nbd_server_new_uri(const char *uri, GError **error) {
    struct stat status;
    g_autofree char *path = vmsnap_nbd_uri_get_socket(uri);
    int fd = path ? socket_open(path, 0, &status) : -1;
    if (path && fd < 0) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use socket '%s' of '%s': %s; see whether the server runs, and where it listens", path,
                    uri, g_strerror(errno));
        return NULL;
    }
    VmsnapNbdServer *server = g_new0(VmsnapNbdServer, 1);
    server->name = g_strdup(uri);
    server->who = "the server";
    server->cause = "it has ended, and whatever is served there later may be something else";
    server->remedy = "see whether the server runs and has that export, and whether it speaks TLS (nbds) or not (nbd)";
    server->uri = g_strdup(uri);
    server->socket_fd = fd;
    return server;
}

void vmsnap_nbd_server_free(VmsnapNbdServer *server) {
    if (!server)
        return;
    if (server->socket_fd >= 0)
        (void)close(server->socket_fd);
    g_free(server->name);
    g_free(server->uri);
    g_free(server);
}

/* Keys are in files that the URI names, and which are read anew for each connection. */
gboolean vmsnap_nbd_server_connect(const VmsnapNbdServer *server, struct nbd_handle *nbd, const char *export_name) {
    g_autofree char *socket = server->socket_fd >= 0 ? socket_name(server->socket_fd) : NULL;
    if (!server->uri)
        return nbd_set_export_name(nbd, export_name) == 0 && nbd_aio_connect_unix(nbd, socket) == 0;
    g_autofree char *uri = vmsnap_nbd_uri_build(server->uri, export_name, socket);
    return nbd_set_uri_allow_local_file(nbd, true) == 0 && nbd_aio_connect_uri(nbd, uri) == 0;
}

void vmsnap_nbd_server_set_error(const VmsnapNbdServer *server, const char *verb, const char *reason, GError **error) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to %s '%s': %s%s%s", verb, server->name, reason,
                server->remedy ? "; " : "", server->remedy ? server->remedy : "");
}

char *vmsnap_nbd_get_version(void) {
    struct nbd_handle *nbd = nbd_create();
    char *version = nbd ? g_strdup(nbd_get_version(nbd)) : NULL;
    nbd_close(nbd);
    return version;
}

gboolean vmsnap_nbd_server_is_gone(const VmsnapNbdServer *server) {
    struct stat status;
    return server->socket_fd >= 0 && fstat(server->socket_fd, &status) == 0 && status.st_nlink == 0;
}
