/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_support.h"

#include "backend/nbd_uri.h"
#include "extents.h"

#include <glib/gstdio.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

char *server_path(const Server *server, const char *name) {
    return g_build_filename(server->directory, name, NULL);
}

void server_init(Server *server) {
    server->pid = 0;
    server->directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    server->socket = server_path(server, "nbd.sock");
}

gboolean server_has_ended(const Server *server) {
    return waitpid(server->pid, NULL, WNOHANG) == server->pid;
}

/* Waits until the server has said in a file that it listens. */
static void server_spawn(Server *server, char **arguments, GSpawnChildSetupFunc setup) {
    g_autofree char *pid_file = server_path(server, "pid");
    g_autoptr(GError) error = NULL;
    GSpawnFlags flags = G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD;
    if (!g_test_verbose())
        flags |= G_SPAWN_STDERR_TO_DEV_NULL;
    (void)g_spawn_async(NULL, arguments, NULL, flags, setup, NULL, &server->pid, &error);
    g_assert_no_error(error);
    gint64 deadline_us = g_get_monotonic_time() + START_TIMEOUT_S * G_USEC_PER_SEC;
    while (!g_file_test(pid_file, G_FILE_TEST_EXISTS)) {
        if (server_has_ended(server) || g_get_monotonic_time() > deadline_us) {
            g_autofree char *words = g_strjoinv(" ", arguments);
            g_error("failed to start %s", words);
        }
        g_usleep(1000);
    }
}

/* @option, @value: of nbdkit's, where to listen */
static void server_run_at(Server *server, const char *option, const char *value, const char *words) {
    g_autofree char *pid_file = server_path(server, "pid");
    g_auto(GStrv) more = g_strsplit(words, " ", -1);
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
    g_strv_builder_add_many(builder, "nbdkit", "--foreground", "--exit-with-parent",
                            g_test_verbose() ? "--log=stderr" : "--log=null", option, value, "--pidfile", pid_file,
                            NULL);
    g_strv_builder_addv(builder, (const char **)more);
    g_auto(GStrv) arguments = g_strv_builder_end(builder);
    server_spawn(server, arguments, NULL);
}

void server_run(Server *server, const char *words) {
    server_run_at(server, "--unix", server->socket, words);
}

/* The kernel finds a free port; that it is taken before nbdkit takes it is not to be expected. */
void server_run_tcp(Server *server, const char *words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&address, &length), ==, 0);
    (void)close(fd);
    server->port = ntohs(address.sin_port);
    g_autofree char *port = g_strdup_printf("%u", server->port);
    g_autofree char *more_words = g_strconcat("--ipaddr 127.0.0.1 ", words, NULL);
    server_run_at(server, "--port", port, more_words);
}

/* Which qemu-nbd does not do by itself. */
static void exit_with_parent(gpointer user_data) {
    (void)user_data;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
}

void server_run_qemu(Server *server, const char *image, const char *bitmap) {
    g_autofree char *pid_option = g_strdup_printf("--pid-file=%s/pid", server->directory);
    g_autofree char *socket_option = g_strdup_printf("--socket=%s", server->socket);
    g_autofree char *bitmap_option = bitmap ? g_strdup_printf("--bitmap=%s", bitmap) : NULL;
    g_autofree char *path = server_path(server, image);
    const char *arguments[] = {"qemu-nbd", "--read-only", "--persistent", "--shared=0",  "--format=qcow2",
                               pid_option, socket_option, path,           bitmap_option, NULL};
    server_spawn(server, (char **)arguments, exit_with_parent);
}

void server_call(const Server *server, const char *words) {
    g_auto(GStrv) arguments = g_strsplit(words, " ", -1);
    g_autoptr(GError) error = NULL;
    int status;
    for (char **word = arguments; *word; word++)
        (void)g_strdelimit(*word, "\t", ' ');
    (void)g_spawn_sync(server->directory, arguments, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL,
                       NULL, NULL, &status, &error);
    g_assert_no_error(error);
    (void)g_spawn_check_wait_status(status, &error);
    g_assert_no_error(error);
}

void server_start(Server *server, const char *words) {
    server_init(server);
    server_run(server, words);
}

void server_kill(Server *server) {
    if (!server->pid)
        return;
    (void)kill(server->pid, SIGKILL);
    (void)waitpid(server->pid, NULL, 0);
    server->pid = 0;
}

void server_clear(Server *server) {
    server_kill(server);
    g_autoptr(GDir) directory = g_dir_open(server->directory, 0, NULL);
    const char *name;
    while ((name = g_dir_read_name(directory))) {
        g_autofree char *path = server_path(server, name);
        (void)g_unlink(path);
    }
    g_assert_cmpint(g_rmdir(server->directory), ==, 0);
    g_free(server->directory);
    g_free(server->socket);
}

/* @where: the path of a socket of ours, or a URI */
static void client_connect(Client *client, const char *where, const char *bitmap, guint max_connections,
                           unsigned timeout_ms) {
    g_autoptr(GError) error = NULL;
    gboolean is_uri = vmsnap_nbd_uri_matches(where);
    g_autofree char *named = is_uri ? vmsnap_nbd_uri_get_export(where) : NULL;
    const char *export_name = named ? named : "";
    client->snapshot = (VmsnapSnapshot){0};
    vmsnap_snapshot_init(&client->snapshot, NULL);
    client->threads = vmsnap_io_threads_new(2);
    client->server = NULL;
    gint64 deadline_us = g_get_monotonic_time() + START_TIMEOUT_S * G_USEC_PER_SEC;
    do {
        g_clear_error(&error);
        vmsnap_nbd_server_free(client->server);
        client->server =
            is_uri ? vmsnap_nbd_server_new_uri(where, &error) : vmsnap_nbd_server_new_private(where, &error);
        client->pool = client->server
                           ? vmsnap_nbd_pool_new(client->threads, &client->snapshot, client->server, export_name,

                                                 bitmap, max_connections, timeout_ms, &error)
                           : NULL;
    } while (!client->pool && g_get_monotonic_time() < deadline_us);
    g_assert_no_error(error);
    g_assert_nonnull(client->pool);
}

