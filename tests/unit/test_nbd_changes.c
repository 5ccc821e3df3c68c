/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What has changed, as QEMU tells it: a real qemu-nbd with a real bitmap, and servers that have none. */
#include "extents.h"
#include "nbd_support.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#define MIB(n) ((uint64_t)(n) << 20)
#define DISK_BYTES (MIB(16) + 512)
#define GRANULE_BYTES 65536

/* Makes an image with data that is older than its bitmap cp1, and such as is younger. */
static void image_make(const Server *server) {
    g_autofree char *create = g_strdup_printf("qemu-img create -q -f qcow2 disk %" G_GUINT64_FORMAT, DISK_BYTES);
    server_call(server, create);
    server_call(server, "qemu-io -f qcow2 -c write\t-P\t17\t0\t4M disk");
    server_call(server, "qemu-img bitmap --add disk cp1 -g 65536");
    server_call(server, "qemu-io -f qcow2 -c write\t-P\t18\t1M\t100K -c write\t-z\t3M\t64K -c write\t-P\t19\t8M\t512 "
                        "-c write\t-P\t20\t16M\t512 disk");
    server_call(server, "qemu-img bitmap --disable disk cp1");
    server_call(server, "qemu-img bitmap --add --disable disk cp2");
}

/* What cp1 must tell: granules of 64 KiB that were written to, zeroes as well. */
static GArray *changes_expected(void) {
    static const uint64_t lengths[] = {MIB(1),
                                       2 * GRANULE_BYTES,
                                       MIB(3) - MIB(1) - 2 * GRANULE_BYTES,
                                       GRANULE_BYTES,
                                       MIB(5) - GRANULE_BYTES,
                                       GRANULE_BYTES,
                                       MIB(8) - GRANULE_BYTES,
                                       512};
    GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++)
        extents_append(changes, i % 2 ? VMSNAP_EXTENT_DIRTY : VMSNAP_EXTENT_CLEAN, lengths[i]);
    return changes;
}

/* Asks until the whole range is known, and compares each answer. */
static void check_changes(Client *client, const GArray *expected, uint64_t offset, uint64_t length) {
    while (length > 0) {
        Call call;
        call_changes(&call, client, offset, length);
        latch_wait(&call.called, 1);
        g_assert_cmpint(call.error, ==, 0);
        uint64_t before = offset;
        for (guint i = 0; i < call.extents->len; i++) {
            const VmsnapExtent *extent = &g_array_index(call.extents, VmsnapExtent, i);
            uint64_t n_clean = extents_count_zero(expected, offset, extent->length_bytes);
            g_assert_cmpuint(extent->length_bytes, >, 0);
            g_assert_cmpuint(n_clean, ==, extent->kind == VMSNAP_EXTENT_CLEAN ? extent->length_bytes : 0);
            offset += extent->length_bytes;
        }
        g_assert_cmpuint(offset - before, <=, length);
        length -= offset - before;
        call_clear(&call);
    }
}

typedef struct {
    Server server;
    Client client;
    GArray *changes;
} Fixture;

static void fixture_init(Fixture *fixture, guint max_connections) {
    server_init(&fixture->server);
    image_make(&fixture->server);
    server_run_qemu(&fixture->server, "disk", "cp1");
    client_open_bitmap(&fixture->client, fixture->server.socket, "cp1", max_connections);
    fixture->changes = changes_expected();
}

static void fixture_clear(Fixture *fixture) {
    client_clear(&fixture->client);
    server_clear(&fixture->server);
    g_array_unref(fixture->changes);
}

static void check_bytes(Client *client, uint64_t offset, size_t length, uint8_t byte) {
    Call call;
    g_autofree uint8_t *expected = g_malloc(length);
    memset(expected, byte, length);
    call_read(&call, client, offset, length);
    latch_wait(&call.called, 1);
    g_assert_cmpint(call.error, ==, 0);
    g_assert_cmpmem(call.buffer, length, expected, length);
    call_clear(&call);
}

static uint64_t count_zero(Client *client, uint64_t offset, size_t length) {
    Call call;
    call_extents(&call, client, offset, length);
    latch_wait(&call.called, 1);
    g_assert_cmpint(call.error, ==, 0);
    uint64_t n_zero = extents_count_zero(call.extents, 0, length);
    call_clear(&call);
    return n_zero;
}

