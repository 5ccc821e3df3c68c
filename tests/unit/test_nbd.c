/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pool of connections against a real server, nbdkit, that delays, fails, limits and dies as it is told. */
#include "extents.h"
#include "nbd_support.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void test_the_size_is_the_servers(void) {
    static const uint64_t sizes[] = {0, 1, 511, 512, 1000003, UINT64_C(16) << 40};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        Server server;
        Client client;
        g_autofree char *words = g_strdup_printf("memory %" G_GUINT64_FORMAT, sizes[i]);
        server_start(&server, words);
        client_open(&client, &server, 2);
        g_assert_cmpuint(vmsnap_nbd_pool_get_size(client.pool), ==, sizes[i]);
        client_clear(&client);
        server_clear(&server);
    }
}

static void test_any_range_equals_the_disk(void) {
    static const uint64_t sizes[] = {1, 513, 10000003};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        for (guint max_connections = 1; max_connections <= 3; max_connections += 2) {
            Server server;
            Client client;
            g_autofree char *words = g_strdup_printf("pattern %" G_GUINT64_FORMAT, sizes[i]);
            server_start(&server, words);
            client_open(&client, &server, max_connections);
            check_random_pattern_reads(&client, sizes[i], 100);
            g_assert_false(client_is_broken(&client));
            client_clear(&client);
            server_clear(&server);
        }
    }
}

static void test_servers_that_want_blocks_get_them(void) {
    static const unsigned block_sizes[] = {512, 4096, 65536};
    for (size_t i = 0; i < G_N_ELEMENTS(block_sizes); i++) {
        Server server;
        Client client;
        uint64_t size = 100 * block_sizes[i];
        g_autofree char *words = g_strdup_printf("--filter=blocksize-policy pattern %" G_GUINT64_FORMAT
                                                 " blocksize-error-policy=error blocksize-minimum=%u "
                                                 "blocksize-preferred=65536",
                                                 size, block_sizes[i]);
        server_start(&server, words);
        client_open(&client, &server, 2);
        check_random_pattern_reads(&client, size, 100);
        client_clear(&client);
        server_clear(&server);
    }
}

/* The last block of such a disk can be asked for by its own length alone. */
static void test_the_end_of_an_odd_disk_that_wants_blocks_is_read(void) {
    Server server;
    Client client;
    uint64_t size = 10 * 4096 + 512;
    server_start(&server, "--filter=blocksize-policy pattern 41472 blocksize-error-policy=error blocksize-minimum=512 "
                          "blocksize-preferred=4096");
    client_open(&client, &server, 1);
    g_assert_cmpuint(vmsnap_nbd_pool_get_size(client.pool), ==, size);
    check_random_pattern_reads(&client, size, 20);
    client_clear(&client);
    server_clear(&server);
}

/* Asks until the whole range is known. Returns: (transfer full): what was answered, each answer checked for its length.
 */
static GArray *collect_extents(Client *client, uint64_t offset, uint64_t length) {
    GArray *all = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    while (length > 0) {
        Call call;
        uint64_t answered = 0;
        call_extents(&call, client, offset, length);
        latch_wait(&call.called, 1);
        g_assert_cmpint(call.error, ==, 0);
        for (guint i = 0; i < call.extents->len; i++) {
            const VmsnapExtent *extent = &g_array_index(call.extents, VmsnapExtent, i);
            answered += extent->length_bytes;
            extents_append(all, extent->kind, extent->length_bytes);
        }
        g_assert_cmpuint(answered, >, 0);
        g_assert_cmpuint(answered, <=, length);
        offset += answered;
        length -= answered;
        call_clear(&call);
    }
    return all;
}

static uint64_t zero_bytes_of(Client *client, uint64_t offset, uint64_t length) {
    g_autoptr(GArray) extents = collect_extents(client, offset, length);
    return extents_count_zero(extents, 0, length);
}

