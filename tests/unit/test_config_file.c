/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Copies of small files: complete, of their own, and of regular files only. */
#include "backend/config_file.h"

#include "vmsnap/error.h"

#include <glib/gstdio.h>
#include <grp.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOBODY 65534

typedef struct {
    char *directory;
    char *path;
} Fixture;

static void fixture_init(Fixture *fixture, const char *content, gsize length) {
    fixture->directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    fixture->path = g_build_filename(fixture->directory, "nvram.fd", NULL);
    if (content)
        g_assert_true(g_file_set_contents(fixture->path, content, (gssize)length, NULL));
}

/* A copy has no name, so nothing may be left but the file. */
static void fixture_clear(Fixture *fixture) {
    (void)g_remove(fixture->path);
    g_assert_cmpint(g_rmdir(fixture->directory), ==, 0);
    g_free(fixture->path);
    g_free(fixture->directory);
}

static void test_a_copy_has_all_bytes(void) {
    static const gsize sizes[] = {0, 1, 4095, 4096, 4097, 5 << 20};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *content = g_malloc(sizes[i] + 1);
        for (gsize n = 0; n < sizes[i]; n++)
            content[n] = (char)g_test_rand_int();
        Fixture fixture;
        g_autoptr(GError) error = NULL;
        fixture_init(&fixture, content, sizes[i]);
        g_autoptr(GBytes) copy = vmsnap_config_file_load(fixture.path, geteuid(), getegid(), fixture.directory, &error);
        g_assert_no_error(error);
        g_assert_cmpmem(g_bytes_get_data(copy, NULL), g_bytes_get_size(copy), content, sizes[i]);
        fixture_clear(&fixture);
    }
}

static void test_later_changes_are_not_seen(void) {
    Fixture fixture;
    fixture_init(&fixture, "the instant", 11);
    g_autoptr(GBytes) copy = vmsnap_config_file_load(fixture.path, geteuid(), getegid(), fixture.directory, NULL);
    FILE *file = g_fopen(fixture.path, "r+");
    g_assert_cmpint(fputs("overwritten", file), >=, 0);
    g_assert_cmpint(fclose(file), ==, 0);
    g_assert_cmpint(truncate(fixture.path, 0), ==, 0);
    g_assert_cmpint(g_remove(fixture.path), ==, 0);
    g_assert_cmpmem(g_bytes_get_data(copy, NULL), g_bytes_get_size(copy), "the instant", 11);
    fixture_clear(&fixture);
}

static void check_refused(const char *path, const char *directory) {
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_config_file_load(path, geteuid(), getegid(), directory, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, path));
}

static void test_what_cannot_be_copied_is_an_error_that_names_it(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, 0);
    check_refused(fixture.path, fixture.directory);
    check_refused(fixture.directory, fixture.directory);
    check_refused("/dev/zero", fixture.directory);
    g_assert_true(g_file_set_contents(fixture.path, "x", 1, NULL));
    check_refused(fixture.path, "/nowhere");
    fixture_clear(&fixture);
}

static void test_a_fifo_does_not_keep_anybody_waiting(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, 0);
    g_assert_cmpint(mkfifo(fixture.path, 0600), ==, 0);
    check_refused(fixture.path, fixture.directory);
    fixture_clear(&fixture);
}

/* QEMU's user may have put a link to any file in place of its firmware variables. */
static void test_root_opens_files_with_the_rights_of_their_user(void) {
    if (geteuid() != 0) {
        g_test_skip("only root has rights to give up");
        return;
    }
    Fixture fixture;
    g_autoptr(GError) error = NULL;
    fixture_init(&fixture, "secret", 6);
    g_assert_cmpint(chmod(fixture.directory, 0755), ==, 0);
    g_assert_cmpint(chmod(fixture.path, 0640), ==, 0);
    g_assert_null(vmsnap_config_file_load(fixture.path, NOBODY, NOBODY, fixture.directory, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_cmpint(chown(fixture.path, NOBODY, 0), ==, 0);
    g_autoptr(GBytes) as_owner = vmsnap_config_file_load(fixture.path, NOBODY, NOBODY, fixture.directory, NULL);
    g_assert_nonnull(as_owner);
    g_assert_cmpint(chown(fixture.path, 0, NOBODY), ==, 0);
    g_autoptr(GBytes) as_group = vmsnap_config_file_load(fixture.path, NOBODY, NOBODY, fixture.directory, NULL);
    g_assert_nonnull(as_group);
    fixture_clear(&fixture);
}

static void test_root_has_its_own_rights_back_afterwards(void) {
    if (geteuid() != 0) {
        g_test_skip("only root has rights to give up");
        return;
    }
    Fixture fixture;
    gid_t groups[] = {4242, 4243}, groups_after[16] = {0};
    g_assert_cmpint(setgroups(G_N_ELEMENTS(groups), groups), ==, 0);
    fixture_init(&fixture, "secret", 6);
    g_assert_cmpint(chmod(fixture.path, 0600), ==, 0);
    g_assert_null(vmsnap_config_file_load(fixture.path, NOBODY, NOBODY, fixture.directory, NULL));
    int n_after = getgroups(G_N_ELEMENTS(groups_after), groups_after);
    g_assert_cmpint(n_after, ==, G_N_ELEMENTS(groups));
    g_assert_cmpmem(groups_after, sizeof groups, groups, sizeof groups);
    g_autoptr(GBytes) own = vmsnap_config_file_load(fixture.path, 0, 0, fixture.directory, NULL);
    g_assert_nonnull(own);
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/config-file/a-copy-has-all-bytes", test_a_copy_has_all_bytes);
    g_test_add_func("/config-file/later-changes-are-not-seen", test_later_changes_are_not_seen);
    g_test_add_func("/config-file/what-cannot-be-copied-is-an-error-that-names-it",
                    test_what_cannot_be_copied_is_an_error_that_names_it);
    g_test_add_func("/config-file/a-fifo-does-not-keep-anybody-waiting", test_a_fifo_does_not_keep_anybody_waiting);
    g_test_add_func("/config-file/root-opens-files-with-the-rights-of-their-user",
                    test_root_opens_files_with_the_rights_of_their_user);
    g_test_add_func("/config-file/root-has-its-own-rights-back-afterwards",
                    test_root_has_its_own_rights_back_afterwards);
    return g_test_run();
}
