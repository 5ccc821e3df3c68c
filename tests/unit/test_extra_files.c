/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The files that -o config= names: those that can be had, and those that must not be waited for. */
#include "tools/extra_files.h"

#include "memory_backend.h"
#include "vmsnap/error.h"

#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_BYTES ((size_t)1 << 20)

/* Returns: a new directory. */
static char *directory_new(void) {
    g_autoptr(GError) error = NULL;
    char *directory = g_dir_make_tmp("vmsnap-unit-XXXXXX", &error);
    g_assert_no_error(error);
    return directory;
}

static char *file_new(const char *directory, const char *name, const char *content, gsize length) {
    g_autoptr(GError) error = NULL;
    char *path = g_build_filename(directory, name, NULL);
    (void)g_file_set_contents(path, content, (gssize)length, &error);
    g_assert_no_error(error);
    return path;
}

static void check_refused(const char *path, const char *reason) {
    g_autoptr(GError) error = NULL;
    g_autofree char *named = g_strdup_printf("'config=%s'", path);
    g_assert_null(vmsnap_extra_files_load((const char *const[]){path, NULL}, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, named));
    g_assert_nonnull(strstr(error->message, reason));
    g_assert_null(strchr(error->message, '\n'));
}

static void test_files_get_the_last_parts_of_their_paths(void) {
    g_autofree char *directory = directory_new();
    g_autofree char *first = file_new(directory, "notes.txt", "a\0b", 3);
    g_autofree char *second = file_new(directory, "100.conf", "", 0);
    const char *paths[] = {first, second, NULL};
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) contents = vmsnap_extra_files_load(paths, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(contents->len, ==, 2);
    /* What is on disk is of no more importance then. */
    g_assert_cmpint(g_unlink(first), ==, 0);
    g_assert_cmpint(g_unlink(second), ==, 0);
    g_assert_cmpint(g_rmdir(directory), ==, 0);

    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    vmsnap_extra_files_add(snapshot, paths, contents);
    g_assert_cmpuint(snapshot->files->len, ==, 2);
    const VmsnapConfigFile *notes = vmsnap_snapshot_find_file(snapshot, "notes.txt");
    g_assert_cmpmem(g_bytes_get_data(notes->content, NULL), g_bytes_get_size(notes->content), "a\0b", 3);
    g_assert_cmpint(notes->kind, ==, VMSNAP_FILE_CONFIG);
    const VmsnapConfigFile *empty = vmsnap_snapshot_find_file(snapshot, "100.conf");
    g_assert_cmpuint(g_bytes_get_size(empty->content), ==, 0);
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static void test_none_are_none(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) contents = vmsnap_extra_files_load(NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(contents->len, ==, 0);
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    vmsnap_extra_files_add(snapshot, NULL, contents);
    g_assert_cmpuint(snapshot->files->len, ==, 0);
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static void test_what_is_not_there_is_refused(void) {
    g_autofree char *directory = directory_new();
    g_autofree char *path = g_build_filename(directory, "missing", NULL);
    check_refused(path, "No such file or directory");
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

/* Nobody writes into the pipe: whoever opens it waits. */
static void test_what_is_no_file_is_refused_at_once(void) {
    g_autofree char *directory = directory_new();
    g_autofree char *pipe = g_build_filename(directory, "pipe", NULL);
    g_autofree char *link = g_build_filename(directory, "link", NULL);
    g_assert_cmpint(mkfifo(pipe, 0600), ==, 0);
    g_assert_cmpint(symlink("pipe", link), ==, 0);
    check_refused(directory, "it is no file");
    check_refused(pipe, "it is no file");
    check_refused(link, "it is no file");
    check_refused("/dev/zero", "it is no file");
    g_assert_cmpint(g_unlink(link), ==, 0);
    g_assert_cmpint(g_unlink(pipe), ==, 0);
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

static void test_a_file_has_at_most_1_mib(void) {
    g_autofree char *directory = directory_new();
    g_autofree char *content = g_malloc0(MAX_BYTES + 1);
    g_autofree char *largest = file_new(directory, "largest", content, MAX_BYTES);
    g_autofree char *larger = file_new(directory, "larger", content, MAX_BYTES + 1);
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) contents = vmsnap_extra_files_load((const char *const[]){largest, NULL}, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(g_bytes_get_size(g_ptr_array_index(contents, 0)), ==, MAX_BYTES);
    check_refused(larger, "more than 1 MiB");
    g_assert_cmpint(g_unlink(largest), ==, 0);
    g_assert_cmpint(g_unlink(larger), ==, 0);
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

/* The first one, which could be read, is not leaked either. */
static void test_one_bad_file_is_enough(void) {
    g_autofree char *directory = directory_new();
    g_autofree char *good = file_new(directory, "good", "x", 1);
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_extra_files_load((const char *const[]){good, "/nonexistent/file", NULL}, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "/nonexistent/file"));
    g_assert_cmpint(g_unlink(good), ==, 0);
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/extra-files/get-the-last-parts-of-their-paths", test_files_get_the_last_parts_of_their_paths);
    g_test_add_func("/extra-files/none-are-none", test_none_are_none);
    g_test_add_func("/extra-files/what-is-not-there-is-refused", test_what_is_not_there_is_refused);
    g_test_add_func("/extra-files/what-is-no-file-is-refused-at-once", test_what_is_no_file_is_refused_at_once);
    g_test_add_func("/extra-files/a-file-has-at-most-1-mib", test_a_file_has_at_most_1_mib);
    g_test_add_func("/extra-files/one-bad-file-is-enough", test_one_bad_file_is_enough);
    return g_test_run();
}