/* A file of 64 KiB of data at 1 MiB and at 3 MiB, all else a hole. */
static void test_extents_tell_data_from_zero(void) {
    Server server;
    Client client;
    uint64_t size = (10 << 20) + 101;
    server_init(&server);
    g_autofree char *data_file = server_path(&server, "disk");
    g_autofree char *words = g_strdup_printf("file %s", data_file);
    g_autofree char *block = g_strnfill(64 << 10, 'U');
    FILE *file = g_fopen(data_file, "w");
    for (long offset = 1 << 20; offset <= 3 << 20; offset += 2 << 20) {
        g_assert_cmpint(fseek(file, offset, SEEK_SET), ==, 0);
        g_assert_cmpuint(fwrite(block, 64 << 10, 1, file), ==, 1);
    }
    g_assert_cmpint(fclose(file), ==, 0);
    g_assert_cmpint(truncate(data_file, (off_t)size), ==, 0);
    server_run(&server, words);
    client_open(&client, &server, 2);
    g_assert_cmpuint(zero_bytes_of(&client, 0, size), ==, size - (128 << 10));
    g_assert_cmpuint(zero_bytes_of(&client, 1 << 20, 64 << 10), ==, 0);
    g_assert_cmpuint(zero_bytes_of(&client, (1 << 20) - 4096, 8192), ==, 4096);
    g_assert_cmpuint(zero_bytes_of(&client, 1, 100), ==, 100);
    g_assert_cmpuint(zero_bytes_of(&client, size - 1, 1), ==, 1);
    client_clear(&client);
    server_clear(&server);
}

static void test_extents_and_reads_agree(void) {
    Server server;
    Client client;
    uint64_t size = (20 << 20) + 12345;
    server_start(&server, "sparse-random 20983865 percent=30 runlength=40000");
    client_open(&client, &server, 2);
    g_assert_cmpuint(vmsnap_nbd_pool_get_size(client.pool), ==, size);
    g_autoptr(GArray) extents = collect_extents(&client, 0, size);
    uint64_t zero_bytes = extents_count_zero(extents, 0, size);
    g_assert_cmpuint(zero_bytes, >, 0);
    g_assert_cmpuint(zero_bytes, <, size);
    for (int i = 0; i < 200; i++) {
        uint64_t offset = extents_random_offset(extents, size), run;
        if (extents_find(extents, offset, &run) != VMSNAP_EXTENT_ZERO)
            continue;
        Call call;
        call_read(&call, &client, offset, MIN(run, MAX_READ_BYTES));
        latch_wait(&call.called, 1);
        g_assert_cmpint(call.error, ==, 0);
        for (size_t n = 0; n < call.length; n++)
            g_assert_cmpuint(call.buffer[n], ==, 0);
        call_clear(&call);
    }
    client_clear(&client);
    server_clear(&server);
}

/* NBD says apart whether bytes are stored and whether they are zeroes; only the second is content. */
static void test_a_hole_of_unknown_content_is_data(void) {
    Server server;
    Client client;
    server_init(&server);
    g_autofree char *script = server_path(&server, "plugin");
    g_autofree char *words = g_strdup_printf("sh %s", script);
    static const char content[] = "#!/bin/sh\n"
                                  "case $1 in\n"
                                  "get_size) echo 16384;;\n"
                                  "can_extents) exit 0;;\n"
                                  "extents) echo 0 4096 hole; echo 4096 4096 zero; echo 8192 4096 hole,zero;\n"
                                  "  echo 12288 4096 0;;\n"
                                  "pread) head -c $3 /dev/zero;;\n"
                                  "*) exit 2;;\n"
                                  "esac\n";
    g_assert_true(g_file_set_contents_full(script, content, -1, G_FILE_SET_CONTENTS_NONE, 0700, NULL));
    server_run(&server, words);
    client_open(&client, &server, 1);
    g_assert_cmpuint(zero_bytes_of(&client, 0, 4096), ==, 0);
    g_assert_cmpuint(zero_bytes_of(&client, 4096, 8192), ==, 8192);
    g_assert_cmpuint(zero_bytes_of(&client, 12288, 4096), ==, 0);
    client_clear(&client);
    server_clear(&server);
}

static void test_a_whole_window_is_one_question(void) {
    Server server;
    Client client;
    server_start(&server, "memory 16T");
    client_open(&client, &server, 2);
    g_assert_cmpuint(zero_bytes_of(&client, UINT64_C(10) << 40, UINT64_C(1) << 31), ==, UINT64_C(1) << 31);
    client_clear(&client);
    server_clear(&server);
}

