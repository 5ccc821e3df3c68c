/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Servers of others, which a URI names: what they list, how they are reached, and when they are lost. */
#include "backend/nbd_list.h"
#include "backend/nbd_uri.h"
#include "nbd_support.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PATTERN_BYTES 10000003
#define PATTERN "pattern 10000003"
/* It takes milliseconds; but machines are busy, and the timeout is 20 s. */
#define SOON_US ((gint64)5 * G_USEC_PER_SEC)
#define KEY "alice:0123456789abcdef0123456789abcdef\n"

/* How a server can be reached. */
typedef enum {
    BY_SOCKET,
    BY_TCP,
    BY_TLS,
    BY_TLS_TCP,
    N_WAYS,
} Way;

static gboolean is_tcp(Way way) {
    return way == BY_TCP || way == BY_TLS_TCP;
}

static char *server_uri(const Server *server, Way way) {
    g_autofree char *keys = server_path(server, "keys");
    switch (way) {
    case BY_SOCKET:
        return g_strdup_printf("nbd+unix:///?socket=%s", server->socket);
    case BY_TCP:
        return g_strdup_printf("nbd://127.0.0.1:%u", server->port);
    case BY_TLS:
        return g_strdup_printf("nbds+unix://alice@/?socket=%s&tls-psk-file=%s", server->socket, keys);
    default:
        return g_strdup_printf("nbds://alice@127.0.0.1:%u/?tls-psk-file=%s", server->port, keys);
    }
}

static void server_run_way(Server *server, Way way, const char *words) {
    g_autofree char *keys = server_path(server, "keys");
    g_autofree char *tls = g_strdup_printf("--tls=require --tls-psk=%s %s", keys, words);
    gboolean is_tls = way == BY_TLS || way == BY_TLS_TCP;
    g_assert_true(g_file_set_contents(keys, KEY, -1, NULL));
    if (is_tcp(way))
        server_run_tcp(server, is_tls ? tls : words);
    else
        server_run(server, is_tls ? tls : words);
}

/* Returns: (transfer full): "a,b", or what the error says. */
static char *list(const char *uri, unsigned timeout_ms) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapNbdServer) server = vmsnap_nbd_server_new_uri(uri, &error);
    g_assert_no_error(error);
    g_autoptr(GPtrArray) names = vmsnap_nbd_list(server, timeout_ms, &error);
    g_assert_true((names != NULL) != (error != NULL));
    if (error) {
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
        g_assert_null(strchr(error->message, '\n'));
        g_assert_nonnull(strstr(error->message, uri));
        return g_strdup(error->message);
    }
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < names->len; i++)
        g_string_append_printf(text, "%s[%s]", i > 0 ? "," : "", (const char *)g_ptr_array_index(names, i));
    return g_string_free(text, FALSE);
}

static void check_list(const Server *server, Way way, const char *expected) {
    g_autofree char *uri = server_uri(server, way);
    g_autofree char *listed = list(uri, CONNECT_TIMEOUT_MS);
    g_assert_cmpstr(listed, ==, expected);
}

static void check_list_fails(const char *uri, unsigned timeout_ms, const char *said) {
    g_autofree char *listed = list(uri, timeout_ms);
    if (!strstr(listed, said))
        g_error("'%s' does not say '%s'", listed, said);
}

/* Starts a server that lists what the shell prints. */
static void listing_server_start(Server *server, const char *commands) {
    server_init(server);
    g_autofree char *script = server_path(server, "plugin");
    g_autofree char *content = g_strdup_printf("case $1 in\n"
                                               "list_exports) %s;;\n"
                                               "get_size) echo 4096;;\n"
                                               "pread) head -c $3 /dev/zero;;\n"
                                               "*) exit 2;;\n"
                                               "esac\n",
                                               commands);
    g_autofree char *words = g_strdup_printf("sh %s", script);
    g_assert_true(g_file_set_contents(script, content, -1, NULL));
    g_assert_cmpint(g_chmod(script, 0755), ==, 0);
    server_run(server, words);
}

