/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "json_socket.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* A unix socket whose queue is full cannot be waited for, only tried again. */
#define RETRY_US 20000
#define LATE "it does not answer in time"

struct VmsnapJsonSocket {
    int fd; /* owned; non-blocking */
    VmsnapJsonStream *stream;
};

static int socket_connect_once(const struct sockaddr_un *address) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) == 0)
        return fd;
    int code = errno;
    (void)close(fd);
    errno = code;
    return -1;
}

VmsnapJsonSocket *vmsnap_json_socket_connect(const char *path, size_t max_message_bytes, gint64 deadline_us,
                                             int *ret_errno) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *ret_errno = path ? ENAMETOOLONG : ENOENT;
    if (!path || g_strlcpy(address.sun_path, path, sizeof address.sun_path) >= sizeof address.sun_path)
        return NULL;
    int fd;
    while ((fd = socket_connect_once(&address)) < 0 && errno == EAGAIN && g_get_monotonic_time() < deadline_us)
        g_usleep(RETRY_US);
    *ret_errno = fd < 0 ? errno : 0;
    if (fd < 0)
        return NULL;
    VmsnapJsonSocket *connected = g_new0(VmsnapJsonSocket, 1);
    connected->fd = fd;
    connected->stream = vmsnap_json_stream_new(max_message_bytes);
    return connected;
}

void vmsnap_json_socket_free(VmsnapJsonSocket *socket) {
    if (!socket)
        return;
    (void)close(socket->fd);
    vmsnap_json_stream_free(socket->stream);
    g_free(socket);
}

static gboolean set_error(GError **error, const char *reason) {
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, reason);
    return FALSE;
}

static gboolean socket_wait(const VmsnapJsonSocket *socket, short events, gint64 deadline_us, GError **error) {
    struct pollfd waiting = {.fd = socket->fd, .events = events};
    int ready;
    do {
        gint64 left_us = MAX(deadline_us - g_get_monotonic_time(), 0);
        ready = poll(&waiting, 1, (int)MIN((left_us + 999) / 1000, G_MAXINT));
    } while (ready < 0 && errno == EINTR);
    if (ready > 0)
        return TRUE;
    return set_error(error, ready < 0 ? g_strerror(errno) : LATE);
}

static ssize_t send_some(int socket_fd, const char *text, size_t length, int fd) {
    struct iovec part = {.iov_base = (char *)text, .iov_len = length};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.room;
        message.msg_controllen = sizeof control.room;
        control.header =
            (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    return sendmsg(socket_fd, &message, MSG_NOSIGNAL);
}

/* The descriptor goes with the first part. */
gboolean vmsnap_json_socket_send(VmsnapJsonSocket *socket, const char *text, int fd, gint64 deadline_us,
                                 GError **error) {
    size_t left = strlen(text);
    while (left > 0) {
        ssize_t sent = send_some(socket->fd, text, left, fd);
        if (sent > 0) {
            text += sent;
            left -= (size_t)sent;
            fd = -1;
        } else if (errno == EAGAIN) {
            if (!socket_wait(socket, POLLOUT, deadline_us, error))
                return FALSE;
        } else if (errno != EINTR) {
            return set_error(error, g_strerror(errno));
        }
    }
    return TRUE;
}

void vmsnap_json_socket_skip(VmsnapJsonSocket *socket) {
    vmsnap_json_stream_skip(socket->stream);
}

static gboolean receive_some(VmsnapJsonSocket *socket, gint64 deadline_us, GError **error) {
    char buffer[65536];
    ssize_t length;
    while ((length = recv(socket->fd, buffer, sizeof buffer, 0)) < 0) {
        if (errno == EAGAIN && !socket_wait(socket, POLLIN, deadline_us, error))
            return FALSE;
        if (errno != EAGAIN && errno != EINTR)
            return set_error(error, g_strerror(errno));
    }
    if (length == 0)
        return set_error(error, "it closed the connection");
    vmsnap_json_stream_push(socket->stream, buffer, (size_t)length);
    return TRUE;
}

JsonNode *vmsnap_json_socket_receive(VmsnapJsonSocket *socket, gint64 deadline_us, GError **error) {
    for (;;) {
        JsonNode *node;
        if (!vmsnap_json_stream_pop(socket->stream, &node, error))
            return NULL;
        if (node)
            return node;
        /* Whoever goes on sending must not keep us for ever. */
        if (g_get_monotonic_time() >= deadline_us) {
            set_error(error, LATE);
            return NULL;
        }
        if (!receive_some(socket, deadline_us, error))
            return NULL;
    }
}