static void test_servers_without_extents_have_only_data(void) {
    static const char *const servers[] = {"--filter=noextents memory 100M", "--no-sr memory 100M",
                                          "--filter=noextents pattern 100M"};
    for (size_t i = 0; i < G_N_ELEMENTS(servers); i++) {
        Server server;
        Client client;
        server_start(&server, servers[i]);
        client_open(&client, &server, 2);
        g_assert_cmpuint(zero_bytes_of(&client, 0, 100 << 20), ==, 0);
        g_assert_cmpuint(zero_bytes_of(&client, 12345, 1), ==, 0);
        client_clear(&client);
        server_clear(&server);
    }
}

static void test_extents_of_any_range_of_a_server_that_wants_blocks(void) {
    Server server;
    Client client;
    server_start(&server, "--filter=blocksize-policy memory 1M blocksize-error-policy=error blocksize-minimum=4096 "
                          "blocksize-preferred=4096");
    client_open(&client, &server, 1);
    g_assert_cmpuint(zero_bytes_of(&client, 0, 1 << 20), ==, 1 << 20);
    g_assert_cmpuint(zero_bytes_of(&client, 1, 4096), ==, 4096);
    g_assert_cmpuint(zero_bytes_of(&client, 4095, 2), ==, 2);
    g_assert_cmpuint(zero_bytes_of(&client, (1 << 20) - 1, 1), ==, 1);
    client_clear(&client);
    server_clear(&server);
}

static void test_an_error_of_the_server_is_eio_and_no_loss(void) {
    static const char *const codes[] = {"EIO", "ENOSPC", "EPERM", "ESHUTDOWN"};
    for (size_t i = 0; i < G_N_ELEMENTS(codes); i++) {
        Server server;
        Client client;
        server_init(&server);
        g_autofree char *trigger = server_path(&server, "trigger");
        g_autofree char *words = g_strdup_printf(
            "--filter=error pattern 1000003 error=%s error-rate=100%% error-file=%s", codes[i], trigger);
        server_run(&server, words);
        client_open(&client, &server, 2);
        check_random_pattern_reads(&client, 1000003, 5);
        g_assert_true(g_file_set_contents(trigger, "", 0, NULL));
        for (int n = 0; n < 5; n++)
            g_assert_cmpint(read_error(&client, random_below(900000), 4096), ==, -EIO);
        g_assert_cmpint(g_unlink(trigger), ==, 0);
        check_random_pattern_reads(&client, 1000003, 5);
        g_assert_false(client_is_broken(&client));
        client_clear(&client);
        server_clear(&server);
    }
}

static void test_a_question_that_fails_is_eio_and_no_loss(void) {
    Server server;
    Client client;
    Call question;
    server_start(&server, "--filter=error memory 1000003 error-extents=EIO error-extents-rate=100%");
    client_open(&client, &server, 2);
    call_extents(&question, &client, 0, 1000003);
    latch_wait(&question.called, 1);
    g_assert_cmpint(question.error, ==, -EIO);
    call_clear(&question);
    g_assert_cmpint(read_error(&client, 0, 1000003), ==, 0);
    g_assert_false(client_is_broken(&client));
    client_clear(&client);
    server_clear(&server);
}

#define N_IN_FLIGHT 40

/* Most are reads, large and small; every eighth is a question. */
static void calls_start(Call *calls, Client *client) {
    for (unsigned i = 0; i < N_IN_FLIGHT; i++) {
        if (i % 8 == 7)
            call_extents(&calls[i], client, 0, 1 << 20);
        else
            call_read(&calls[i], client, i * 4096, i % 2 ? 100 : 300000);
    }
}

static void test_a_server_that_dies_fails_what_is_in_flight_once(void) {
    for (guint connections = 1; connections <= 2; connections++) {
        Server server;
        Client client;
        Call calls[N_IN_FLIGHT];
        server_start(&server, "--filter=delay memory 10M delay-read=60 delay-extents=60");
        client_open(&client, &server, connections);
        calls_start(calls, &client);
        g_usleep(20000 * connections);
        server_kill(&server);
        for (unsigned i = 0; i < N_IN_FLIGHT; i++) {
            latch_wait(&calls[i].called, 1);
            g_assert_cmpint(calls[i].error, ==, -EIO);
        }
        client_wait_broken(&client, "QEMU closed the NBD connection");
        client_stop(&client);
        for (unsigned i = 0; i < N_IN_FLIGHT; i++)
            call_clear(&calls[i]);
        client_clear(&client);
        server_clear(&server);
    }
}

