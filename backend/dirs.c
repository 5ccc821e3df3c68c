/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A private directory belongs to the user that QEMU runs as, and mode 0700 is all that keeps other users away from the
 * NBD socket in it: libvirt makes the socket itself accessible to everybody. Since QEMU's user may do there as it
 * likes, nothing in it is ever followed or trusted.
 */
#include "dirs.h"

#include "vmsnap/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BASE_MODE 0711
#define PRIVATE_MODE 0700

char *vmsnap_dirs_get_runtime(void) {
    return geteuid() == 0 ? g_strdup("/run/vmsnap") : g_build_filename(g_get_user_runtime_dir(), "vmsnap", NULL);
}

char *vmsnap_dirs_get_state(void) {
    return geteuid() == 0 ? g_strdup("/var/lib/vmsnap") : g_build_filename(g_get_user_state_dir(), "vmsnap", NULL);
}

static gboolean set_errno_error(GError **error, const char *verb, const char *path) {
    int code = errno;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to %s '%s': %s", verb, path, g_strerror(code));
    return FALSE;
}

gboolean vmsnap_dirs_make_base(const char *path, GError **error) {
    g_autofree char *parent = g_path_get_dirname(path);
    if (g_mkdir_with_parents(parent, 0755) != 0)
        return set_errno_error(error, "make the directory", parent);
    if (mkdir(path, BASE_MODE) == 0)
        return chmod(path, BASE_MODE) == 0 || set_errno_error(error, "set the mode of", path);
    gboolean exists = errno == EEXIST && g_file_test(path, G_FILE_TEST_IS_DIR);
    return exists || set_errno_error(error, "make the directory", path);
}

gboolean vmsnap_dirs_make_private(const char *path, uid_t uid, gid_t gid, GError **error) {
    if (mkdir(path, PRIVATE_MODE) != 0)
        return set_errno_error(error, "make the directory", path);
    gboolean is_ours = uid == geteuid();
    if (is_ours || lchown(path, uid, gid) == 0)
        return TRUE;
    set_errno_error(error, "give the directory to QEMU's user:", path);
    (void)rmdir(path);
    return FALSE;
}

static void remove_entries(DIR *directory) {
    struct dirent *entry;
    while ((entry = readdir(directory)))
        if (!g_str_equal(entry->d_name, ".") && !g_str_equal(entry->d_name, ".."))
            (void)unlinkat(dirfd(directory), entry->d_name, 0);
}

gboolean vmsnap_dirs_remove_private(const char *path, GError **error) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    if (!directory) {
        if (fd >= 0)
            (void)close(fd);
        return errno == ENOENT || set_errno_error(error, "remove the directory", path);
    }
    remove_entries(directory);
    (void)closedir(directory);
    return rmdir(path) == 0 || errno == ENOENT || set_errno_error(error, "remove the directory", path);
}
