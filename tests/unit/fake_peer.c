/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fake_peer.h"

#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 16

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(fd, BACKLOG), ==, 0);
    return fd;
}

static gpointer peer_run(gpointer data) {
    FakePeer *peer = data;
    while ((peer->fd = accept4(peer->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        g_byte_array_set_size(peer->read, 0);
        peer->serve(peer);
        (void)close(peer->fd);
    }
    return NULL;
}

void fake_peer_start(FakePeer *peer, FakePeerFunc serve, gconstpointer data) {
    *peer = (FakePeer){.serve = serve, .data = (gpointer)data, .fd = -1, .received_fd = -1};
    peer->directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    peer->socket = g_build_filename(peer->directory, "peer.sock", NULL);
    peer->read = g_byte_array_new();
    peer->listen_fd = listen_at(peer->socket);
    peer->thread = g_thread_new("peer", peer_run, peer);
}

void fake_peer_stop(FakePeer *peer) {
    if (!peer->thread)
        return;
    /* Which wakes up whoever waits in accept(). */
    (void)shutdown(peer->listen_fd, SHUT_RDWR);
    (void)g_thread_join(g_steal_pointer(&peer->thread));
    (void)close(peer->listen_fd);
}

void fake_peer_clear(FakePeer *peer) {
    fake_peer_stop(peer);
    if (peer->received_fd >= 0)
        (void)close(peer->received_fd);
    g_byte_array_unref(peer->read);
    (void)g_unlink(peer->socket);
    g_assert_cmpint(g_rmdir(peer->directory), ==, 0);
    g_free(peer->socket);
    g_free(peer->directory);
}

gboolean fake_peer_send(FakePeer *peer, const void *data, size_t length) {
    while (length > 0) {
        ssize_t sent = send(peer->fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return FALSE;
        data = (const char *)data + sent;
        length -= (size_t)sent;
    }
    return TRUE;
}

void fake_peer_say(FakePeer *peer, const char *text) {
    (void)fake_peer_send(peer, text, strlen(text));
}

static void keep_descriptor(FakePeer *peer, struct msghdr *message) {
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    if (!header || header->cmsg_type != SCM_RIGHTS)
        return;
    if (peer->received_fd >= 0)
        (void)close(peer->received_fd);
    memcpy(&peer->received_fd, CMSG_DATA(header), sizeof peer->received_fd);
}

static gboolean read_some(FakePeer *peer) {
    static const size_t room = 65536;
    g_autofree char *data = g_malloc(room);
    struct iovec part = {.iov_base = data, .iov_len = room};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t length = recvmsg(peer->fd, &message, MSG_CMSG_CLOEXEC);
    if (length <= 0)
        return FALSE;
    keep_descriptor(peer, &message);
    g_byte_array_append(peer->read, (const guint8 *)data, (guint)length);
    return TRUE;
}

char *fake_peer_read_line(FakePeer *peer) {
    guint length = 0;
    for (;; length++) {
        while (length == peer->read->len)
            if (!read_some(peer))
                return NULL;
        if (peer->read->data[length] == '\n')
            break;
    }
    char *line = g_strndup((const char *)peer->read->data, length);
    g_byte_array_remove_range(peer->read, 0, length + 1);
    return line;
}

void fake_peer_wait_end(FakePeer *peer) {
    while (read_some(peer))
        g_byte_array_set_size(peer->read, 0);
}

gint64 fake_command_id(const char *line) {
    g_autoptr(JsonNode) command = json_from_string(line, NULL);
    g_assert_nonnull(command);
    return json_object_get_int_member(json_node_get_object(command), "id");
}

gboolean fake_monitor_enter(FakePeer *peer) {
    fake_peer_say(peer, FAKE_GREETING);
    g_autofree char *line = fake_peer_read_line(peer);
    if (!line)
        return FALSE;
    g_assert_nonnull(strstr(line, "qmp_capabilities"));
    fake_peer_say(peer, "{\"return\": {}, \"id\": 1}\r\n");
    return TRUE;
}