/* Whoever sees his read fail and asks why must find that the snapshot is lost. */
static void test_the_loss_is_told_before_the_reads_fail(void) {
    Server server;
    Client client;
    Call calls[N_IN_FLIGHT];
    server_start(&server, "--filter=delay memory 10M delay-read=60 delay-extents=60");
    client_open(&client, &server, 1);
    calls_start(calls, &client);
    g_usleep(20000);
    server_kill(&server);
    for (unsigned i = 0; i < N_IN_FLIGHT; i++)
        latch_wait(&calls[i].called, 1);
    for (unsigned i = 0; i < N_IN_FLIGHT; i++) {
        g_assert_true(calls[i].was_broken);
        call_clear(&calls[i]);
    }
    client_clear(&client);
    server_clear(&server);
}

static void test_after_the_loss_everything_fails(void) {
    Server server;
    Client client;
    server_start(&server, "pattern 10M");
    client_open(&client, &server, 2);
    check_random_pattern_reads(&client, 10 << 20, 5);
    server_kill(&server);
    client_wait_broken(&client, "QEMU closed the NBD connection");
    for (int i = 0; i < 20; i++) {
        Call question;
        g_assert_cmpint(read_error(&client, (uint64_t)i, 4096), ==, -EIO);
        call_extents(&question, &client, 0, 4096);
        latch_wait(&question.called, 1);
        g_assert_cmpint(question.error, ==, -EIO);
        call_clear(&question);
    }
    client_clear(&client);
    server_clear(&server);
}

static void test_an_idle_connection_notices_the_loss(void) {
    Server server;
    Client client;
    server_start(&server, "memory 10M");
    client_open(&client, &server, 1);
    server_kill(&server);
    client_wait_broken(&client, "QEMU closed the NBD connection");
    client_clear(&client);
    server_clear(&server);
}

static void test_close_fails_what_is_in_flight_before_it_returns(void) {
    for (int pause_us = 0; pause_us <= 20000; pause_us += 20000) {
        Server server;
        Client client;
        Call calls[N_IN_FLIGHT];
        server_start(&server, "--filter=delay memory 10M delay-read=60 delay-extents=60");
        client_open(&client, &server, 2);
        calls_start(calls, &client);
        if (pause_us > 0)
            g_usleep((gulong)pause_us);
        client_stop(&client);
        for (unsigned i = 0; i < N_IN_FLIGHT; i++) {
            g_assert_cmpuint(latch_get(&calls[i].called), ==, 1);
            g_assert_cmpint(calls[i].error, ==, -EIO);
        }
        g_assert_cmpint(read_error(&client, 0, 4096), ==, -EIO);
        client_stop(&client);
        for (unsigned i = 0; i < N_IN_FLIGHT; i++)
            call_clear(&calls[i]);
        g_assert_false(client_is_broken(&client));
        client_clear(&client);
        server_clear(&server);
    }
}

static void test_free_lets_go_of_every_connection(void) {
    Server server;
    Client client;
    server_start(&server, "--filter=exitlast pattern 10M");
    client_open(&client, &server, 3);
    check_pattern_read(&client, 0, 4096);
    g_assert_false(server_has_ended(&server));
    client_clear(&client);
    gint64 deadline_us = g_get_monotonic_time() + START_TIMEOUT_S * G_USEC_PER_SEC;
    while (!server_has_ended(&server)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
        g_usleep(1000);
    }
    server.pid = 0;
    server_clear(&server);
}

typedef struct {
    Client *client;
    uint32_t seed;
} Submitter;

#define N_SUBMITTERS 8
#define N_SUBMITS 40
#define SHARED_BYTES 10000003

static gpointer submit_many(gpointer data) {
    const Submitter *submitter = data;
    g_autoptr(GRand) random = g_rand_new_with_seed(submitter->seed);
    g_autofree Call *calls = g_new(Call, N_SUBMITS);
    for (int i = 0; i < N_SUBMITS; i++) {
        uint64_t offset = g_rand_int(random) % SHARED_BYTES;
        uint64_t longest = MIN(SHARED_BYTES - offset, 100000);
        size_t length = 1 + g_rand_int(random) % longest;
        if (i % 8 == 7)
            call_extents(&calls[i], submitter->client, offset, length);
        else
            call_read(&calls[i], submitter->client, offset, length);
    }
    for (int i = 0; i < N_SUBMITS; i++) {
        latch_wait(&calls[i].called, 1);
        g_assert_cmpint(calls[i].error, ==, 0);
        if (calls[i].buffer)
            call_check_pattern(&calls[i]);
        call_clear(&calls[i]);
    }
    return NULL;
}

