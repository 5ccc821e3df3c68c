/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Snapshots of exports that somebody else has begun, from begin to end, against nbdkit. */
#include "nbd_support.h"
#include "ordinary_user.h"
#include "vmsnap/error.h"

#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UUID "bbbbbbbb-0000-4000-8000-000000000000"

/* One begin, and what came of it. */
typedef struct {
    int record_fd;
    VmsnapSnapshot *snapshot;
    GError *error;
    guint n_checked; /* disks that the check was shown */
    gboolean refuse; /* the check does not want it */
} Begin;

static gboolean check(VmsnapSnapshot *snapshot, gpointer user_data, GError **error) {
    Begin *begin = user_data;
    begin->n_checked = snapshot->disks->len;
    if (begin->refuse)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to like it");
    return !begin->refuse;
}

static void begin_run(Begin *begin, const char *uri, const char *disk, unsigned timeout_ms) {
    const char *const disks[] = {disk, NULL};
    begin->record_fd = vmsnap_record_open(UUID, NULL);
    const VmsnapBeginOptions options = {
        .uuid = UUID,
        .record_fd = begin->record_fd,
        .source = uri,
        .disks = disk ? disks : NULL,
        .mount_point = "/mnt",
        .connections = 2,
        .timeout_ms = timeout_ms,
        .check = check,
        .check_data = begin,
    };
    begin->snapshot = vmsnap_snapshot_begin(&options, &begin->error);
    g_assert_true((begin->snapshot != NULL) != (begin->error != NULL));
}

static void begin_clear(Begin *begin) {
    vmsnap_snapshot_free(begin->snapshot);
    g_clear_error(&begin->error);
    vmsnap_record_remove(UUID);
    (void)close(begin->record_fd);
}

static void check_outcome(const Begin *begin, const char *outcome) {
    g_autoptr(VmsnapRecord) record = vmsnap_record_read(begin->record_fd, NULL);
    g_assert_nonnull(record);
    g_assert_cmpstr(record->outcome, ==, outcome);
    g_assert_cmpstr(record->backend, ==, "nbd");
    g_assert_null(record->machine_uuid);
    g_assert_null(record->runtime_dir);
    g_assert_null(record->scratch_dir);
    g_assert_false(vmsnap_record_has_left(record));
    g_assert_true((record->reason != NULL) == g_str_equal(outcome, VMSNAP_OUTCOME_BROKEN));
}

static char *socket_uri(const Server *server) {
    return g_strdup_printf("nbd+unix:///?socket=%s", server->socket);
}

/* Starts a server with three files, of 0, 1 and 2 bytes. */
static void files_serve(Server *server) {
    static const char *const names[] = {"vda", "b c", "a:b"};
    server_init(server);
    g_autofree char *directory = server_path(server, "files");
    g_assert_cmpint(g_mkdir(directory, 0700), ==, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(directory, names[i], NULL);
        g_assert_true(g_file_set_contents(path, "xx", (gssize)i, NULL));
    }
    g_autofree char *words = g_strdup_printf("file dir=%s", directory);
    server_run(server, words);
}

static void files_clear(Server *server) {
    g_autofree char *directory = server_path(server, "files");
    remove_tree(directory);
    server_clear(server);
}

static void read_done(int error, gpointer user_data) {
    g_assert_cmpint(error, ==, 0);
    latch_count(user_data);
}

static void check_reads(VmsnapDisk *disk) {
    Latch done;
    char byte = 0;
    latch_init(&done);
    vmsnap_disk_read(disk, &byte, 1, disk->size_bytes - 1, read_done, &done);
    latch_wait(&done, 1);
    latch_clear(&done);
    g_assert_cmpint(byte, ==, 'x');
}

