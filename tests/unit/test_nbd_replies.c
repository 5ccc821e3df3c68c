/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Answers that no real server gives: reads in pieces with gaps between them, or with one part twice; extents without
 * end, or without length; some that come a byte at a time, or never while others do. So the server is made up.
 */
#include "backend/nbd_pool.h"

#include "latch.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DISK_BYTES ((uint64_t)1 << 20)
#define READ_BYTES ((size_t)8192)
#define TIMEOUT_MS 10000
#define SHORT_TIMEOUT_MS 2000
#define FORGOTTEN_OFFSET 0

#define OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define OPTION_REPLY_MAGIC UINT64_C(0x3e889045565a9)
#define OPTION_GO 7
#define OPTION_SET_META_CONTEXT 10
#define OPTION_STRUCTURED_REPLY 8
#define REPLY_ACK 1
#define REPLY_INFO 3
#define REPLY_META_CONTEXT 4
#define REPLY_UNSUPPORTED ((1U << 31) + 1)
#define TRANSMISSION_FLAGS (1 | 1 << 7) /* there are flags; a read can be asked for in one piece */
#define COMMAND_FLAG_ONE_PIECE (1 << 2)
#define CHUNK_MAGIC 0x668e33efU
#define CHUNK_DONE 1
#define CHUNK_DATA 1
#define CHUNK_EXTENTS 5
#define CONTEXT_ID 1
#define COMMAND_READ 0
#define COMMAND_EXTENTS 7
#define STATE_ZERO 2
#define N_FLOOD ((size_t)1 << 20)

typedef enum {
    IN_ORDER,         /* two halves */
    TURNED_AROUND,    /* two halves, the second one first, unless one piece is asked for */
    FIRST_HALF_TWICE, /* so that libnbd, which counts bytes, is content */
    EXTENTS_FLOOD,    /* each byte by turns data and zero */
    EXTENTS_ALIKE,    /* each byte data */
    EXTENTS_EMPTY,    /* of no length; some of them, then one that covers all */
    EXTENTS_NONE,     /* all of no length */
    TRICKLING,        /* one byte of an answer at a time, long before the timeout */
    FORGETFUL,        /* all is answered but reads at FORGOTTEN_OFFSET */
} Habit;

typedef struct {
    Habit habit;
    char *directory;
    char *socket;
    int listen_fd;
    int fd;
    GThread *thread;
    int n_reads; /* atomic */
} Server;

static uint8_t byte_at(uint64_t offset) {
    return (uint8_t)(offset * 7 + offset / 256);
}

static gboolean receive(const Server *server, void *buffer, size_t length) {
    return recv(server->fd, buffer, length, MSG_WAITALL) == (ssize_t)length;
}

static void put(const Server *server, uint64_t number, size_t length) {
    uint64_t big_endian = GUINT64_TO_BE(number);
    (void)send(server->fd, (uint8_t *)&big_endian + (sizeof number - length), length, MSG_NOSIGNAL);
}

static uint64_t get(const uint8_t *bytes, size_t length) {
    uint64_t number = 0;
    for (size_t i = 0; i < length; i++)
        number = number << 8 | bytes[i];
    return number;
}

static void put_option_reply(const Server *server, uint64_t option, uint64_t type, size_t length) {
    put(server, OPTION_REPLY_MAGIC, 8);
    put(server, option, 4);
    put(server, type, 4);
    put(server, length, 4);
}

/* Returns: whether the client has come to the end of the handshake. */
static gboolean handshake(const Server *server) {
    uint8_t head[16], data[4096];
    put(server, UINT64_C(0x4e42444d41474943), 8);
    put(server, OPTION_MAGIC, 8);
    put(server, 3, 2);
    if (!receive(server, head, 4))
        return FALSE;
    while (receive(server, head, 16)) {
        uint64_t option = get(head + 8, 4), length = get(head + 12, 4);
        if (length > sizeof data || (length > 0 && !receive(server, data, length)))
            return FALSE;
        if (option == OPTION_GO) {
            put_option_reply(server, option, REPLY_INFO, 12);
            put(server, 0, 2);
            put(server, DISK_BYTES, 8);
            put(server, TRANSMISSION_FLAGS, 2);
        }
        if (option == OPTION_SET_META_CONTEXT) {
            static const char name[] = "base:allocation";
            put_option_reply(server, option, REPLY_META_CONTEXT, 4 + strlen(name));
            put(server, CONTEXT_ID, 4);
            (void)send(server->fd, name, strlen(name), MSG_NOSIGNAL);
        }
        gboolean known = option == OPTION_GO || option == OPTION_STRUCTURED_REPLY || option == OPTION_SET_META_CONTEXT;
        put_option_reply(server, option, known ? REPLY_ACK : REPLY_UNSUPPORTED, 0);
        if (option == OPTION_GO)
            return TRUE;
    }
    return FALSE;
}