/* Changes come over a connection of their own; all else goes on as without. */
static void test_qemu_tells_what_has_changed(void) {
    for (guint max_connections = 1; max_connections <= 2; max_connections++) {
        Fixture fixture;
        fixture_init(&fixture, max_connections);
        g_assert_cmpuint(vmsnap_nbd_pool_get_size(fixture.client.pool), ==, DISK_BYTES);
        check_changes(&fixture.client, fixture.changes, 0, DISK_BYTES);
        check_bytes(&fixture.client, 0, 4096, 17);
        check_bytes(&fixture.client, MIB(1), 4096, 18);
        check_bytes(&fixture.client, MIB(3), 4096, 0);
        check_bytes(&fixture.client, MIB(16), 512, 20);
        g_assert_cmpuint(count_zero(&fixture.client, MIB(3), GRANULE_BYTES), ==, GRANULE_BYTES);
        g_assert_cmpuint(count_zero(&fixture.client, 0, GRANULE_BYTES), ==, 0);
        g_assert_cmpuint(count_zero(&fixture.client, MIB(5), MIB(1)), ==, MIB(1));
        g_assert_false(client_is_broken(&fixture.client));
        fixture_clear(&fixture);
    }
}

static void test_any_range_can_be_asked_for(void) {
    Fixture fixture;
    fixture_init(&fixture, 1);
    for (int i = 0; i < 100; i++) {
        uint64_t offset = extents_random_offset(fixture.changes, DISK_BYTES);
        uint64_t length = 1 + random_below(random_below(2) ? 2 * GRANULE_BYTES : DISK_BYTES);
        check_changes(&fixture.client, fixture.changes, offset, MIN(length, DISK_BYTES - offset));
    }
    check_changes(&fixture.client, fixture.changes, DISK_BYTES - 1, 1);
    fixture_clear(&fixture);
}

/* Also while reads and other questions are under way. */
static void test_many_questions_may_be_under_way(void) {
    Fixture fixture;
    Call changes[16], reads[16], contents[16];
    fixture_init(&fixture, 2);
    for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++) {
        call_changes(&changes[i], &fixture.client, i * MIB(1), MIB(1));
        call_read(&reads[i], &fixture.client, i * MIB(1), 4096);
        call_extents(&contents[i], &fixture.client, i * MIB(1), MIB(1));
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++) {
        latch_wait(&changes[i].called, 1);
        latch_wait(&reads[i].called, 1);
        latch_wait(&contents[i].called, 1);
        g_assert_cmpint(changes[i].error | reads[i].error | contents[i].error, ==, 0);
        const VmsnapExtent *first = &g_array_index(changes[i].extents, VmsnapExtent, 0);
        g_assert_cmpint(first->kind, ==, i == 1 || i == 3 || i == 8 ? VMSNAP_EXTENT_DIRTY : VMSNAP_EXTENT_CLEAN);
        call_clear(&changes[i]);
        call_clear(&reads[i]);
        call_clear(&contents[i]);
    }
    fixture_clear(&fixture);
}

static void test_a_bitmap_may_say_that_nothing_has_changed(void) {
    Server server;
    Client client;
    g_autoptr(GArray) none = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(none, VMSNAP_EXTENT_CLEAN, DISK_BYTES);
    server_init(&server);
    image_make(&server);
    server_run_qemu(&server, "disk", "cp2");
    client_open_bitmap(&client, server.socket, "cp2", 1);
    check_changes(&client, none, 0, DISK_BYTES);
    client_clear(&client);
    server_clear(&server);
}

/* A server that is gone breaks the snapshot, whichever connection meets it. */
static void test_a_question_to_a_server_that_is_gone_fails(void) {
    Fixture fixture;
    Call call;
    fixture_init(&fixture, 1);
    server_kill(&fixture.server);
    client_wait_broken(&fixture.client, "");
    call_changes(&call, &fixture.client, 0, MIB(1));
    latch_wait(&call.called, 1);
    g_assert_cmpint(call.error, ==, -EIO);
    g_assert_cmpuint(call.extents->len, ==, 0);
    call_clear(&call);
    fixture_clear(&fixture);
}