static void submitters_run(Client *client) {
    Submitter submitters[N_SUBMITTERS];
    GThread *threads[N_SUBMITTERS];
    for (int i = 0; i < N_SUBMITTERS; i++) {
        submitters[i] = (Submitter){.client = client, .seed = (uint32_t)g_test_rand_int()};
        threads[i] = g_thread_new("submitter", submit_many, &submitters[i]);
    }
    for (int i = 0; i < N_SUBMITTERS; i++)
        (void)g_thread_join(threads[i]);
}

static void test_threads_may_submit_at_once(void) {
    static const char *const servers[] = {"pattern 10000003", "--filter=delay pattern 10000003 delay-read=1ms",
                                          "--filter=multi-conn pattern 10000003 multi-conn-mode=disable"};
    for (size_t i = 0; i < G_N_ELEMENTS(servers); i++) {
        Server server;
        Client client;
        server_start(&server, servers[i]);
        client_open(&client, &server, 3);
        submitters_run(&client);
        client_clear(&client);
        server_clear(&server);
    }
}

static gpointer submit_until_it_fails(gpointer data) {
    Submitter *submitter = data;
    for (uint64_t i = 0; read_error(submitter->client, i % 1000, 4096) == 0; i++)
        ;
    return NULL;
}

static void test_the_server_may_die_while_threads_submit(void) {
    for (int run = 0; run < 8; run++) {
        Server server;
        Client client;
        Submitter submitters[N_SUBMITTERS];
        GThread *threads[N_SUBMITTERS];
        server_start(&server, "pattern 10M");
        client_open(&client, &server, 1);
        for (int i = 0; i < N_SUBMITTERS; i++) {
            submitters[i].client = &client;
            threads[i] = g_thread_new("submitter", submit_until_it_fails, &submitters[i]);
        }
        g_usleep(random_below(20000));
        server_kill(&server);
        for (int i = 0; i < N_SUBMITTERS; i++)
            (void)g_thread_join(threads[i]);
        client_clear(&client);
        server_clear(&server);
    }
}

static void test_close_may_come_while_threads_submit(void) {
    Server server;
    Client client;
    Submitter submitters[N_SUBMITTERS];
    GThread *threads[N_SUBMITTERS];
    server_start(&server, "pattern 10M");
    client_open(&client, &server, 2);
    for (int i = 0; i < N_SUBMITTERS; i++) {
        submitters[i].client = &client;
        threads[i] = g_thread_new("submitter", submit_until_it_fails, &submitters[i]);
    }
    g_usleep(20000);
    client_stop(&client);
    for (int i = 0; i < N_SUBMITTERS; i++)
        (void)g_thread_join(threads[i]);
    client_clear(&client);
    server_clear(&server);
}

/* A callback begins the next read, as a walk over a file does. */
typedef struct {
    Client *client;
    uint8_t byte;
    int left; /* used by one callback at a time */
    Latch done;
} Chain;

static void chain_next(int error, gpointer user_data) {
    Chain *chain = user_data;
    if (error || chain->left-- == 0)
        latch_count(&chain->done);
    else
        vmsnap_nbd_pool_read(chain->client->pool, &chain->byte, 1, (uint64_t)chain->left, chain_next, chain);
}

static void test_callbacks_may_begin_further_reads(void) {
    Server server;
    Client client;
    server_start(&server, "pattern 10M");
    client_open(&client, &server, 2);
    Chain chain = {.client = &client, .left = 1000};
    latch_init(&chain.done);
    chain_next(0, &chain);
    latch_wait(&chain.done, 1);
    g_assert_cmpint(chain.left, ==, -1);
    latch_clear(&chain.done);
    client_clear(&client);
    server_clear(&server);
}

