/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Directories: who may enter, what is removed, and what is never followed. */
#include "backend/dirs.h"

#include "vmsnap/error.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOBODY 65534

/* A directory of the test's own, as everybody may use it. */
static char *make_playground(void) {
    g_autoptr(GError) error = NULL;
    char *path = g_dir_make_tmp("vmsnap-XXXXXX", &error);
    g_assert_no_error(error);
    g_assert_cmpint(chmod(path, 0777), ==, 0);
    return path;
}

static void remove_playground(const char *path) {
    const char *const arguments[] = {"rm", "-rf", path, NULL};
    g_assert_true(
        g_spawn_sync(NULL, (char **)arguments, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL));
}

static mode_t mode_of(const char *path) {
    struct stat status;
    g_assert_cmpint(lstat(path, &status), ==, 0);
    return status.st_mode & 07777;
}

static void write_file(const char *directory, const char *name) {
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_assert_true(g_file_set_contents(path, "x", 1, NULL));
}

static gboolean exists(const char *directory, const char *name) {
    g_autofree char *path = g_build_filename(directory, name, NULL);
    struct stat status;
    return lstat(path, &status) == 0;
}

static void check_error(const GError *error, const char *path) {
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_null(strchr(error->message, '\n'));
    g_autofree char *quoted = g_strdup_printf("'%s'", path);
    g_assert_nonnull(strstr(error->message, quoted));
}

static void test_a_base_lets_others_pass_but_not_list(void) {
    static const mode_t masks[] = {0, 022, 077};
    for (size_t i = 0; i < G_N_ELEMENTS(masks); i++) {
        g_autofree char *playground = make_playground();
        g_autofree char *base = g_build_filename(playground, "parent", "base", NULL);
        g_autoptr(GError) error = NULL;
        mode_t before = umask(masks[i]);
        g_assert_true(vmsnap_dirs_make_base(base, &error));
        (void)umask(before);
        g_assert_no_error(error);
        g_assert_cmpuint(mode_of(base), ==, 0711);
        remove_playground(playground);
    }
}

/* An administrator may have closed it more than we would; one that is more open than ours is not left so. */
static void test_a_base_that_exists_is_opened_no_further(void) {
    static const mode_t modes[][2] = {{0700, 0700}, {0711, 0711}, {0755, 0711}, {0777, 0711}};
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autofree char *playground = make_playground();
        g_autofree char *base = g_build_filename(playground, "base", NULL);
        g_autoptr(GError) error = NULL;
        g_assert_cmpint(mkdir(base, 0700), ==, 0);
        g_assert_cmpint(chmod(base, modes[i][0]), ==, 0);
        write_file(base, "file");
        g_assert_true(vmsnap_dirs_make_base(base, &error));
        g_assert_no_error(error);
        g_assert_cmpuint(mode_of(base), ==, modes[i][1]);
        g_assert_true(exists(base, "file"));
        remove_playground(playground);
    }
}

/* Whoever made it could watch what is in it, or wait there for us. */
static void test_somebody_elses_directory_is_no_base(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *base = g_build_filename(playground, "base", NULL), *link = g_build_filename(playground, "l", NULL);
    g_autoptr(GError) error = NULL, link_error = NULL;
    g_assert_cmpint(mkdir(base, 0711), ==, 0);
    g_assert_cmpint(symlink(base, link), ==, 0);
    g_assert_false(vmsnap_dirs_make_base(link, &link_error));
    check_error(link_error, link);
    if (geteuid() == 0) {
        g_assert_cmpint(chown(base, NOBODY, NOBODY), ==, 0);
        g_assert_false(vmsnap_dirs_make_base(base, &error));
        check_error(error, base);
    }
    remove_playground(playground);
}