static void test_exports_are_listed(void) {
    static const struct {
        const char *commands;
        const char *expected;
    } cases[] = {
        {"echo NAMES; echo b; echo a", "[b],[a]"},
        {"echo INTERLEAVED; echo a; echo 'one of them'; echo; echo 'without a name'", "[a],[]"},
        {"echo NAMES; echo a; echo b; echo a", "[a],[b]"},
        {"echo NAMES; printf '../x y\\n.\\n'", "[../x y],[.]"},
        {":", ""},
        {"echo NAMES", ""},
        {"exit 1", ""},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Server server;
        listing_server_start(&server, cases[i].commands);
        g_test_message("%s", cases[i].commands);
        check_list(&server, BY_SOCKET, cases[i].expected);
        server_clear(&server);
    }
}

static void test_lists_come_by_every_way(void) {
    for (Way way = 0; way < N_WAYS; way++) {
        Server server;
        server_init(&server);
        server_run_way(&server, way, "memory 1M");
        check_list(&server, way, "[]");
        server_clear(&server);
    }
}

static void test_who_does_not_list_has_no_names(void) {
    static const char *const words[] = {"--oldstyle memory 1M", "--tls=require --tls-psk=/dev/null memory 1M"};
    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        Server server;
        server_start(&server, words[i]);
        check_list(&server, BY_SOCKET, "");
        server_clear(&server);
    }
}

static void test_an_endless_list_is_refused(void) {
    Server server;
    listing_server_start(&server, "echo NAMES; seq 5000");
    g_autofree char *uri = server_uri(&server, BY_SOCKET);
    check_list_fails(uri, CONNECT_TIMEOUT_MS, "more than 4096 exports");
    server_clear(&server);
}

static void test_a_list_that_does_not_come_is_given_up(void) {
    Server server;
    listing_server_start(&server, "sleep 10");
    g_autofree char *uri = server_uri(&server, BY_SOCKET);
    gint64 start_us = g_get_monotonic_time();
    check_list_fails(uri, 1000, "no answer when asked for its exports");
    g_assert_cmpint(g_get_monotonic_time() - start_us, >=, 990 * 1000);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, SOON_US);
    server_clear(&server);
}

/* The kernel lets us in, and there is nobody. */
static void test_a_server_that_says_nothing_is_given_up(void) {
    Server server;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    server_init(&server);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)g_strlcpy(address.sun_path, server.socket, sizeof address.sun_path);
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(fd, 8), ==, 0);
    g_autofree char *uri = server_uri(&server, BY_SOCKET);
    check_list_fails(uri, 300, "no answer");
    (void)close(fd);
    server_clear(&server);
}

static void test_errors_name_the_uri_and_the_remedy(void) {
    Server server;
    server_start(&server, "memory 1M");
    g_autofree char *tls = server_uri(&server, BY_TLS);
    g_autofree char *file = server_path(&server, "keys");
    check_list_fails("nbd://127.0.0.1:1", CONNECT_TIMEOUT_MS, "Connection refused; see whether the server runs");
    check_list_fails("nbd+unix:///", CONNECT_TIMEOUT_MS, "socket");
    check_list_fails("nbd://host.invalid", CONNECT_TIMEOUT_MS, "host.invalid");
    g_assert_true(g_file_set_contents(file, KEY, -1, NULL));
    check_list_fails(tls, CONNECT_TIMEOUT_MS, "speaks TLS (nbds) or not (nbd)");
    server_clear(&server);
}

static void check_no_server(const char *uri, const char *said) {
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_nbd_server_new_uri(uri, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, uri));
    g_assert_nonnull(strstr(error->message, said));
}

static void test_a_socket_must_be_one(void) {
    check_no_server("nbd+unix:///?socket=/nowhere/nbd.sock", "No such file");
    check_no_server("nbd+unix:///?socket=/dev/null", "non-socket");
    check_no_server("nbds+unix:///x?socket=/", "non-socket");
}