static void check_no_pool_within(unsigned timeout_ms, const char *socket, const char *export_name, const char *said) {
    g_autoptr(GError) error = NULL;
    VmsnapSnapshot snapshot = {0};
    vmsnap_snapshot_init(&snapshot, NULL);
    VmsnapIoThreads *threads = vmsnap_io_threads_new(1);
    g_autoptr(VmsnapNbdServer) server = vmsnap_nbd_server_new_private(socket, &error);
    g_assert_no_error(error);
    g_assert_null(vmsnap_nbd_pool_new(threads, &snapshot, server, export_name, NULL, 2, timeout_ms, &error));
    vmsnap_io_threads_free(threads);
    vmsnap_snapshot_clear(&snapshot);
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, socket));
    g_assert_nonnull(strstr(error->message, export_name));
    g_assert_nonnull(strstr(error->message, said));
}

static void check_no_pool(const char *socket, const char *export_name, const char *said) {
    check_no_pool_within(CONNECT_TIMEOUT_MS, socket, export_name, said);
}

static void check_no_server(const char *socket) {
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_nbd_server_new_private(socket, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, socket));
}

static void test_no_server_is_an_error_that_names_it(void) {
    check_no_server("/nowhere/nbd.sock");
}

static void test_no_such_export_is_an_error_that_names_it(void) {
    Server server;
    server_start(&server, "--filter=exportname memory 1M exportname-strict=true exportname=vda");
    check_no_pool(server.socket, "vdb", "'vdb'");
    server_clear(&server);
}

static void test_a_server_that_wants_tls_is_an_error(void) {
    Server server;
    server_start(&server, "--tls=require --tls-psk=/dev/null memory 1M");
    check_no_pool(server.socket, "vda", "failed to connect");
    server_clear(&server);
}

/* QEMU's user owns the socket's directory, and a link would lead us to the disk of another machine. */
static void test_only_a_socket_is_connected_to(void) {
    Server server;
    server_start(&server, "memory 1M");
    g_autofree char *link = server_path(&server, "link"), *file = server_path(&server, "file");
    g_assert_cmpint(symlink(server.socket, link), ==, 0);
    g_assert_true(g_file_set_contents(file, "", 0, NULL));
    check_no_server(link);
    check_no_server(file);
    check_no_server(server.directory);
    server_clear(&server);
}

/* It listens, so that the kernel lets us in, and says nothing. */
static void test_a_server_that_says_nothing_is_given_up(void) {
    Server server;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    server_init(&server);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)g_strlcpy(address.sun_path, server.socket, sizeof address.sun_path);
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(fd, 1), ==, 0);
    gint64 start_us = g_get_monotonic_time();
    check_no_pool_within(100, server.socket, "vda", "failed to connect");
    g_assert_cmpint(g_get_monotonic_time() - start_us, >=, 90 * 1000);
    (void)close(fd);
    server_clear(&server);
}

/* An export that counts who opens it, and grows if it is told to. */
static void counting_server_start(Server *server, gboolean multi_conn, gboolean grows) {
    server_init(server);
    g_autofree char *script = server_path(server, "plugin");
    g_autofree char *count = server_path(server, "opened");
    g_autofree char *content = g_strdup_printf("case $1 in\n"
                                               "open) echo >>%s;;\n"
                                               "get_size) echo $((4096 + %d * $(wc -l <%s)));;\n"
                                               "can_multi_conn) exit %d;;\n"
                                               "pread) head -c $3 /dev/zero;;\n"
                                               "*) exit 2;;\n"
                                               "esac\n",
                                               count, grows, count, multi_conn ? 0 : 3);
    g_autofree char *words = g_strdup_printf("sh %s", script);
    g_autofree char *executable = g_strconcat("#!/bin/sh\n", content, NULL);
    g_assert_true(g_file_set_contents_full(script, executable, -1, G_FILE_SET_CONTENTS_NONE, 0700, NULL));
    server_run(server, words);
}

static gsize counting_server_count(const Server *server) {
    g_autofree char *path = server_path(server, "opened"), *content = NULL;
    gsize length = 0;
    (void)g_file_get_contents(path, &content, &length, NULL);
    return length;
}

static void test_servers_that_allow_it_get_all_connections(void) {
    for (int multi_conn = 0; multi_conn < 2; multi_conn++) {
        Server server;
        Client client;
        counting_server_start(&server, multi_conn, FALSE);
        client_open(&client, &server, 3);
        g_assert_cmpint(read_error(&client, 0, 4096), ==, 0);
        g_assert_cmpuint(counting_server_count(&server), ==, multi_conn ? 3 : 1);
        client_clear(&client);
        server_clear(&server);
    }
}