static void test_a_base_that_cannot_be_made_is_an_error(void) {
    g_autofree char *playground = make_playground();
    write_file(playground, "file");
    g_autofree char *file = g_build_filename(playground, "file", NULL);
    g_autofree char *base = g_build_filename(file, "base", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_false(vmsnap_dirs_make_base(base, &error));
    check_error(error, file);
    remove_playground(playground);
}

static void test_a_file_is_no_base(void) {
    g_autofree char *playground = make_playground();
    write_file(playground, "base");
    g_autofree char *base = g_build_filename(playground, "base", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_false(vmsnap_dirs_make_base(base, &error));
    check_error(error, base);
    remove_playground(playground);
}

static void test_a_private_directory_is_its_owners_alone(void) {
    static const mode_t masks[] = {0, 022, 077};
    for (size_t i = 0; i < G_N_ELEMENTS(masks); i++) {
        g_autofree char *playground = make_playground();
        g_autofree char *path = g_build_filename(playground, "private", NULL);
        g_autoptr(GError) error = NULL;
        mode_t before = umask(masks[i]);
        g_assert_true(vmsnap_dirs_make_private(path, geteuid(), getegid(), &error));
        (void)umask(before);
        g_assert_no_error(error);
        g_assert_cmpuint(mode_of(path), ==, 0700);
        remove_playground(playground);
    }
}

static void test_a_private_directory_can_be_given_away(void) {
    if (geteuid() != 0) {
        g_test_skip("only root can give a directory away");
        return;
    }
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_dirs_make_private(path, 64055, 107, &error));
    g_assert_no_error(error);
    struct stat status;
    g_assert_cmpint(stat(path, &status), ==, 0);
    g_assert_cmpuint(status.st_uid, ==, 64055);
    g_assert_cmpuint(status.st_gid, ==, 107);
    g_assert_cmpuint(status.st_mode & 07777, ==, 0700);
    remove_playground(playground);
}

/* libvirtd, which is root and follows links, makes files there: QEMU's user must not be able to. */
static void test_a_passage_lets_a_group_through_and_no_more(void) {
    static const mode_t masks[] = {0, 022, 077};
    gid_t group = geteuid() == 0 ? 107 : getegid();
    for (size_t i = 0; i < G_N_ELEMENTS(masks); i++) {
        g_autofree char *playground = make_playground();
        g_autofree char *path = g_build_filename(playground, "passage", NULL);
        g_autoptr(GError) error = NULL;
        mode_t before = umask(masks[i]);
        g_assert_true(vmsnap_dirs_make_passage(path, group, &error));
        (void)umask(before);
        g_assert_no_error(error);
        struct stat status;
        g_assert_cmpint(stat(path, &status), ==, 0);
        g_assert_cmpuint(status.st_uid, ==, geteuid());
        g_assert_cmpuint(status.st_gid, ==, group);
        g_assert_cmpuint(status.st_mode & 07777, ==, 0710);
        remove_playground(playground);
    }
}

static void test_a_private_directory_that_cannot_be_given_away_is_gone(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autoptr(GError) error = NULL;
    gboolean root = geteuid() == 0;
    if (root)
        g_assert_cmpint(seteuid(NOBODY), ==, 0);
    gboolean made = vmsnap_dirs_make_private(path, 1, 1, &error);
    if (root)
        g_assert_cmpint(seteuid(0), ==, 0);
    g_assert_false(made);
    check_error(error, path);
    g_assert_false(exists(playground, "private"));
    remove_playground(playground);
}

/* Somebody else may have made it, and would see what is in it. */
static void test_what_exists_does_not_become_private(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autofree char *link = g_build_filename(playground, "link", NULL);
    g_autoptr(GError) error = NULL, link_error = NULL;
    g_assert_cmpint(mkdir(path, 0755), ==, 0);
    g_assert_cmpint(symlink(path, link), ==, 0);
    g_assert_false(vmsnap_dirs_make_private(path, geteuid(), getegid(), &error));
    check_error(error, path);
    g_assert_false(vmsnap_dirs_make_private(link, geteuid(), getegid(), &link_error));
    check_error(link_error, link);
    g_assert_cmpuint(mode_of(path), ==, 0755);
    remove_playground(playground);
}

static void test_removal_takes_the_files_along(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_dirs_make_private(path, geteuid(), getegid(), NULL));
    write_file(path, "vda.qcow2");
    write_file(path, ".hidden");
    g_autofree char *fifo = g_build_filename(path, "fifo", NULL);
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    g_assert_true(vmsnap_dirs_remove_private(path, &error));
    g_assert_no_error(error);
    g_assert_false(exists(playground, "private"));
    remove_playground(playground);
}

static void test_removal_of_nothing_is_no_error(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_dirs_remove_private(path, &error));
    g_assert_no_error(error);
    remove_playground(playground);
}

static void test_removal_follows_no_links(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autofree char *outside = g_build_filename(playground, "outside", NULL);
    g_autofree char *outside_file = g_build_filename(outside, "precious", NULL);
    g_autofree char *link_to_directory = g_build_filename(path, "directory", NULL);
    g_autofree char *link_to_file = g_build_filename(path, "file", NULL);
    g_assert_cmpint(mkdir(outside, 0700), ==, 0);
    write_file(outside, "precious");
    g_assert_true(vmsnap_dirs_make_private(path, geteuid(), getegid(), NULL));
    g_assert_cmpint(symlink(outside, link_to_directory), ==, 0);
    g_assert_cmpint(symlink(outside_file, link_to_file), ==, 0);
    g_assert_true(vmsnap_dirs_remove_private(path, NULL));
    g_assert_false(exists(playground, "private"));
    g_assert_true(exists(outside, "precious"));
    remove_playground(playground);
}

static void test_a_link_in_place_of_the_directory_is_an_error(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *outside = g_build_filename(playground, "outside", NULL);
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(mkdir(outside, 0700), ==, 0);
    write_file(outside, "precious");
    g_assert_cmpint(symlink(outside, path), ==, 0);
    g_assert_false(vmsnap_dirs_remove_private(path, &error));
    check_error(error, path);
    g_assert_true(exists(outside, "precious"));
    remove_playground(playground);
}

