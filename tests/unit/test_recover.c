/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is cleared after a snapshot that nobody serves any more, and what is told where that fails. */
#include "vmsnap/backend.h"

#include "ordinary_user.h"
#include "vmsnap/error.h"

#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UUID "aaaaaaaa-0000-4000-8000-000000000000"

static char *playground; /* what is XDG_RUNTIME_DIR; immutable after main() has begun */

/* A snapshot that has ended for the machine, and of which the rest is on this host. */
typedef struct {
    VmsnapRecord *record;
    int fd;
} Left;

static char *make_directory_with_files(const char *name) {
    char *path = g_build_filename(playground, name, NULL);
    g_assert_cmpint(mkdir(path, 0700), ==, 0);
    for (int i = 0; i < 3; i++) {
        g_autofree char *file = g_strdup_printf("%s/file-%d", path, i);
        g_assert_true(g_file_set_contents(file, "x", 1, NULL));
    }
    g_autofree char *link = g_build_filename(path, "link", NULL);
    g_assert_cmpint(symlink("/", link), ==, 0);
    return path;
}

/* What is never removed: a directory of somebody else's with something in it. */
static void make_inner_directory(const char *path) {
    g_autofree char *file = g_build_filename(path, "file", NULL);
    g_assert_cmpint(mkdir(path, 0700), ==, 0);
    g_assert_true(g_file_set_contents(file, "x", 1, NULL));
}

static Left left_new(const char *outcome) {
    g_autoptr(GError) error = NULL;
    Left left = {.record = vmsnap_record_new(), .fd = vmsnap_record_open(UUID, &error)};
    g_assert_no_error(error);
    left.record->uuid = g_strdup(UUID);
    left.record->machine = g_strdup("vm1");
    left.record->backend = g_strdup("libvirt");
    left.record->runtime_dir = make_directory_with_files("runtime");
    left.record->scratch_dir = make_directory_with_files("scratch");
    left.record->timeout_ms = 100;
    left.record->outcome = g_strdup(outcome);
    left.record->reason = outcome && !g_str_equal(outcome, VMSNAP_OUTCOME_COMPLETE) ? g_strdup("the reason") : NULL;
    g_assert_true(vmsnap_record_publish(left.fd, left.record, &error));
    return left;
}

static void left_clear(Left *left) {
    vmsnap_record_remove(UUID);
    (void)close(left->fd);
    vmsnap_record_free(left->record);
    static const char *const names[] = {"runtime", "scratch", "vmsnap"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(playground, names[i], NULL);
        remove_tree(path);
    }
}

static gboolean is_there(const char *path) {
    return g_file_test(path, G_FILE_TEST_EXISTS);
}

/* The file says what the record in memory does, and both say this. */
static void check_outcome(const Left *left, const char *outcome, const char *reason_part) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapRecord) read = vmsnap_record_read(left->fd, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(left->record->outcome, ==, outcome);
    g_assert_cmpstr(read->outcome, ==, outcome);
    g_assert_cmpstr(read->reason, ==, left->record->reason);
    if (reason_part)
        g_assert_nonnull(strstr(read->reason, reason_part));
    else
        g_assert_null(read->reason);
}

static gboolean all_clear(int fd, VmsnapRecord *record, GError **error) {
    return vmsnap_snapshot_recover(fd, record, error) && vmsnap_snapshot_remove_left(fd, record, error);
}

static void check_recovers(Left *left) {
    g_autoptr(GError) error = NULL;
    gboolean recovered = all_clear(left->fd, left->record, &error);
    g_assert_no_error(error);
    g_assert_true(recovered);
    g_assert_false(vmsnap_record_exists(left->fd));
    if (left->record->runtime_dir)
        g_assert_false(is_there(left->record->runtime_dir));
    if (left->record->scratch_dir)
        g_assert_false(is_there(left->record->scratch_dir));
}

