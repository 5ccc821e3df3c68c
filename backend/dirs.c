/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU makes the NBD socket, so its directory belongs to QEMU's user, and mode 0700 is all that keeps others away:
 * libvirt makes the socket itself accessible to everybody. Since QEMU's user may do there as it likes, nothing in it is
 * followed or trusted.
 *
 * libvirtd gives scratch files to QEMU's user, as root and following links, so there QEMU's user may only pass through:
 * in a directory of its own it could have root give away anything.
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
#define PASSAGE_MODE 0710

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

/* One that is there already may have been made by somebody who wants to watch, or to wait for us. */
static gboolean base_check(const char *path, GError **error) {
    struct stat status;
    if (lstat(path, &status) != 0)
        return set_errno_error(error, "use the directory", path);
    gboolean too_open = (status.st_mode & 0777 & ~BASE_MODE) != 0;
    if (S_ISDIR(status.st_mode) && status.st_uid == geteuid())
        return !too_open || chmod(path, BASE_MODE) == 0 || set_errno_error(error, "set the mode of", path);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use the directory '%s': it is no directory, or belongs to another user; remove it", path);
    return FALSE;
}

gboolean vmsnap_dirs_make_base(const char *path, GError **error) {
    g_autofree char *parent = g_path_get_dirname(path);
    if (g_mkdir_with_parents(parent, 0755) != 0)
        return set_errno_error(error, "make the directory", parent);
    if (mkdir(path, BASE_MODE) == 0)
        return chmod(path, BASE_MODE) == 0 || set_errno_error(error, "set the mode of", path);
    return errno == EEXIST ? base_check(path, error) : set_errno_error(error, "make the directory", path);
}

static gboolean directory_make(const char *path, mode_t mode, uid_t uid, gid_t gid, GError **error) {
    if (mkdir(path, PRIVATE_MODE) != 0)
        return set_errno_error(error, "make the directory", path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    gboolean is_ours = uid == geteuid() && gid == getegid();
    gboolean made = fd >= 0 && fchmod(fd, mode) == 0 && (is_ours || fchown(fd, uid, gid) == 0);
    if (!made) {
        set_errno_error(error, "give to QEMU's user the directory", path);
        (void)rmdir(path);
    }
    if (fd >= 0)
        (void)close(fd);
    return made;
}

gboolean vmsnap_dirs_make_private(const char *path, uid_t uid, gid_t gid, GError **error) {
    return directory_make(path, PRIVATE_MODE, uid, gid, error);
}

gboolean vmsnap_dirs_make_passage(const char *path, gid_t gid, GError **error) {
    return directory_make(path, PASSAGE_MODE, geteuid(), gid, error);
}

/* Of a directory only an empty one goes: Linux says EISDIR for it, POSIX EPERM. No link is followed, either way. */
static void entry_remove(int directory_fd, const char *name) {
    if (unlinkat(directory_fd, name, 0) != 0 && (errno == EISDIR || errno == EPERM))
        (void)unlinkat(directory_fd, name, AT_REMOVEDIR);
}

static void remove_entries(DIR *directory) {
    struct dirent *entry;
    while ((entry = readdir(directory)))
        if (!g_str_equal(entry->d_name, ".") && !g_str_equal(entry->d_name, ".."))
            entry_remove(dirfd(directory), entry->d_name);
}

/* What is still in it was put there by others, and no later try would do better. */
static gboolean emptied_remove(const char *path, GError **error) {
    if (rmdir(path) == 0 || errno == ENOENT)
        return TRUE;
    if (errno != ENOTEMPTY && errno != EEXIST)
        return set_errno_error(error, "remove the directory", path);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to remove the directory '%s': %s; remove it by hand",
                path, g_strerror(ENOTEMPTY));
    return FALSE;
}

gboolean vmsnap_dirs_remove_private(const char *path, GError **error) {
    if (!path)
        return TRUE;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    if (!directory) {
        if (fd >= 0)
            (void)close(fd);
        return errno == ENOENT || set_errno_error(error, "remove the directory", path);
    }
    remove_entries(directory);
    (void)closedir(directory);
    return emptied_remove(path, error);
}