/* @said: what the error says */
static void check_refused(const Server *server, const char *bitmap, const char *said) {
    VmsnapSnapshot snapshot = {0};
    g_autoptr(GError) error = NULL;
    vmsnap_snapshot_init(&snapshot, NULL);
    VmsnapIoThreads *threads = vmsnap_io_threads_new(1);
    g_autoptr(VmsnapNbdServer) listener = vmsnap_nbd_server_new_private(server->socket, NULL);
    g_assert_null(vmsnap_nbd_pool_new(threads, &snapshot, listener, "", bitmap, 1, CONNECT_TIMEOUT_MS, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    if (!strstr(error->message, said))
        g_error("'%s' does not say '%s'", error->message, said);
    g_assert_nonnull(strstr(error->message, server->socket));
    g_assert_false(vmsnap_snapshot_is_broken(&snapshot));
    vmsnap_io_threads_free(threads);
    vmsnap_snapshot_clear(&snapshot);
}

static void test_a_server_without_that_bitmap_is_refused(void) {
    Server server;
    server_init(&server);
    image_make(&server);
    for (int with_other = 0; with_other < 2; with_other++) {
        server_run_qemu(&server, "disk", with_other ? "cp2" : NULL);
        check_refused(&server, "cp1", "it does not tell what has changed (qemu:dirty-bitmap:cp1)");
        server_kill(&server);
        g_autofree char *pid_file = server_path(&server, "pid");
        (void)g_unlink(pid_file);
        (void)g_unlink(server.socket);
    }
    server_clear(&server);
}

static void test_a_server_that_knows_no_bitmaps_is_refused(void) {
    static const char *const servers[] = {"memory 1M", "--no-sr memory 1M", "--filter=noextents memory 1M"};
    for (size_t i = 0; i < G_N_ELEMENTS(servers); i++) {
        Server server;
        server_start(&server, servers[i]);
        check_refused(&server, "cp1", "it does not tell what has changed (qemu:dirty-bitmap:cp1)");
        server_clear(&server);
    }
}

/* Changes of another size would be of another disk. */
static void test_the_size_is_that_of_all_connections(void) {
    Server server;
    g_autoptr(GError) error = NULL;
    server_init(&server);
    g_autofree char *script = server_path(&server, "script");
    g_autofree char *words = g_strdup_printf("sh %s", script);
    g_autofree char *text = g_strdup_printf("#!/bin/sh\n"
                                            "case $1 in\n"
                                            "open) echo >>%s/opened ;;\n"
                                            "get_size) expr $(wc -l <%s/opened) \\* 4096 ;;\n"
                                            "pread) head -c $3 /dev/zero ;;\n"
                                            "*) exit 2 ;;\n"
                                            "esac\n",
                                            server.directory, server.directory);
    g_assert_true(g_file_set_contents_full(script, text, -1, G_FILE_SET_CONTENTS_NONE, 0700, &error));
    server_run(&server, words);
    check_refused(&server, "cp1", "its size changes from one connection to the next");
    server_clear(&server);
}

int main(int argc, char **argv) {
    static const char *const programs[] = {"nbdkit", "qemu-nbd", "qemu-img", "qemu-io"};
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(programs); i++) {
        g_autofree char *path = g_find_program_in_path(programs[i]);
        if (path)
            continue;
        (void)g_printerr("%s is not installed\n", programs[i]);
        return 77;
    }
#define ADD(path, function) g_test_add_func("/nbd-changes/" path, function)
    ADD("qemu-tells-what-has-changed", test_qemu_tells_what_has_changed);
    ADD("any-range-can-be-asked-for", test_any_range_can_be_asked_for);
    ADD("many-questions-may-be-under-way", test_many_questions_may_be_under_way);
    ADD("a-bitmap-may-say-that-nothing-has-changed", test_a_bitmap_may_say_that_nothing_has_changed);
    ADD("a-question-to-a-server-that-is-gone-fails", test_a_question_to_a_server_that_is_gone_fails);
    ADD("a-server-without-that-bitmap-is-refused", test_a_server_without_that_bitmap_is_refused);
    ADD("a-server-that-knows-no-bitmaps-is-refused", test_a_server_that_knows_no_bitmaps_is_refused);
    ADD("the-size-is-that-of-all-connections", test_the_size_is_that_of_all_connections);
#undef ADD
    return g_test_run();
}