/* Whatever stands deeper was not made by vmsnap: the files of its own go, and the error names what stays. */
static void test_removal_leaves_foreign_directories(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autofree char *foreign = g_build_filename(path, "foreign", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_dirs_make_private(path, geteuid(), getegid(), NULL));
    g_assert_cmpint(mkdir(foreign, 0700), ==, 0);
    write_file(foreign, "precious");
    write_file(path, "vda.qcow2");
    g_assert_false(vmsnap_dirs_remove_private(path, &error));
    check_error(error, path);
    g_assert_nonnull(strstr(error->message, "; remove it by hand"));
    g_assert_true(exists(foreign, "precious"));
    g_assert_false(exists(path, "vda.qcow2"));
    remove_playground(playground);
}

/* QEMU's user may make directories beside its socket; that must keep nothing from being removed. */
static void test_removal_takes_empty_directories_along(void) {
    g_autofree char *playground = make_playground();
    g_autofree char *path = g_build_filename(playground, "private", NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_dirs_make_private(path, geteuid(), getegid(), NULL));
    write_file(path, "vda.qcow2");
    static const char *const names[] = {"directory", ".hidden"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *inner = g_build_filename(path, names[i], NULL);
        g_assert_cmpint(mkdir(inner, 0), ==, 0);
    }
    g_assert_true(vmsnap_dirs_remove_private(path, &error));
    g_assert_no_error(error);
    g_assert_false(exists(playground, "private"));
    remove_playground(playground);
}

static void test_root_and_users_have_places_of_their_own(void) {
    gboolean root = geteuid() == 0;
    if (root) {
        g_autofree char *runtime = vmsnap_dirs_get_runtime(), *state = vmsnap_dirs_get_state();
        g_assert_cmpstr(runtime, ==, "/run/vmsnap");
        g_assert_cmpstr(state, ==, "/var/lib/vmsnap");
        g_assert_cmpint(seteuid(NOBODY), ==, 0);
    }
    g_autofree char *runtime = vmsnap_dirs_get_runtime(), *state = vmsnap_dirs_get_state();
    if (root)
        g_assert_cmpint(seteuid(0), ==, 0);
    g_assert_cmpstr(runtime, ==, "/some/runtime/vmsnap");
    g_assert_cmpstr(state, ==, "/some/state/vmsnap");
}

int main(int argc, char **argv) {
    g_assert_true(g_setenv("XDG_RUNTIME_DIR", "/some/runtime", TRUE));
    g_assert_true(g_setenv("XDG_STATE_HOME", "/some/state", TRUE));
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/dirs/a-base-lets-others-pass-but-not-list", test_a_base_lets_others_pass_but_not_list);
    g_test_add_func("/dirs/a-base-that-exists-is-opened-no-further", test_a_base_that_exists_is_opened_no_further);
    g_test_add_func("/dirs/somebody-elses-directory-is-no-base", test_somebody_elses_directory_is_no_base);
    g_test_add_func("/dirs/a-base-that-cannot-be-made-is-an-error", test_a_base_that_cannot_be_made_is_an_error);
    g_test_add_func("/dirs/a-file-is-no-base", test_a_file_is_no_base);
    g_test_add_func("/dirs/a-private-directory-is-its-owners-alone", test_a_private_directory_is_its_owners_alone);
    g_test_add_func("/dirs/a-private-directory-can-be-given-away", test_a_private_directory_can_be_given_away);
    g_test_add_func("/dirs/a-passage-lets-a-group-through-and-no-more",
                    test_a_passage_lets_a_group_through_and_no_more);
    g_test_add_func("/dirs/a-private-directory-that-cannot-be-given-away-is-gone",
                    test_a_private_directory_that_cannot_be_given_away_is_gone);
    g_test_add_func("/dirs/what-exists-does-not-become-private", test_what_exists_does_not_become_private);
    g_test_add_func("/dirs/removal-takes-the-files-along", test_removal_takes_the_files_along);
    g_test_add_func("/dirs/removal-of-nothing-is-no-error", test_removal_of_nothing_is_no_error);
    g_test_add_func("/dirs/removal-follows-no-links", test_removal_follows_no_links);
    g_test_add_func("/dirs/a-link-in-place-of-the-directory-is-an-error",
                    test_a_link_in_place_of_the_directory_is_an_error);
    g_test_add_func("/dirs/removal-leaves-foreign-directories", test_removal_leaves_foreign_directories);
    g_test_add_func("/dirs/removal-takes-empty-directories-along", test_removal_takes_empty_directories_along);
    g_test_add_func("/dirs/root-and-users-have-places-of-their-own", test_root_and_users_have_places_of_their_own);
    return g_test_run();
}
