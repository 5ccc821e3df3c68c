/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp_server.h"

#include "json_text.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The name of a descriptor in QEMU. */
#define FD_NAME "vmsnap-nbd"
/* What a server says first, with flags behind it, and what a client answers who wants nothing: flags, and an abort. */
#define NBD_GREETING "NBDMAGICIHAVEOPT"
#define NBD_FLAGS_BYTES 2
#define NBD_ABORT "\0\0\0\3IHAVEOPT\0\0\0\2\0\0\0\0"
#define ANSWER_TIMEOUT_MS 1000

gboolean vmsnap_qmp_server_start(VmsnapQmp *qmp, int listen_fd, GError **error) {
    g_autoptr(JsonNode) passed = vmsnap_qmp_call_with_fd(qmp, listen_fd, error, "getfd", "{'fdname': <'" FD_NAME "'>}");
    if (!passed)
        return FALSE;
    if (vmsnap_qmp_run(qmp, error, "nbd-server-start",
                       "{'addr': <{'type': <'fd'>, 'data': <{'str': <'" FD_NAME "'>}>}>, 'max-connections': <0>}"))
        return TRUE;
    (void)vmsnap_qmp_run(qmp, NULL, "closefd", "{'fdname': <'" FD_NAME "'>}");
    return FALSE;
}

static gboolean receive_in_time(int fd, char *buffer, size_t length) {
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    return poll(&waiting, 1, ANSWER_TIMEOUT_MS) > 0 && recv(fd, buffer, length, 0) == (ssize_t)length;
}

/* QEMU complains of clients who go without a word. */
static gboolean greets(int fd) {
    char greeting[sizeof NBD_GREETING - 1 + NBD_FLAGS_BYTES], end;
    if (!receive_in_time(fd, greeting, sizeof greeting) || memcmp(greeting, NBD_GREETING, sizeof NBD_GREETING - 1) != 0)
        return FALSE;
    if (send(fd, NBD_ABORT, sizeof NBD_ABORT - 1, MSG_NOSIGNAL) > 0)
        (void)receive_in_time(fd, &end, sizeof end);
    return TRUE;
}

/* Nobody but the server that was started with it answers on our socket. */
VmsnapQmpServer vmsnap_qmp_server_look(const char *socket_path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!socket_path || g_strlcpy(address.sun_path, socket_path, sizeof address.sun_path) >= sizeof address.sun_path)
        return VMSNAP_QMP_SERVER_NONE;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    VmsnapQmpServer server = VMSNAP_QMP_SERVER_SILENT;
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        server = greets(fd) ? VMSNAP_QMP_SERVER_OURS : VMSNAP_QMP_SERVER_SILENT;
    else if (fd >= 0 && (errno == ENOENT || errno == ECONNREFUSED))
        server = VMSNAP_QMP_SERVER_NONE;
    if (fd >= 0)
        (void)close(fd);
    return server;
}

/* Other kinds of exports, such as vhost-user-blk, do not go through it. */
static gboolean has_nbd_export(JsonNode *exports) {
    JsonArray *list = vmsnap_json_as_array(exports);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *object = vmsnap_json_get_object(list, i);
        JsonNode *type = vmsnap_json_find(object, "type", G_TYPE_STRING);
        if (type && g_str_equal(json_node_get_string(type), "nbd"))
            return TRUE;
    }
    return FALSE;
}

gboolean vmsnap_qmp_server_stop(VmsnapQmp *qmp, const char *socket, GError **error) {
    /* One that was handed over for a server that was never started. */
    (void)vmsnap_qmp_run(qmp, NULL, "closefd", "{'fdname': <'" FD_NAME "'>}");
    VmsnapQmpServer server = vmsnap_qmp_server_look(socket);
    if (server == VMSNAP_QMP_SERVER_NONE)
        return TRUE;
    g_autoptr(JsonNode) exports = vmsnap_qmp_call(qmp, error, "query-block-exports", NULL);
    if (!exports)
        return FALSE;
    if (server == VMSNAP_QMP_SERVER_OURS && !has_nbd_export(exports))
        return vmsnap_qmp_run(qmp, error, "nbd-server-stop", NULL);
    g_set_error_literal(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_REFUSED,
                        server == VMSNAP_QMP_SERVER_OURS
                            ? "somebody else exports through the NBD server that was started for it"
                            : "its NBD server does not answer");
    return FALSE;
}