static void test_reads_come_by_every_way(void) {
    for (Way way = 0; way < N_WAYS; way++) {
        Server server;
        Client client;
        server_init(&server);
        server_run_way(&server, way, PATTERN);
        g_autofree char *uri = server_uri(&server, way);
        client_open_within(&client, uri, 2, CONNECT_TIMEOUT_MS);
        g_assert_true(vmsnap_io_threads_start(client.threads, NULL));
        check_random_pattern_reads(&client, PATTERN_BYTES, 50);
        g_assert_false(client_is_broken(&client));
        client_clear(&client);
        server_clear(&server);
    }
}

/* Also where its name needs to be escaped, and the URI has another one. */
static void test_an_export_is_opened_by_its_name(void) {
    static const char *const names[] = {"a", "b c", "x&y=z?#%41", "f\xc3\xbcr", "\xff"};
    Server server;
    server_init(&server);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = server_path(&server, names[i]);
        g_assert_true(g_file_set_contents(path, "0123456789", (gssize)i, NULL));
    }
    g_autofree char *words = g_strdup_printf("file dir=%s", server.directory);
    server_run(&server, words);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        Client client;
        g_autofree char *base = server_uri(&server, BY_SOCKET);
        g_autofree char *uri = vmsnap_nbd_uri_build(base, names[i], NULL);
        client_open_within(&client, uri, 2, CONNECT_TIMEOUT_MS);
        g_assert_cmpuint(vmsnap_nbd_pool_get_size(client.pool), ==, i);
        client_clear(&client);
    }
    server_clear(&server);
}

static void test_the_mode_of_a_foreign_socket_stays(void) {
    Server server;
    Client client;
    struct stat status;
    server_start(&server, PATTERN);
    g_autofree char *uri = server_uri(&server, BY_SOCKET);
    g_assert_cmpint(g_chmod(server.socket, 0700), ==, 0);
    client_open_within(&client, uri, 1, CONNECT_TIMEOUT_MS);
    client_clear(&client);
    g_assert_cmpint(stat(server.socket, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 0777, ==, 0700);
    server_clear(&server);
}

static gboolean is_connection_to(int fd, const Server *server, Way way) {
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    if (getpeername(fd, (struct sockaddr *)&address, &length) != 0)
        return FALSE;
    if (is_tcp(way))
        return address.ss_family == AF_INET && ntohs(((struct sockaddr_in *)&address)->sin_port) == server->port;
    return address.ss_family == AF_UNIX && g_str_equal(((struct sockaddr_un *)&address)->sun_path, server->socket);
}

/* From this side, as somebody between the two would do it. */
static int connections_cut(const Server *server, Way way) {
    int count = 0;
    for (int fd = 3; fd < 256; fd++)
        if (is_connection_to(fd, server, way) && shutdown(fd, SHUT_RDWR) == 0)
            count++;
    return count;
}

static void test_a_connection_that_is_cut_is_made_anew(void) {
    for (Way way = 0; way < N_WAYS; way++) {
        Server server;
        Client client;
        server_init(&server);
        server_run_way(&server, way, PATTERN);
        g_autofree char *uri = server_uri(&server, way);
        client_open_within(&client, uri, 2, CONNECT_TIMEOUT_MS);
        g_assert_true(vmsnap_io_threads_start(client.threads, NULL));
        for (int i = 0; i < 5; i++) {
            check_random_pattern_reads(&client, PATTERN_BYTES, 5);
            g_assert_cmpint(connections_cut(&server, way), >, 0);
        }
        check_random_pattern_reads(&client, PATTERN_BYTES, 5);
        g_assert_false(client_is_broken(&client));
        client_clear(&client);
        server_clear(&server);
    }
}

/* @again: another one is there at once, that has the same size */
static void check_death_is_noticed(Way way, gboolean again) {
    Server server;
    Client client;
    server_init(&server);
    server_run_way(&server, way, PATTERN);
    g_autofree char *uri = server_uri(&server, way);
    client_open_within(&client, uri, 2, CONNECT_TIMEOUT_MS);
    g_assert_true(vmsnap_io_threads_start(client.threads, NULL));
    check_random_pattern_reads(&client, PATTERN_BYTES, 5);
    gint64 start_us = g_get_monotonic_time();
    if (again) {
        g_autofree char *pid_file = server_path(&server, "pid");
        GPid first = server.pid;
        (void)g_unlink(pid_file);
        (void)g_unlink(server.socket);
        server_run_way(&server, way, PATTERN);
        GPid second = server.pid;
        server.pid = first;
        server_kill(&server);
        server.pid = second;
    } else {
        server_kill(&server);
    }
    client_wait_broken(&client, "the server closed the NBD connection (");
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, SOON_US);
    g_assert_cmpint(read_error(&client, 0, 4096), ==, -EIO);
    client_clear(&client);
    server_clear(&server);
}