static void test_every_export_is_a_disk(void) {
    static const char *const names[] = {"a%3Ab", "b c", "vda"};
    Server server;
    Begin begin = {0};
    files_serve(&server);
    g_autofree char *uri = socket_uri(&server);
    begin_run(&begin, uri, NULL, CONNECT_TIMEOUT_MS);
    g_assert_no_error(begin.error);
    g_assert_cmpuint(begin.snapshot->disks->len, ==, G_N_ELEMENTS(names));
    g_assert_cmpuint(begin.n_checked, ==, G_N_ELEMENTS(names));
    g_assert_cmpstr(begin.snapshot->machine, ==, uri);
    g_assert_true(vmsnap_snapshot_start(begin.snapshot, NULL));
    for (guint i = 0; i < begin.snapshot->disks->len; i++) {
        VmsnapDisk *disk = g_ptr_array_index(begin.snapshot->disks, i);
        g_assert_cmpstr(disk->name, ==, names[i]);
        g_assert_cmpuint(disk->size_bytes, ==, G_N_ELEMENTS(names) - 1 - i);
        if (disk->size_bytes > 0)
            check_reads(disk);
    }
    g_assert_true(vmsnap_snapshot_end(begin.snapshot, FALSE, FALSE, NULL));
    check_outcome(&begin, VMSNAP_OUTCOME_COMPLETE);
    begin_clear(&begin);
    files_clear(&server);
}

static void test_disks_are_chosen(void) {
    Server server;
    Begin begin = {0}, none = {0};
    files_serve(&server);
    g_autofree char *uri = socket_uri(&server);
    begin_run(&begin, uri, "a%3Ab", CONNECT_TIMEOUT_MS);
    g_assert_no_error(begin.error);
    g_assert_cmpuint(begin.snapshot->disks->len, ==, 1);
    g_assert_cmpuint(begin.snapshot->left_out->len, ==, 2);
    g_assert_true(vmsnap_snapshot_end(begin.snapshot, TRUE, FALSE, NULL));
    check_outcome(&begin, VMSNAP_OUTCOME_ABORTED);
    begin_clear(&begin);
    begin_run(&none, uri, "vdz", CONNECT_TIMEOUT_MS);
    g_assert_nonnull(strstr(none.error->message, "its disks are a%3Ab, b c, vda"));
    begin_clear(&none);
    files_clear(&server);
}

static char *machine_uuid_of(const char *uri) {
    Begin begin = {0};
    begin_run(&begin, uri, NULL, CONNECT_TIMEOUT_MS);
    g_assert_no_error(begin.error);
    char *uuid = g_strdup(begin.snapshot->machine_uuid);
    g_assert_true(vmsnap_snapshot_end(begin.snapshot, FALSE, FALSE, NULL));
    begin_clear(&begin);
    return uuid;
}

/* Inode numbers come from it. */
static void test_the_same_uri_is_the_same_machine(void) {
    Server server;
    files_serve(&server);
    g_autofree char *uri = socket_uri(&server);
    g_autofree char *other_uri = g_strdup_printf("nbd+unix:///vda?socket=%s", server.socket);
    g_autofree char *first = machine_uuid_of(uri), *second = machine_uuid_of(uri);
    g_autofree char *other = machine_uuid_of(other_uri);
    g_assert_cmpstr(first, ==, second);
    g_assert_cmpstr(first, !=, other);
    g_assert_true(g_uuid_string_is_valid(first));
    files_clear(&server);
}

static void check_fails(const char *uri, unsigned timeout_ms, gboolean refuse, const char *said) {
    Begin begin = {.refuse = refuse};
    gint64 start_us = g_get_monotonic_time();
    begin_run(&begin, uri, NULL, timeout_ms);
    g_assert_error(begin.error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    if (!strstr(begin.error->message, said))
        g_error("'%s' does not say '%s'", begin.error->message, said);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 10 * G_USEC_PER_SEC);
    begin_clear(&begin);
}

static void test_what_cannot_be_begun_leaves_nothing(void) {
    Server server;
    files_serve(&server);
    g_autofree char *uri = socket_uri(&server);
    g_autofree char *no_export = g_strdup_printf("nbd+unix:///vdz?socket=%s", server.socket);
    check_fails("nbd+unix:///?socket=/nowhere", CONNECT_TIMEOUT_MS, FALSE, "'/nowhere'");
    check_fails(no_export, CONNECT_TIMEOUT_MS, FALSE, "'vdz'");
    check_fails(uri, CONNECT_TIMEOUT_MS, TRUE, "failed to like it");
    files_clear(&server);
}

