/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Objects and descriptors over a socket, and who may be at the other end of it. */
#include "backend/json_socket.h"

#include "fake_peer.h"
#include "ordinary_user.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define MAX_BYTES 1000
#define LONG_US (60 * G_USEC_PER_SEC)
#define SHORT_US (G_USEC_PER_SEC / 10)
#define MANY_BYTES ((size_t)4 << 20)

static gint64 in(gint64 us) {
    return g_get_monotonic_time() + us;
}

static VmsnapJsonSocket *connect_to(const FakePeer *peer) {
    int code;
    VmsnapJsonSocket *socket = vmsnap_json_socket_connect(peer->socket, MAX_BYTES, in(LONG_US), &code);
    g_assert_nonnull(socket);
    g_assert_cmpint(code, ==, 0);
    return socket;
}

static void say_what_was_given(FakePeer *peer) {
    fake_peer_say(peer, peer->data);
    fake_peer_wait_end(peer);
}

static void say_and_close(FakePeer *peer) {
    fake_peer_say(peer, peer->data);
}

static void say_nothing(FakePeer *peer) {
    fake_peer_wait_end(peer);
}

/* Of one line. */
static void say_it_back(FakePeer *peer) {
    g_autofree char *line = fake_peer_read_line(peer);
    fake_peer_say(peer, line);
    fake_peer_wait_end(peer);
}

static void flood(FakePeer *peer) {
    while (fake_peer_send(peer, peer->data, strlen(peer->data)))
        ;
}

/* Reads nothing before it is told to. */
static void read_late(FakePeer *peer) {
    while (!g_atomic_int_get(&peer->number))
        g_usleep(1000);
    g_autofree char *line = fake_peer_read_line(peer);
    if (line && strlen(line) == MANY_BYTES)
        fake_peer_say(peer, "{}");
    fake_peer_wait_end(peer);
}

static void check_receives(VmsnapJsonSocket *socket, const char *text) {
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) node = vmsnap_json_socket_receive(socket, in(LONG_US), &error);
    g_assert_no_error(error);
    g_autofree char *seen = json_to_string(node, FALSE);
    g_assert_cmpstr(seen, ==, text);
}

static void check_receive_fails(VmsnapJsonSocket *socket, gint64 us, const char *said) {
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_json_socket_receive(socket, in(us), &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, said));
}