static void check_stays(Left *left, const char *says) {
    g_autoptr(GError) error = NULL;
    g_assert_false(all_clear(left->fd, left->record, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_null(strchr(error->message, '\n'));
    g_assert_nonnull(strstr(error->message, says));
    g_assert_true(vmsnap_record_exists(left->fd));
    /* Nobody has to ask why. */
    g_assert_false(all_clear(left->fd, left->record, NULL));
}

static void test_files_and_record_go(void) {
    static const char *const outcomes[] = {VMSNAP_OUTCOME_COMPLETE, VMSNAP_OUTCOME_ABORTED, VMSNAP_OUTCOME_BROKEN};
    for (size_t i = 0; i < G_N_ELEMENTS(outcomes); i++) {
        Left left = left_new(outcomes[i]);
        check_recovers(&left);
        /* Who has the record open learns how it had ended, and not that somebody has cleared up. */
        check_outcome(&left, outcomes[i], i == 0 ? NULL : "the reason");
        left_clear(&left);
    }
}

static void test_a_record_without_an_outcome_is_of_a_daemon_that_died(void) {
    Left left = left_new(NULL);
    check_recovers(&left);
    check_outcome(&left, VMSNAP_OUTCOME_BROKEN, "its daemon died");
    left_clear(&left);
}

/* A daemon may have died at any step of its begin. */
static void test_what_was_never_made_is_no_obstacle(void) {
    for (unsigned bits = 0; bits < 16; bits++) {
        Left left = left_new(NULL);
        if (bits & 1)
            remove_tree(left.record->runtime_dir);
        if (bits & 2)
            remove_tree(left.record->scratch_dir);
        if (bits & 4)
            g_clear_pointer(&left.record->runtime_dir, g_free);
        if (bits & 8)
            g_clear_pointer(&left.record->scratch_dir, g_free);
        check_recovers(&left);
        left_clear(&left);
    }
}

static void test_what_cannot_be_removed_is_named_until_it_is(void) {
    static const char *const outcomes[] = {VMSNAP_OUTCOME_COMPLETE, VMSNAP_OUTCOME_ABORTED};
    for (size_t i = 0; i < G_N_ELEMENTS(outcomes); i++) {
        Left left = left_new(outcomes[i]);
        g_autofree char *inner = g_build_filename(left.record->scratch_dir, "directory", NULL);
        make_inner_directory(inner);
        check_stays(&left, left.record->scratch_dir);
        check_outcome(&left, VMSNAP_OUTCOME_LEFTOVER, left.record->scratch_dir);
        /* The other directory is not kept by it, nor are files. */
        g_assert_false(is_there(left.record->runtime_dir));
        remove_tree(inner);
        check_recovers(&left);
        check_outcome(&left, VMSNAP_OUTCOME_COMPLETE, NULL);
        left_clear(&left);
    }
}

static void test_of_two_that_stay_the_first_is_named(void) {
    Left left = left_new(VMSNAP_OUTCOME_COMPLETE);
    g_autofree char *one = g_build_filename(left.record->runtime_dir, "directory", NULL);
    g_autofree char *other = g_build_filename(left.record->scratch_dir, "directory", NULL);
    make_inner_directory(one);
    make_inner_directory(other);
    check_stays(&left, left.record->runtime_dir);
    remove_tree(one);
    check_stays(&left, left.record->scratch_dir);
    check_outcome(&left, VMSNAP_OUTCOME_LEFTOVER, left.record->scratch_dir);
    left_clear(&left);
}

/* Whatever else is left: what was copied must not be trusted. */
static void test_broken_stays_broken(void) {
    static const char *const outcomes[] = {VMSNAP_OUTCOME_BROKEN, NULL};
    for (size_t i = 0; i < G_N_ELEMENTS(outcomes); i++) {
        Left left = left_new(outcomes[i]);
        const char *reason = outcomes[i] ? "the reason" : "its daemon died";
        g_autofree char *inner = g_build_filename(left.record->runtime_dir, "directory", NULL);
        make_inner_directory(inner);
        check_stays(&left, left.record->runtime_dir);
        check_outcome(&left, VMSNAP_OUTCOME_BROKEN, reason);
        remove_tree(inner);
        check_recovers(&left);
        check_outcome(&left, VMSNAP_OUTCOME_BROKEN, reason);
        left_clear(&left);
    }
}

/* A directory has become a link, or a file: neither is followed or removed. */
static void test_what_is_no_directory_stays(void) {
    Left left = left_new(VMSNAP_OUTCOME_COMPLETE);
    g_autofree char *elsewhere = make_directory_with_files("elsewhere");
    g_autofree char *file = g_build_filename(elsewhere, "file-0", NULL);
    remove_tree(left.record->scratch_dir);
    g_assert_cmpint(symlink(elsewhere, left.record->scratch_dir), ==, 0);
    check_stays(&left, left.record->scratch_dir);
    g_assert_true(is_there(file));
    g_assert_cmpint(unlink(left.record->scratch_dir), ==, 0);
    g_assert_true(g_file_set_contents(left.record->scratch_dir, "x", 1, NULL));
    check_stays(&left, left.record->scratch_dir);
    g_assert_cmpint(unlink(left.record->scratch_dir), ==, 0);
    check_recovers(&left);
    remove_tree(elsewhere);
    left_clear(&left);
}

/* While a job may run, or the guest be frozen, nobody here can know that its files are in no use. */
static void test_an_unknown_backend_keeps_what_may_be_in_use(void) {
    static const char *const names[] = {"gopher", "", NULL};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        for (unsigned bits = 1; bits < 4; bits++) {
            Left left = left_new(VMSNAP_OUTCOME_COMPLETE);
            g_free(left.record->backend);
            left.record->backend = g_strdup(names[i]);
            left.record->job = (bits & 1) != 0;
            left.record->frozen = (bits & 2) != 0;
            check_stays(&left, "'vm1'");
            check_outcome(&left, VMSNAP_OUTCOME_LEFTOVER, "support for its source");
            g_assert_true(is_there(left.record->runtime_dir));
            g_assert_true(is_there(left.record->scratch_dir));
            g_assert_cmpint(left.record->job, ==, (bits & 1) != 0);
            g_assert_cmpint(left.record->frozen, ==, (bits & 2) != 0);
            left_clear(&left);
        }
    }
}

static void test_an_unknown_backend_without_a_job_does_not_matter(void) {
    Left left = left_new(VMSNAP_OUTCOME_COMPLETE);
    g_free(left.record->backend);
    left.record->backend = g_strdup("gopher");
    check_recovers(&left);
    left_clear(&left);
}

static void make_living_over_qmp(Left *left, const char *graph) {
    g_free(left->record->backend);
    left->record->backend = g_strdup("qmp");
    left->record->connect_uri = g_build_filename(playground, "no-monitor", NULL);
    left->record->graph = g_strdup(graph);
    left->record->job = TRUE;
    g_assert_true(vmsnap_record_update(left->fd, left->record));
}

static void check_lives(const Left *left, gboolean job) {
    g_autoptr(VmsnapRecord) read = vmsnap_record_read(left->fd, NULL);
    g_assert_cmpint(read->job, ==, job);
    g_assert_null(read->outcome);
    g_assert_null(read->reason);
    g_assert_true(vmsnap_record_exists(left->fd));
    g_assert_true(is_there(left->record->runtime_dir));
    g_assert_true(is_there(left->record->scratch_dir));
}

/* Somebody still serves it, who says how it has ended. */
static void test_a_living_snapshot_is_only_cleared_in_the_machine(void) {
    g_autoptr(GError) error = NULL;
    Left left = left_new(NULL);
    make_living_over_qmp(&left, "{\"places\": []}");
    g_assert_true(vmsnap_snapshot_clear_machine(left.fd, left.record, &error));
    g_assert_no_error(error);
    check_lives(&left, FALSE);
    left_clear(&left);
}

static void test_a_living_snapshot_that_cannot_be_cleared_may_be_later(void) {
    g_autoptr(GError) error = NULL;
    Left left = left_new(NULL);
    make_living_over_qmp(&left, "nonsense");
    g_assert_false(vmsnap_snapshot_clear_machine(left.fd, left.record, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    check_lives(&left, TRUE);
    left_clear(&left);
}

int main(int argc, char **argv) {
    become_ordinary_user();
    playground = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    g_assert_true(g_setenv("XDG_RUNTIME_DIR", playground, TRUE));
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/recover/files-and-record-go", test_files_and_record_go);
    g_test_add_func("/recover/a-record-without-an-outcome-is-of-a-daemon-that-died",
                    test_a_record_without_an_outcome_is_of_a_daemon_that_died);
    g_test_add_func("/recover/what-was-never-made-is-no-obstacle", test_what_was_never_made_is_no_obstacle);
    g_test_add_func("/recover/what-cannot-be-removed-is-named-until-it-is",
                    test_what_cannot_be_removed_is_named_until_it_is);
    g_test_add_func("/recover/of-two-that-stay-the-first-is-named", test_of_two_that_stay_the_first_is_named);
    g_test_add_func("/recover/broken-stays-broken", test_broken_stays_broken);
    g_test_add_func("/recover/what-is-no-directory-stays", test_what_is_no_directory_stays);
    g_test_add_func("/recover/an-unknown-backend-keeps-what-may-be-in-use",
                    test_an_unknown_backend_keeps_what_may_be_in_use);
    g_test_add_func("/recover/an-unknown-backend-without-a-job-does-not-matter",
                    test_an_unknown_backend_without_a_job_does_not_matter);
    g_test_add_func("/recover/a-living-snapshot-is-only-cleared-in-the-machine",
                    test_a_living_snapshot_is_only_cleared_in_the_machine);
    g_test_add_func("/recover/a-living-snapshot-that-cannot-be-cleared-may-be-later",
                    test_a_living_snapshot_that_cannot_be_cleared_may_be_later);
    int result = g_test_run();
    (void)g_rmdir(playground);
    g_free(playground);
    return result;
}