static void test_a_server_without_exports_is_an_error(void) {
    Server server;
    server_init(&server);
    g_autofree char *directory = server_path(&server, "files");
    g_assert_cmpint(g_mkdir(directory, 0700), ==, 0);
    g_autofree char *words = g_strdup_printf("file dir=%s", directory);
    server_run(&server, words);
    g_autofree char *uri = socket_uri(&server);
    check_fails(uri, CONNECT_TIMEOUT_MS, FALSE, "it lists no export; ");
    files_clear(&server);
}

/* The first export is opened, late, and then the time is over. */
static void test_all_exports_together_have_the_time(void) {
    Server server;
    server_init(&server);
    g_autofree char *script = server_path(&server, "plugin");
    g_autofree char *words = g_strdup_printf("sh %s", script);
    g_assert_true(g_file_set_contents(script,
                                      "case $1 in list_exports) echo NAMES; seq 20;; open) sleep 0.3;;"
                                      "get_size) echo 512;; pread) head -c $3 /dev/zero;; *) exit 2;; esac",
                                      -1, NULL));
    g_assert_cmpint(g_chmod(script, 0755), ==, 0);
    server_run(&server, words);
    g_autofree char *uri = socket_uri(&server);
    check_fails(uri, 1000, FALSE, "it takes too long");
    server_clear(&server);
}

static void test_a_server_that_dies_breaks_the_snapshot(void) {
    Server server;
    Begin begin = {0};
    g_autoptr(GError) error = NULL;
    server_start(&server, "memory 1M");
    g_autofree char *uri = socket_uri(&server);
    begin_run(&begin, uri, NULL, CONNECT_TIMEOUT_MS);
    g_assert_no_error(begin.error);
    g_assert_true(vmsnap_snapshot_start(begin.snapshot, NULL));
    server_kill(&server);
    while (!vmsnap_snapshot_is_broken(begin.snapshot))
        g_usleep(1000);
    g_assert_false(vmsnap_snapshot_end(begin.snapshot, FALSE, FALSE, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN);
    g_assert_nonnull(strstr(error->message, "the snapshot of server '"));
    g_assert_nonnull(strstr(error->message, "the server closed the NBD connection"));
    check_outcome(&begin, VMSNAP_OUTCOME_BROKEN);
    begin_clear(&begin);
    server_clear(&server);
}

static void test_its_consistency_is_unknown(void) {
    Server server;
    Begin begin = {0};
    server_start(&server, "memory 1M");
    g_autofree char *uri = socket_uri(&server);
    begin_run(&begin, uri, NULL, CONNECT_TIMEOUT_MS);
    g_assert_no_error(begin.error);
    g_assert_cmpint(vmsnap_snapshot_get_consistency(begin.snapshot), ==, VMSNAP_CONSISTENCY_UNKNOWN);
    g_assert_cmpstr(vmsnap_source_get_words(uri)->noun, ==, "server");
    g_assert_cmpstr(vmsnap_backend_get_words("nbd")->host, ==, "the server");
    g_assert_nonnull(vmsnap_backend_get_words("no such backend")->noun);
    g_assert_true(vmsnap_snapshot_end(begin.snapshot, FALSE, FALSE, NULL));
    begin_clear(&begin);
    server_clear(&server);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    become_ordinary_user();
    g_autofree char *playground = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    g_assert_true(g_setenv("XDG_RUNTIME_DIR", playground, TRUE));
    g_test_add_func("/export-backend/every-export-is-a-disk", test_every_export_is_a_disk);
    g_test_add_func("/export-backend/disks-are-chosen", test_disks_are_chosen);
    g_test_add_func("/export-backend/the-same-uri-is-the-same-machine", test_the_same_uri_is_the_same_machine);
    g_test_add_func("/export-backend/what-cannot-be-begun-leaves-nothing", test_what_cannot_be_begun_leaves_nothing);
    g_test_add_func("/export-backend/a-server-without-exports-is-an-error", test_a_server_without_exports_is_an_error);
    g_test_add_func("/export-backend/all-exports-together-have-the-time", test_all_exports_together_have_the_time);
    g_test_add_func("/export-backend/a-server-that-dies-breaks-the-snapshot",
                    test_a_server_that_dies_breaks_the_snapshot);
    g_test_add_func("/export-backend/its-consistency-is-unknown", test_its_consistency_is_unknown);
    int result = g_test_run();
    remove_tree(playground);
    return result;
}