static void test_an_export_that_changes_its_size_is_refused(void) {
    Server server;
    counting_server_start(&server, TRUE, TRUE);
    check_no_pool(server.socket, "vda", "size");
    server_clear(&server);
}

static void test_free_takes_null(void) {
    vmsnap_nbd_pool_free(NULL);
    vmsnap_io_threads_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_autofree char *nbdkit = g_find_program_in_path("nbdkit");
    if (!nbdkit) {
        (void)g_printerr("nbdkit is not installed\n");
        return 77;
    }
    g_test_add_func("/nbd/the-size-is-the-servers", test_the_size_is_the_servers);
    g_test_add_func("/nbd/any-range-equals-the-disk", test_any_range_equals_the_disk);
    g_test_add_func("/nbd/servers-that-want-blocks-get-them", test_servers_that_want_blocks_get_them);
    g_test_add_func("/nbd/the-end-of-an-odd-disk-that-wants-blocks-is-read",
                    test_the_end_of_an_odd_disk_that_wants_blocks_is_read);
    g_test_add_func("/nbd/extents-tell-data-from-zero", test_extents_tell_data_from_zero);
    g_test_add_func("/nbd/extents-and-reads-agree", test_extents_and_reads_agree);
    g_test_add_func("/nbd/a-hole-of-unknown-content-is-data", test_a_hole_of_unknown_content_is_data);
    g_test_add_func("/nbd/a-whole-window-is-one-question", test_a_whole_window_is_one_question);
    g_test_add_func("/nbd/servers-without-extents-have-only-data", test_servers_without_extents_have_only_data);
    g_test_add_func("/nbd/extents-of-any-range-of-a-server-that-wants-blocks",
                    test_extents_of_any_range_of_a_server_that_wants_blocks);
    g_test_add_func("/nbd/an-error-of-the-server-is-eio-and-no-loss", test_an_error_of_the_server_is_eio_and_no_loss);
    g_test_add_func("/nbd/a-question-that-fails-is-eio-and-no-loss", test_a_question_that_fails_is_eio_and_no_loss);
    g_test_add_func("/nbd/a-server-that-dies-fails-what-is-in-flight-once",
                    test_a_server_that_dies_fails_what_is_in_flight_once);
    g_test_add_func("/nbd/the-loss-is-told-before-the-reads-fail", test_the_loss_is_told_before_the_reads_fail);
    g_test_add_func("/nbd/after-the-loss-everything-fails", test_after_the_loss_everything_fails);
    g_test_add_func("/nbd/an-idle-connection-notices-the-loss", test_an_idle_connection_notices_the_loss);
    g_test_add_func("/nbd/close-fails-what-is-in-flight-before-it-returns",
                    test_close_fails_what_is_in_flight_before_it_returns);
    g_test_add_func("/nbd/free-lets-go-of-every-connection", test_free_lets_go_of_every_connection);
    g_test_add_func("/nbd/threads-may-submit-at-once", test_threads_may_submit_at_once);
    g_test_add_func("/nbd/the-server-may-die-while-threads-submit", test_the_server_may_die_while_threads_submit);
    g_test_add_func("/nbd/close-may-come-while-threads-submit", test_close_may_come_while_threads_submit);
    g_test_add_func("/nbd/callbacks-may-begin-further-reads", test_callbacks_may_begin_further_reads);
    g_test_add_func("/nbd/no-server-is-an-error-that-names-it", test_no_server_is_an_error_that_names_it);
    g_test_add_func("/nbd/no-such-export-is-an-error-that-names-it", test_no_such_export_is_an_error_that_names_it);
    g_test_add_func("/nbd/a-server-that-wants-tls-is-an-error", test_a_server_that_wants_tls_is_an_error);
    g_test_add_func("/nbd/only-a-socket-is-connected-to", test_only_a_socket_is_connected_to);
    g_test_add_func("/nbd/a-server-that-says-nothing-is-given-up", test_a_server_that_says_nothing_is_given_up);
    g_test_add_func("/nbd/servers-that-allow-it-get-all-connections", test_servers_that_allow_it_get_all_connections);
    g_test_add_func("/nbd/an-export-that-changes-its-size-is-refused", test_an_export_that_changes_its_size_is_refused);
    g_test_add_func("/nbd/free-takes-null", test_free_takes_null);
    return g_test_run();
}