static void put_chunk(const Server *server, uint64_t cookie, uint64_t offset, size_t length, gboolean done) {
    g_autofree uint8_t *data = g_malloc(length);
    for (size_t i = 0; i < length; i++)
        data[i] = byte_at(offset + i);
    put(server, CHUNK_MAGIC, 4);
    put(server, done ? CHUNK_DONE : 0, 2);
    put(server, CHUNK_DATA, 2);
    put(server, cookie, 8);
    put(server, 8 + length, 4);
    put(server, offset, 8);
    (void)send(server->fd, data, length, MSG_NOSIGNAL);
}

/* Until the client goes. */
static void trickle(const Server *server, uint64_t cookie, size_t length) {
    uint8_t byte = 0;
    put(server, CHUNK_MAGIC, 4);
    put(server, CHUNK_DONE, 2);
    put(server, CHUNK_DATA, 2);
    put(server, cookie, 8);
    put(server, 8 + length, 4);
    while (send(server->fd, &byte, 1, MSG_NOSIGNAL) == 1)
        g_usleep(SHORT_TIMEOUT_MS * 1000 / 20);
}

static void answer_read(Server *server, const uint8_t *request) {
    uint64_t cookie = get(request + 8, 8), offset = get(request + 16, 8);
    size_t length = get(request + 24, 4), half = length / 2;
    gboolean one_piece = (get(request + 4, 2) & COMMAND_FLAG_ONE_PIECE) != 0;
    g_atomic_int_inc(&server->n_reads);
    if (server->habit == TRICKLING) {
        trickle(server, cookie, length);
        return;
    }
    if (server->habit == FORGETFUL && offset == FORGOTTEN_OFFSET)
        return;
    if (server->habit == TURNED_AROUND && one_piece) {
        put_chunk(server, cookie, offset, length, TRUE);
        return;
    }
    uint64_t second = server->habit == FIRST_HALF_TWICE ? offset : offset + half;
    put_chunk(server, cookie, server->habit == TURNED_AROUND ? second : offset, half, FALSE);
    put_chunk(server, cookie, server->habit == TURNED_AROUND ? offset : second, half, TRUE);
}

static size_t entry_length(Habit habit, size_t i, size_t asked) {
    if (habit == EXTENTS_EMPTY)
        return i == N_FLOOD - 1 ? asked : 0;
    return habit == EXTENTS_NONE ? 0 : 1;
}

static void answer_extents(Server *server, const uint8_t *request) {
    size_t length = get(request + 24, 4);
    g_autofree uint32_t *entries = g_new(uint32_t, 2 * N_FLOOD);
    for (size_t i = 0; i < N_FLOOD; i++) {
        gboolean zero = server->habit == EXTENTS_FLOOD && i % 2;
        entries[2 * i] = GUINT32_TO_BE((uint32_t)entry_length(server->habit, i, length));
        entries[2 * i + 1] = GUINT32_TO_BE(zero ? STATE_ZERO : 0);
    }
    put(server, CHUNK_MAGIC, 4);
    put(server, CHUNK_DONE, 2);
    put(server, CHUNK_EXTENTS, 2);
    put(server, get(request + 8, 8), 8);
    put(server, 4 + 8 * N_FLOOD, 4);
    put(server, CONTEXT_ID, 4);
    (void)send(server->fd, entries, 8 * N_FLOOD, MSG_NOSIGNAL);
}

static gpointer serve(gpointer data) {
    Server *server = data;
    uint8_t request[28];
    server->fd = accept(server->listen_fd, NULL, NULL);
    gboolean open = handshake(server);
    while (open && receive(server, request, sizeof request)) {
        uint64_t command = get(request + 6, 2);
        if (command == COMMAND_READ)
            answer_read(server, request);
        else if (command == COMMAND_EXTENTS)
            answer_extents(server, request);
        else
            break;
    }
    (void)close(server->fd);
    return NULL;
}

static void server_start(Server *server, Habit habit) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *server = (Server){.habit = habit, .directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL)};
    server->socket = g_build_filename(server->directory, "socket", NULL);
    (void)g_strlcpy(address.sun_path, server->socket, sizeof address.sun_path);
    server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(server->listen_fd, (struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(server->listen_fd, 1), ==, 0);
    server->thread = g_thread_new("server", serve, server);
}