static void test_the_death_of_a_server_is_noticed(void) {
    for (Way way = 0; way < N_WAYS; way++)
        check_death_is_noticed(way, FALSE);
}

/* At the same path, but another socket: what it serves may be of another instant. */
static void test_another_server_is_not_taken_for_the_first(void) {
    check_death_is_noticed(BY_SOCKET, TRUE);
    check_death_is_noticed(BY_TLS, TRUE);
}

static void test_a_server_that_falls_silent_is_given_up(void) {
    Server server;
    Client client;
    server_init(&server);
    server_run_way(&server, BY_TCP, "--filter=delay " PATTERN " rdelay=10");
    g_autofree char *uri = server_uri(&server, BY_TCP);
    client_open_within(&client, uri, 1, 1000);
    g_assert_true(vmsnap_io_threads_start(client.threads, NULL));
    gint64 start_us = g_get_monotonic_time();
    g_assert_cmpint(read_error(&client, 0, 4096), ==, -EIO);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, SOON_US);
    client_wait_broken(&client, "the server has not answered for 1 s");
    client_clear(&client);
    server_clear(&server);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-servers/exports-are-listed", test_exports_are_listed);
    g_test_add_func("/nbd-servers/lists-come-by-every-way", test_lists_come_by_every_way);
    g_test_add_func("/nbd-servers/who-does-not-list-has-no-names", test_who_does_not_list_has_no_names);
    g_test_add_func("/nbd-servers/an-endless-list-is-refused", test_an_endless_list_is_refused);
    g_test_add_func("/nbd-servers/a-list-that-does-not-come-is-given-up", test_a_list_that_does_not_come_is_given_up);
    g_test_add_func("/nbd-servers/one-that-says-nothing-is-given-up", test_a_server_that_says_nothing_is_given_up);
    g_test_add_func("/nbd-servers/errors-name-the-uri-and-the-remedy", test_errors_name_the_uri_and_the_remedy);
    g_test_add_func("/nbd-servers/a-socket-must-be-one", test_a_socket_must_be_one);
    g_test_add_func("/nbd-servers/reads-come-by-every-way", test_reads_come_by_every_way);
    g_test_add_func("/nbd-servers/an-export-is-opened-by-its-name", test_an_export_is_opened_by_its_name);
    g_test_add_func("/nbd-servers/the-mode-of-a-foreign-socket-stays", test_the_mode_of_a_foreign_socket_stays);
    g_test_add_func("/nbd-servers/a-connection-that-is-cut-is-made-anew", test_a_connection_that_is_cut_is_made_anew);
    g_test_add_func("/nbd-servers/the-death-of-one-is-noticed", test_the_death_of_a_server_is_noticed);
    g_test_add_func("/nbd-servers/another-one-is-not-taken-for-the-first",
                    test_another_server_is_not_taken_for_the_first);
    g_test_add_func("/nbd-servers/one-that-falls-silent-is-given-up", test_a_server_that_falls_silent_is_given_up);
    return g_test_run();
}