static void test_objects_are_received_one_by_one(void) {
    FakePeer peer;
    fake_peer_start(&peer, say_what_was_given, "{\"a\":1}\r\n{\"a\":2} {\"a\"");
    VmsnapJsonSocket *socket = connect_to(&peer);
    check_receives(socket, "{\"a\":1}");
    check_receives(socket, "{\"a\":2}");
    check_receive_fails(socket, SHORT_US, "in time");
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

static void test_what_is_sent_arrives(void) {
    FakePeer peer;
    fake_peer_start(&peer, say_it_back, NULL);
    VmsnapJsonSocket *socket = connect_to(&peer);
    g_assert_true(vmsnap_json_socket_send(socket, "{\"a\":\"ü\"}\n", -1, in(LONG_US), NULL));
    check_receives(socket, "{\"a\":\"ü\"}");
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

static void test_what_came_before_the_end_is_received(void) {
    FakePeer peer;
    fake_peer_start(&peer, say_and_close, "{\"a\":1}\n{\"a\":");
    VmsnapJsonSocket *socket = connect_to(&peer);
    check_receives(socket, "{\"a\":1}");
    check_receive_fails(socket, LONG_US, "closed");
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

static void test_silence_ends_in_time(void) {
    FakePeer peer;
    fake_peer_start(&peer, say_nothing, NULL);
    VmsnapJsonSocket *socket = connect_to(&peer);
    gint64 began_us = g_get_monotonic_time();
    check_receive_fails(socket, SHORT_US, "in time");
    g_assert_cmpint(g_get_monotonic_time() - began_us, >=, SHORT_US);
    check_receive_fails(socket, -SHORT_US, "in time");
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

static void test_a_flood_of_nothing_ends_in_time(void) {
    static const char *const floods[] = {"    \r\n", "\xff\xff\xff\xff", "{\xff{\"a\":\xff"};
    for (size_t i = 0; i < G_N_ELEMENTS(floods); i++) {
        FakePeer peer;
        fake_peer_start(&peer, flood, floods[i]);
        VmsnapJsonSocket *socket = connect_to(&peer);
        check_receive_fails(socket, SHORT_US, "in time");
        vmsnap_json_socket_free(socket);
        fake_peer_clear(&peer);
    }
}

static void test_an_object_without_end_is_too_long(void) {
    FakePeer peer;
    fake_peer_start(&peer, flood, "{\"a\":\"\\");
    VmsnapJsonSocket *socket = connect_to(&peer);
    check_receive_fails(socket, LONG_US, "too");
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

static void test_what_others_left_is_skipped(void) {
    FakePeer peer;
    fake_peer_start(&peer, say_what_was_given, "rest\"}\n{\"a\":1}\xff{\"a\":2}");
    VmsnapJsonSocket *socket = connect_to(&peer);
    vmsnap_json_socket_skip(socket);
    check_receives(socket, "{\"a\":2}");
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

/* More than the socket takes. Returns: (transfer full) */
static char *long_line(void) {
    g_autofree char *filling = g_strnfill(MANY_BYTES, 'x');
    return g_strconcat(filling, "\n", NULL);
}

static void test_who_does_not_read_is_given_up(void) {
    FakePeer peer;
    g_autoptr(GError) error = NULL;
    g_autofree char *text = long_line();
    fake_peer_start(&peer, read_late, NULL);
    VmsnapJsonSocket *socket = connect_to(&peer);
    g_assert_false(vmsnap_json_socket_send(socket, text, -1, in(SHORT_US), &error));
    g_assert_nonnull(strstr(error->message, "in time"));
    vmsnap_json_socket_free(socket);
    g_atomic_int_set(&peer.number, TRUE);
    fake_peer_clear(&peer);
}

static gpointer set_after_a_while(gpointer number) {
    g_usleep(SHORT_US);
    g_atomic_int_set((int *)number, TRUE);
    return NULL;
}

static void test_who_reads_late_gets_all(void) {
    FakePeer peer;
    g_autofree char *text = long_line();
    fake_peer_start(&peer, read_late, NULL);
    VmsnapJsonSocket *socket = connect_to(&peer);
    GThread *thread = g_thread_new("late", set_after_a_while, &peer.number);
    g_assert_true(vmsnap_json_socket_send(socket, text, -1, in(LONG_US), NULL));
    check_receives(socket, "{}");
    (void)g_thread_join(thread);
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

static void test_to_send_to_who_has_gone_is_an_error(void) {
    FakePeer peer;
    g_autoptr(GError) error = NULL;
    fake_peer_start(&peer, say_and_close, "");
    VmsnapJsonSocket *socket = connect_to(&peer);
    check_receive_fails(socket, LONG_US, "closed");
    g_assert_false(vmsnap_json_socket_send(socket, "{}\n", -1, in(LONG_US), &error));
    g_assert_cmpstr(error->message, ==, g_strerror(EPIPE));
    vmsnap_json_socket_free(socket);
    fake_peer_clear(&peer);
}

/* The peer keeps it until it is cleared, so that its thread is joined before. */
static void check_file_was_received(const FakePeer *peer, const struct stat *sent) {
    struct stat received;
    g_assert_cmpint(fstat(peer->received_fd, &received), ==, 0);
    g_assert_cmpuint(received.st_ino, ==, sent->st_ino);
    g_assert_cmpuint(received.st_dev, ==, sent->st_dev);
    g_assert_cmpint(lseek(peer->received_fd, 0, SEEK_CUR), ==, 5);
}

static void check_file_arrives(const char *text) {
    FakePeer peer;
    struct stat sent;
    g_autofree char *name = NULL;
    int fd = g_file_open_tmp(NULL, &name, NULL);
    g_assert_cmpint(lseek(fd, 5, SEEK_SET), ==, 5);
    g_assert_cmpint(fstat(fd, &sent), ==, 0);
    fake_peer_start(&peer, say_nothing, NULL);
    VmsnapJsonSocket *socket = connect_to(&peer);
    g_assert_true(vmsnap_json_socket_send(socket, text, fd, in(LONG_US), NULL));
    (void)close(fd);
    vmsnap_json_socket_free(socket);
    fake_peer_stop(&peer);
    check_file_was_received(&peer, &sent);
    fake_peer_clear(&peer);
    (void)g_unlink(name);
}

static void test_a_file_is_passed_along(void) {
    g_autofree char *text = long_line();
    check_file_arrives("{}\n");
    check_file_arrives(text);
}

static void check_connect_fails(const char *path, int expected) {
    int code = 0;
    g_assert_null(vmsnap_json_socket_connect(path, MAX_BYTES, in(SHORT_US), &code));
    g_assert_cmpint(code, ==, expected);
}

static void test_without_anybody_there_is_no_connection(void) {
    FakePeer peer;
    fake_peer_start(&peer, say_nothing, NULL);
    g_autofree char *file = g_build_filename(peer.directory, "file", NULL);
    g_autofree char *below = g_build_filename(peer.socket, "below", NULL);
    g_assert_true(g_file_set_contents(file, "", 0, NULL));
    check_connect_fails("/nonexistent/socket", ENOENT);
    check_connect_fails(file, ECONNREFUSED);
    check_connect_fails(below, ENOTDIR);
    check_connect_fails("", ECONNREFUSED);
    g_assert_cmpint(g_chmod(peer.socket, 0), ==, 0);
    check_connect_fails(peer.socket, EACCES);
    fake_peer_stop(&peer);
    g_assert_cmpint(g_chmod(peer.socket, 0600), ==, 0);
    check_connect_fails(peer.socket, ECONNREFUSED);
    (void)g_unlink(file);
    fake_peer_clear(&peer);
}

static void test_a_path_has_a_limit(void) {
    static const size_t max_bytes = sizeof((struct sockaddr_un *)NULL)->sun_path - 1;
    g_autofree char *longest = g_strnfill(max_bytes, 'x'), *longer = g_strnfill(max_bytes + 1, 'x');
    check_connect_fails(longest, ENOENT);
    check_connect_fails(longer, ENAMETOOLONG);
}

/* Who listens and serves nobody. Returns: a descriptor */
static int listen_without_room(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(fd, 0), ==, 0);
    return fd;
}

static gpointer accept_after_a_while(gpointer data) {
    g_usleep(SHORT_US);
    return GINT_TO_POINTER(accept4(*(int *)data, NULL, NULL, SOCK_CLOEXEC));
}

static void test_a_full_queue_is_waited_for(void) {
    g_autofree char *directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(directory, "full.sock", NULL);
    int listen_fd = listen_without_room(path), code = 0;
    VmsnapJsonSocket *first = vmsnap_json_socket_connect(path, MAX_BYTES, in(SHORT_US), &code);
    g_assert_nonnull(first);
    check_connect_fails(path, EAGAIN);
    GThread *thread = g_thread_new("accept", accept_after_a_while, &listen_fd);
    VmsnapJsonSocket *second = vmsnap_json_socket_connect(path, MAX_BYTES, in(LONG_US), &code);
    g_assert_nonnull(second);
    (void)close(GPOINTER_TO_INT(g_thread_join(thread)));
    vmsnap_json_socket_free(first);
    vmsnap_json_socket_free(second);
    (void)close(listen_fd);
    remove_tree(directory);
}

static void test_free_takes_null(void) {
    vmsnap_json_socket_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    become_ordinary_user();
    g_test_add_func("/json-socket/objects-are-received-one-by-one", test_objects_are_received_one_by_one);
    g_test_add_func("/json-socket/what-is-sent-arrives", test_what_is_sent_arrives);
    g_test_add_func("/json-socket/what-came-before-the-end-is-received", test_what_came_before_the_end_is_received);
    g_test_add_func("/json-socket/silence-ends-in-time", test_silence_ends_in_time);
    g_test_add_func("/json-socket/a-flood-of-nothing-ends-in-time", test_a_flood_of_nothing_ends_in_time);
    g_test_add_func("/json-socket/an-object-without-end-is-too-long", test_an_object_without_end_is_too_long);
    g_test_add_func("/json-socket/what-others-left-is-skipped", test_what_others_left_is_skipped);
    g_test_add_func("/json-socket/who-does-not-read-is-given-up", test_who_does_not_read_is_given_up);
    g_test_add_func("/json-socket/who-reads-late-gets-all", test_who_reads_late_gets_all);
    g_test_add_func("/json-socket/to-send-to-who-has-gone-is-an-error", test_to_send_to_who_has_gone_is_an_error);
    g_test_add_func("/json-socket/a-file-is-passed-along", test_a_file_is_passed_along);
    g_test_add_func("/json-socket/without-anybody-there-is-no-connection", test_without_anybody_there_is_no_connection);
    g_test_add_func("/json-socket/a-path-has-a-limit", test_a_path_has_a_limit);
    g_test_add_func("/json-socket/a-full-queue-is-waited-for", test_a_full_queue_is_waited_for);
    g_test_add_func("/json-socket/free-takes-null", test_free_takes_null);
    return g_test_run();
}
