/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where scratch files go, whether there is room, and how much they use. */
#include "backend/scratch.h"

#include "ordinary_user.h"
#include "vmsnap/backend.h"
#include "vmsnap/error.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define UUID "aaaaaaaa-0000-4000-8000-000000000000"
#define MIB (UINT64_C(1) << 20)
/* What beside the reserve must be there. */
#define ROOM_BYTES (16 * MIB)
#define TMPFS_BYTES (20 * MIB)

/* These are immutable after main() has begun. */
static char *playground;
static const char *small; /* a filesystem of TMPFS_BYTES that nobody else uses; or NULL where none can be made */

static char *path_of(const char *name) {
    return g_build_filename(playground, name, NULL);
}

static void check_chosen(const char *base_dir, uint64_t reserve_bytes, const char *expected_base) {
    g_autoptr(GError) error = NULL;
    g_autofree char *expected = g_build_filename(expected_base, "vmsnap-" UUID, NULL);
    g_autofree char *chosen = vmsnap_scratch_choose(base_dir, UUID, reserve_bytes, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(chosen, ==, expected);
    /* It is chosen, not made. */
    g_assert_false(g_file_test(chosen, G_FILE_TEST_EXISTS));
}

/* The message names the directory, has @says in it, and tells a way out. */
static void check_refused(const char *base_dir, uint64_t reserve_bytes, const char *says) {
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_scratch_choose(base_dir, UUID, reserve_bytes, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_null(strchr(error->message, '\n'));
    g_autofree char *quoted = g_strdup_printf("scratch directory '%s'", base_dir);
    if (!strstr(error->message, quoted) || !strstr(error->message, says) || !strstr(error->message, "-o scratch=DIR"))
        g_error("'%s' does not say all of: %s, %s, a remedy", error->message, quoted, says);
}

static void test_the_default_is_made(void) {
    g_autofree char *base = path_of("state/vmsnap");
    struct stat status;
    check_chosen(NULL, 0, base);
    g_assert_cmpint(stat(base, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 07777, ==, 0711);
    check_chosen(NULL, 0, base);
    g_autofree char *state = path_of("state");
    remove_tree(state);
}

static void test_a_default_that_cannot_be_made_is_an_error(void) {
    g_autofree char *state = path_of("state");
    g_autoptr(GError) error = NULL;
    g_assert_true(g_file_set_contents(state, "x", 1, NULL));
    g_assert_null(vmsnap_scratch_choose(NULL, UUID, 0, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, state));
    g_assert_cmpint(unlink(state), ==, 0);
}

static void test_what_the_user_names_is_not_made(void) {
    g_autofree char *missing = path_of("missing"), *file = path_of("file"), *below = path_of("file/below");
    check_chosen(playground, 0, playground);
    check_refused(missing, 0, "No such file or directory");
    g_assert_false(g_file_test(missing, G_FILE_TEST_EXISTS));
    g_assert_true(g_file_set_contents(file, "x", 1, NULL));
    check_refused(file, 0, "Not a directory");
    check_refused(below, 0, "Not a directory");
    g_assert_cmpint(unlink(file), ==, 0);
}

static void test_a_name_may_lead_there_by_a_link(void) {
    g_autofree char *link = path_of("link");
    g_assert_cmpint(symlink(playground, link), ==, 0);
    check_chosen(link, 0, link);
    g_assert_cmpint(unlink(link), ==, 0);
}

/* Others use this filesystem meanwhile, so only what is far from the bound is certain. */
static void test_a_reserve_is_kept(void) {
    struct statvfs filesystem;
    g_assert_cmpint(statvfs(playground, &filesystem), ==, 0);
    uint64_t left_bytes = (uint64_t)filesystem.f_bavail * filesystem.f_frsize;
    if (left_bytes < 4 * ROOM_BYTES) {
        g_test_skip("there is too little room here");
        return;
    }
    check_chosen(playground, left_bytes / 2, playground);
    uint64_t size_bytes = (uint64_t)filesystem.f_blocks * filesystem.f_frsize;
    check_refused(playground, size_bytes, "are to stay free; free some space, lower -o scratch_reserve=SIZE");
    /* No number is so large that it is none. */
    check_refused(playground, UINT64_MAX - ROOM_BYTES, "17592186044399 MiB are to stay free");
    check_refused(playground, UINT64_MAX - ROOM_BYTES + 1, "17592186044400 MiB are to stay free");
    check_refused(playground, UINT64_MAX, "17592186044415 MiB are to stay free");
}

static void fill(const char *path, off_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(posix_fallocate(fd, 0, bytes), ==, 0);
    (void)close(fd);
}

static void test_the_bound_is_exact(void) {
    if (!small) {
        g_test_skip("no filesystem can be mounted here");
        return;
    }
    uint64_t most_bytes = TMPFS_BYTES - ROOM_BYTES;
    check_chosen(small, 0, small);
    check_chosen(small, most_bytes, small);
    check_refused(small, most_bytes + 1, "its filesystem is full, with 20 MiB left, of which 4 MiB are to stay free");
    g_autofree char *file = g_build_filename(small, "file", NULL);
    fill(file, (off_t)most_bytes);
    check_chosen(small, 0, small);
    check_refused(small, 1, "with 16 MiB left, of which 0 MiB are to stay free");
    fill(file, (off_t)most_bytes + 4096);
    check_refused(small, 0, "with 15 MiB left, of which 0 MiB are to stay free");
    fill(file, TMPFS_BYTES);
    check_refused(small, 0, "with 0 MiB left, of which 0 MiB are to stay free");
    g_assert_cmpint(unlink(file), ==, 0);
}

/* Whose home may be on a filesystem that other hosts use, too. */
static void test_an_ordinary_user_sweeps_nothing(void) {
    g_autofree char *orphan = path_of("state/vmsnap/vmsnap-" UUID);
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(g_mkdir_with_parents(orphan, 0700), ==, 0);
    g_assert_true(vmsnap_scratch_sweep(&error));
    g_assert_no_error(error);
    g_assert_true(g_file_test(orphan, G_FILE_TEST_IS_DIR));
    g_autofree char *state = path_of("state");
    remove_tree(state);
    g_assert_true(vmsnap_scratch_sweep(&error));
}

static int open_directory(const char *path) {
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static uint64_t used_bytes(const char *directory, const char *name) {
    uint64_t used = 0, left = 0;
    int fd = open_directory(directory);
    g_assert_true(vmsnap_scratch_measure(fd, name, &used, &left));
    (void)close(fd);
    return used;
}

/* Not how long it is: scratch files are sparse. */
static void test_what_a_file_uses_is_told(void) {
    g_autofree char *file = path_of("vda.qcow2");
    int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    g_assert_cmpint(ftruncate(fd, (off_t)1 << 40), ==, 0);
    g_assert_cmpuint(used_bytes(playground, "vda.qcow2"), <=, MIB);
    g_assert_cmpint(posix_fallocate(fd, (off_t)1 << 30, 3 * (off_t)MIB), ==, 0);
    g_assert_cmpuint(used_bytes(playground, "vda.qcow2"), >=, 3 * MIB);
    g_assert_cmpuint(used_bytes(playground, "vda.qcow2"), <=, 4 * MIB);
    (void)close(fd);
    g_assert_cmpint(unlink(file), ==, 0);
}

static void test_what_is_left_is_told(void) {
    if (!small) {
        g_test_skip("no filesystem can be mounted here");
        return;
    }
    g_autofree char *file = g_build_filename(small, "vda.qcow2", NULL);
    uint64_t used, left;
    int fd = open_directory(small);
    for (uint64_t bytes = 0; bytes <= TMPFS_BYTES; bytes += 5 * MIB) {
        if (bytes > 0)
            fill(file, (off_t)bytes);
        else
            g_assert_true(g_file_set_contents(file, "", 0, NULL));
        g_assert_true(vmsnap_scratch_measure(fd, "vda.qcow2", &used, &left));
        g_assert_cmpuint(used, ==, bytes);
        g_assert_cmpuint(left, ==, TMPFS_BYTES - bytes);
    }
    (void)close(fd);
    g_assert_cmpint(unlink(file), ==, 0);
}

static void test_a_file_that_is_not_there_has_no_measure(void) {
    uint64_t used = 42, left = 42;
    int fd = open_directory(playground);
    g_assert_false(vmsnap_scratch_measure(fd, "vda.qcow2", &used, &left));
    g_assert_false(vmsnap_scratch_measure(fd, "vda.qcow2/below", &used, &left));
    (void)close(fd);
    g_assert_false(vmsnap_scratch_measure(-1, "vda.qcow2", &used, &left));
    g_assert_cmpuint(used, ==, 42);
    g_assert_cmpuint(left, ==, 42);
}

static void test_a_link_is_not_followed(void) {
    g_autofree char *file = path_of("elsewhere"), *link = path_of("vda.qcow2"), *dangling = path_of("vdb.qcow2");
    fill(file, 3 * (off_t)MIB);
    g_assert_cmpint(symlink(file, link), ==, 0);
    g_assert_cmpint(symlink("/nowhere", dangling), ==, 0);
    g_assert_cmpuint(used_bytes(playground, "vda.qcow2"), <, MIB);
    g_assert_cmpuint(used_bytes(playground, "vdb.qcow2"), <, MIB);
    g_assert_cmpint(unlink(link), ==, 0);
    g_assert_cmpint(unlink(dangling), ==, 0);
    g_assert_cmpint(unlink(file), ==, 0);
}

/* Nobody but this process sees it, so it goes with it, and leaves no directory behind that it was mounted on. */
static void mount_small(void) {
    g_autofree char *options = g_strdup_printf("size=%" G_GUINT64_FORMAT ",mode=0777,huge=never", TMPFS_BYTES);
    if (geteuid() == 0 && unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
        mount("tmpfs", "/mnt", "tmpfs", MS_NOSUID | MS_NODEV, options) == 0)
        small = "/mnt";
}

/* What QEMU says of an image that is empty: no error, the size of the disk, and nothing in it. */
static void check_image(int dir_fd, uint64_t size_bytes) {
    g_autoptr(GError) error = NULL;
    g_autofree char *path = path_of("images/vda.qcow2"), *output = NULL;
    g_autofree char *size = g_strdup_printf("\"virtual-size\": %" G_GUINT64_FORMAT, size_bytes);
    const char *check[] = {"qemu-img", "check", "-q", path, NULL};
    const char *info[] = {"qemu-img", "info", "--output=json", path, NULL};
    int status;
    g_assert_true(vmsnap_scratch_make_image(dir_fd, "vda.qcow2", size_bytes, geteuid(), getegid(), &error));
    g_assert_no_error(error);
    g_assert_true(g_spawn_sync(NULL, (char **)check, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, &status, NULL));
    g_assert_true(g_spawn_check_wait_status(status, NULL));
    g_assert_true(g_spawn_sync(NULL, (char **)info, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &output, NULL, NULL, NULL));
    g_assert_nonnull(strstr(output, size));
    g_assert_null(strstr(output, "backing"));
    struct stat file;
    g_assert_cmpint(stat(path, &file), ==, 0);
    g_assert_cmpuint(file.st_mode & 07777, ==, 0600);
    /* What is there is not taken. */
    g_assert_false(vmsnap_scratch_make_image(dir_fd, "vda.qcow2", size_bytes, geteuid(), getegid(), &error));
    g_assert_nonnull(strstr(error->message, "'vda.qcow2'"));
    vmsnap_scratch_remove_image(dir_fd, "vda.qcow2");
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
}

static void test_images_are_empty(void) {
    static const uint64_t sizes[] = {
        512, 64 << 10, 512 * MIB, 512 * MIB + 512, UINT64_C(16) << 40, UINT64_C(255) << 40};
    g_autofree char *directory = path_of("images");
    g_assert_cmpint(g_mkdir(directory, 0700), ==, 0);
    int dir_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++)
        check_image(dir_fd, sizes[i]);
    (void)close(dir_fd);
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

int main(int argc, char **argv) {
    mount_small();
    become_ordinary_user();
    playground = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    g_autofree char *state = path_of("state");
    g_assert_true(g_setenv("XDG_STATE_HOME", state, TRUE));
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/scratch/the-default-is-made", test_the_default_is_made);
    g_test_add_func("/scratch/a-default-that-cannot-be-made-is-an-error",
                    test_a_default_that_cannot_be_made_is_an_error);
    g_test_add_func("/scratch/what-the-user-names-is-not-made", test_what_the_user_names_is_not_made);
    g_test_add_func("/scratch/a-name-may-lead-there-by-a-link", test_a_name_may_lead_there_by_a_link);
    g_test_add_func("/scratch/a-reserve-is-kept", test_a_reserve_is_kept);
    g_test_add_func("/scratch/the-bound-is-exact", test_the_bound_is_exact);
    g_test_add_func("/scratch/an-ordinary-user-sweeps-nothing", test_an_ordinary_user_sweeps_nothing);
    g_test_add_func("/scratch/what-a-file-uses-is-told", test_what_a_file_uses_is_told);
    g_test_add_func("/scratch/what-is-left-is-told", test_what_is_left_is_told);
    g_test_add_func("/scratch/a-file-that-is-not-there-has-no-measure", test_a_file_that_is_not_there_has_no_measure);
    g_test_add_func("/scratch/a-link-is-not-followed", test_a_link_is_not_followed);
    g_test_add_func("/scratch/images-are-empty", test_images_are_empty);
    int result = g_test_run();
    (void)g_rmdir(playground);
    g_free(playground);
    return result;
}