static void server_clear(Server *server) {
    (void)g_thread_join(server->thread);
    (void)close(server->listen_fd);
    (void)g_unlink(server->socket);
    (void)g_rmdir(server->directory);
    g_free(server->socket);
    g_free(server->directory);
}

typedef struct {
    Latch called;
    int error;
} Reading;

static void reading_done(int error, gpointer user_data) {
    Reading *reading = user_data;
    reading->error = error;
    latch_count(&reading->called);
}

typedef struct {
    Server server;
    VmsnapSnapshot snapshot;
    VmsnapIoThreads *threads;
    VmsnapNbdServer *listener;
    VmsnapNbdPool *pool;
    const char *break_reason; /* that is expected in the end, or NULL */
} Client;

static void client_open(Client *client, Habit habit, unsigned timeout_ms) {
    g_autoptr(GError) error = NULL;
    server_start(&client->server, habit);
    client->snapshot = (VmsnapSnapshot){0};
    client->break_reason = NULL;
    vmsnap_snapshot_init(&client->snapshot, NULL);
    client->threads = vmsnap_io_threads_new(1);
    client->listener = vmsnap_nbd_server_new_private(client->server.socket, &error);
    g_assert_no_error(error);
    client->pool =
        vmsnap_nbd_pool_new(client->threads, &client->snapshot, client->listener, "", NULL, 1, timeout_ms, &error);
    g_assert_no_error(error);
    g_assert_true(vmsnap_io_threads_start(client->threads, NULL));
}

static void client_clear(Client *client) {
    vmsnap_io_threads_stop(client->threads);
    vmsnap_nbd_pool_free(client->pool);
    vmsnap_nbd_server_free(client->listener);
    vmsnap_io_threads_free(client->threads);
    g_autofree char *reason = vmsnap_snapshot_dup_break_reason(&client->snapshot);
    g_assert_cmpstr(reason, ==, client->break_reason);
    vmsnap_snapshot_clear(&client->snapshot);
    server_clear(&client->server);
}

/* Reads from a server of that habit. Returns: the error, or 0 after the bytes were found right. */
static int read_from(Habit habit, int *ret_n_reads) {
    Client client;
    Reading reading = {0};
    uint8_t buffer[READ_BYTES];
    client_open(&client, habit, TIMEOUT_MS);
    latch_init(&reading.called);
    vmsnap_nbd_pool_read(client.pool, buffer, sizeof buffer, 4096, reading_done, &reading);
    latch_wait(&reading.called, 1);
    for (size_t i = 0; i < sizeof buffer && !reading.error; i++)
        g_assert_cmpuint(buffer[i], ==, byte_at(4096 + i));
    *ret_n_reads = g_atomic_int_get(&client.server.n_reads);
    client_clear(&client);
    g_assert_cmpuint(latch_get(&reading.called), ==, 1);
    latch_clear(&reading.called);
    return reading.error;
}

typedef struct {
    Latch called;
    int error;
    size_t n_extents;
    uint64_t told_bytes;
    uint64_t zero_bytes;
} Question;

static void question_done(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data) {
    Question *question = user_data;
    question->error = error;
    question->n_extents = n_extents;
    for (size_t i = 0; i < n_extents; i++) {
        question->told_bytes += extents[i].length_bytes;
        if (extents[i].kind == VMSNAP_EXTENT_ZERO)
            question->zero_bytes += extents[i].length_bytes;
    }
    latch_count(&question->called);
}

/* Asks a server of that habit for the extents of the whole disk. */
static Question ask(Habit habit) {
    Client client;
    Question question = {0};
    client_open(&client, habit, TIMEOUT_MS);
    latch_init(&question.called);
    vmsnap_nbd_pool_extents(client.pool, VMSNAP_EXTENTS_OF_CONTENT, 0, DISK_BYTES, question_done, &question);
    latch_wait(&question.called, 1);
    client_clear(&client);
    latch_clear(&question.called);
    return question;
}

static void test_pieces_in_order_are_taken(void) {
    int n_reads;
    g_assert_cmpint(read_from(IN_ORDER, &n_reads), ==, 0);
    g_assert_cmpint(n_reads, ==, 1);
}

static void test_pieces_out_of_order_are_asked_for_as_one(void) {
    int n_reads;
    g_assert_cmpint(read_from(TURNED_AROUND, &n_reads), ==, 0);
    g_assert_cmpint(n_reads, ==, 2);
}