void client_open_within(Client *client, const char *where, guint max_connections, unsigned timeout_ms) {
    client_connect(client, where, NULL, max_connections, timeout_ms);
}

void client_open_bitmap(Client *client, const char *socket, const char *bitmap, guint max_connections) {
    client_connect(client, socket, bitmap, max_connections, CONNECT_TIMEOUT_MS);
    g_assert_true(vmsnap_io_threads_start(client->threads, NULL));
}

void client_open(Client *client, const Server *server, guint max_connections) {
    client_open_within(client, server->socket, max_connections, CONNECT_TIMEOUT_MS);
    g_assert_true(vmsnap_io_threads_start(client->threads, NULL));
}

void client_stop(Client *client) {
    vmsnap_io_threads_stop(client->threads);
    vmsnap_nbd_pool_close(client->pool);
}

void client_clear(Client *client) {
    client_stop(client);
    vmsnap_nbd_pool_free(client->pool);
    vmsnap_nbd_server_free(client->server);
    vmsnap_io_threads_free(client->threads);
    vmsnap_snapshot_clear(&client->snapshot);
}

gboolean client_is_broken(const Client *client) {
    return vmsnap_snapshot_is_broken(&client->snapshot);
}

void client_wait_broken(Client *client, const char *said) {
    gint64 deadline_us = g_get_monotonic_time() + LATCH_TIMEOUT_S * G_USEC_PER_SEC;
    while (!client_is_broken(client)) {
        if (g_get_monotonic_time() > deadline_us)
            g_error("the snapshot did not break within %d s", LATCH_TIMEOUT_S);
        g_usleep(1000);
    }
    g_autofree char *reason = vmsnap_snapshot_dup_break_reason(&client->snapshot);
    g_test_message("%s", reason);
    g_assert_nonnull(strstr(reason, said));
}

static void call_done(Call *call, int error) {
    call->error = error;
    call->was_broken = client_is_broken(call->client);
    latch_count(&call->called);
}

static void read_done(int error, gpointer user_data) {
    call_done(user_data, error);
}

static void extents_done(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data) {
    Call *call = user_data;
    g_assert_true((error == 0) == (n_extents > 0));
    if (n_extents > 0)
        g_array_append_vals(call->extents, extents, (guint)n_extents);
    call_done(call, error);
}

static void call_init(Call *call, Client *client, uint64_t offset, size_t length) {
    *call = (Call){.client = client, .length = length, .offset = offset};
    latch_init(&call->called);
}

void call_read(Call *call, Client *client, uint64_t offset, size_t length) {
    call_init(call, client, offset, length);
    call->buffer = g_malloc(length);
    vmsnap_nbd_pool_read(client->pool, call->buffer, length, offset, read_done, call);
}

static void call_ask(Call *call, Client *client, VmsnapExtentsQuestion question, uint64_t offset, size_t length) {
    call_init(call, client, offset, length);
    call->extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    vmsnap_nbd_pool_extents(client->pool, question, offset, length, extents_done, call);
}

void call_extents(Call *call, Client *client, uint64_t offset, size_t length) {
    call_ask(call, client, VMSNAP_EXTENTS_OF_CONTENT, offset, length);
}

void call_changes(Call *call, Client *client, uint64_t offset, size_t length) {
    call_ask(call, client, VMSNAP_EXTENTS_OF_CHANGES, offset, length);
}

void call_clear(Call *call) {
    g_assert_cmpuint(latch_get(&call->called), ==, 1);
    latch_clear(&call->called);
    g_free(call->buffer);
    g_clear_pointer(&call->extents, g_array_unref);
}

/* The pattern plugin's bytes: each eight of them are their own offset, big-endian. */
static void pattern_expand(uint8_t *buffer, size_t length, uint64_t offset) {
    for (size_t i = 0; i < length; i++) {
        uint64_t position = offset + i;
        buffer[i] = (uint8_t)((position & ~UINT64_C(7)) >> (8 * (7 - position % 8)));
    }
}

void call_check_pattern(const Call *call) {
    g_autofree uint8_t *expected = g_malloc(call->length);
    pattern_expand(expected, call->length, call->offset);
    g_assert_cmpint(call->error, ==, 0);
    g_assert_cmpmem(call->buffer, call->length, expected, call->length);
}

void check_pattern_read(Client *client, uint64_t offset, size_t length) {
    Call call;
    call_read(&call, client, offset, length);
    latch_wait(&call.called, 1);
    call_check_pattern(&call);
    call_clear(&call);
}

int read_error(Client *client, uint64_t offset, size_t length) {
    Call call;
    call_read(&call, client, offset, length);
    latch_wait(&call.called, 1);
    int error = call.error;
    call_clear(&call);
    return error;
}

void check_random_pattern_reads(Client *client, uint64_t size, int n_reads) {
    for (int i = 0; i < n_reads; i++) {
        uint64_t offset = random_below(size);
        uint64_t longest = MIN(size - offset, i % 10 ? 20000 : MAX_READ_BYTES);
        check_pattern_read(client, offset, 1 + random_below(longest));
    }
    check_pattern_read(client, 0, 1);
    check_pattern_read(client, size - 1, 1);
    check_pattern_read(client, 0, MIN(size, MAX_READ_BYTES));
}