static void test_a_gap_is_an_error_and_not_old_memory(void) {
    int n_reads;
    g_assert_cmpint(read_from(FIRST_HALF_TWICE, &n_reads), ==, -EIO);
    g_assert_cmpint(n_reads, ==, 2);
}

static void test_a_flood_of_extents_is_cut_off(void) {
    Question question = ask(EXTENTS_FLOOD);
    g_assert_cmpint(question.error, ==, 0);
    g_assert_cmpuint(question.n_extents, ==, 65536);
    g_assert_cmpuint(question.told_bytes, ==, 65536);
    g_assert_cmpuint(question.zero_bytes, ==, 32768);
}

static void test_extents_of_one_kind_are_one(void) {
    Question question = ask(EXTENTS_ALIKE);
    g_assert_cmpint(question.error, ==, 0);
    g_assert_cmpuint(question.n_extents, ==, 1);
    g_assert_cmpuint(question.told_bytes, ==, DISK_BYTES);
    g_assert_cmpuint(question.zero_bytes, ==, 0);
}

static void test_extents_of_no_length_are_skipped(void) {
    Question question = ask(EXTENTS_EMPTY);
    g_assert_cmpint(question.error, ==, 0);
    g_assert_cmpuint(question.n_extents, ==, 1);
    g_assert_cmpuint(question.told_bytes, ==, DISK_BYTES);
}

static void test_an_answer_of_nothing_is_an_error(void) {
    Question question = ask(EXTENTS_NONE);
    g_assert_cmpint(question.error, ==, -EIO);
    g_assert_cmpuint(question.n_extents, ==, 0);
}

/* Reads from a server of that habit what it does not answer in time, and meanwhile what it may answer. */
static void check_gives_up(Habit habit, gboolean more) {
    Client client;
    Reading reading = {0};
    uint8_t buffer[READ_BYTES], more_buffer[READ_BYTES];
    client_open(&client, habit, SHORT_TIMEOUT_MS);
    client.break_reason = "QEMU has not answered for 2 s";
    latch_init(&reading.called);
    gint64 start_us = g_get_monotonic_time();
    vmsnap_nbd_pool_read(client.pool, buffer, sizeof buffer, FORGOTTEN_OFFSET, reading_done, &reading);
    unsigned n_answered = 0;
    for (int error = 0; more && !error;) {
        Reading another = {0};
        latch_init(&another.called);
        vmsnap_nbd_pool_read(client.pool, more_buffer, sizeof more_buffer, 4096, reading_done, &another);
        latch_wait(&another.called, 1);
        latch_clear(&another.called);
        error = another.error;
        n_answered += !error;
        g_assert_cmpint(g_get_monotonic_time() - start_us, <, LATCH_TIMEOUT_S * G_USEC_PER_SEC);
    }
    latch_wait(&reading.called, 1);
    g_assert_cmpint(reading.error, ==, -EIO);
    g_assert_cmpint(g_get_monotonic_time() - start_us, >=, SHORT_TIMEOUT_MS * 1000 / 2);
    g_assert_true(n_answered > 0 || !more);
    client_clear(&client);
    latch_clear(&reading.called);
}

static void test_an_answer_that_trickles_is_none(void) {
    check_gives_up(TRICKLING, FALSE);
}

static void test_a_request_is_not_forgotten_for_others(void) {
    check_gives_up(FORGETFUL, TRUE);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-replies/pieces-in-order-are-taken", test_pieces_in_order_are_taken);
    g_test_add_func("/nbd-replies/pieces-out-of-order-are-asked-for-as-one",
                    test_pieces_out_of_order_are_asked_for_as_one);
    g_test_add_func("/nbd-replies/a-gap-is-an-error-and-not-old-memory", test_a_gap_is_an_error_and_not_old_memory);
    g_test_add_func("/nbd-replies/a-flood-of-extents-is-cut-off", test_a_flood_of_extents_is_cut_off);
    g_test_add_func("/nbd-replies/extents-of-one-kind-are-one", test_extents_of_one_kind_are_one);
    g_test_add_func("/nbd-replies/extents-of-no-length-are-skipped", test_extents_of_no_length_are_skipped);
    g_test_add_func("/nbd-replies/an-answer-of-nothing-is-an-error", test_an_answer_of_nothing_is_an_error);
    g_test_add_func("/nbd-replies/an-answer-that-trickles-is-none", test_an_answer_that_trickles_is_none);
    g_test_add_func("/nbd-replies/a-request-is-not-forgotten-for-others", test_a_request_is_not_forgotten_for_others);
    return g_test_run();
}
