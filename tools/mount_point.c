/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checks that are made before anything is begun, so that what cannot be mounted costs the guest nothing. */
#include "mount_point.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <libmount.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MOUNTS "/proc/self/mountinfo"
#define FUSE_DEVICE "/dev/fuse"
#define FUSE_CONF "/etc/fuse.conf"
#define FUSE_TYPE "fuse.vmsnap"

gboolean vmsnap_mount_point_is_vmsnap(const char *path) {
    struct libmnt_table *table = mnt_new_table_from_file(MOUNTS);
    struct libmnt_fs *fs = table ? mnt_table_find_target(table, path, MNT_ITER_BACKWARD) : NULL;
    gboolean found = fs && g_strcmp0(mnt_fs_get_fstype(fs), FUSE_TYPE) == 0;
    mnt_unref_table(table);
    return found;
}

/* The kernel's table tells that without a look at the path, which might wait for automount, or mount it again. */
static gboolean is_on_top(const char *path, uint64_t mount_id) {
    struct libmnt_table *table = mnt_new_table_from_file(MOUNTS);
    struct libmnt_fs *fs = table ? mnt_table_find_target(table, path, MNT_ITER_BACKWARD) : NULL;
    gboolean found = fs && (uint64_t)mnt_fs_get_id(fs) == mount_id;
    mnt_unref_table(table);
    return found;
}

static gboolean unmount_lazily(const char *path) {
    const char *argv[] = {"fusermount3", "-u", "-z", "-q", "--", path, NULL};
    g_autoptr(GError) error = NULL;
    int status = 0;
    gboolean unmounted = FALSE;
    if (geteuid() != 0)
        unmounted =
            g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, &status, &error) &&
            g_spawn_check_wait_status(status, &error);
    else
        unmounted = umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0;
    if (!unmounted)
        g_warning("failed to unmount '%s': %s", path, error ? error->message : g_strerror(errno));
    return unmounted;
}

/* libfuse's own unmount closes the descriptor that replies go to, and leaves an aborted mount in its place. */
gboolean vmsnap_mount_point_detach(const char *path, uint64_t mount_id) {
    if (mount_id == 0 || !is_on_top(path, mount_id))
        return FALSE;
    (void)unmount_lazily(path);
    return TRUE;
}

static gboolean is_dead(const char *path) {
    struct statfs status;
    return vmsnap_mount_point_is_vmsnap(path) && statfs(path, &status) != 0 &&
           (errno == ENOTCONN || errno == ECONNABORTED);
}

void vmsnap_mount_point_clear_dead(const char *path) {
    while (is_dead(path) && unmount_lazily(path))
        continue;
}

static char *fail(GError **error, const char *path, const char *reason, const char *remedy) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to mount on '%s': %s; %s", path, reason, remedy);
    return NULL;
}

char *vmsnap_mount_point_check(const char *path, GError **error) {
    /* A path that a dead daemon serves does not resolve, but the kernel still lists it. */
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    vmsnap_mount_point_clear_dead(absolute);
    if (vmsnap_mount_point_is_vmsnap(absolute))
        return fail(error, path, "a vmsnap is mounted there already", "unmount it first");
    char *resolved = realpath(path, NULL);
    if (!resolved)
        return fail(error, path, g_strerror(errno),
                    errno == ENOENT ? "make the directory first" : "name a directory that can be reached");
    g_autofree char *canonical = g_strdup(resolved);
    free(resolved);
    struct stat status;
    if (stat(canonical, &status) != 0 || !S_ISDIR(status.st_mode))
        return fail(error, path, g_strerror(ENOTDIR), "name a directory");
    if (vmsnap_mount_point_is_vmsnap(canonical))
        return fail(error, path, "a vmsnap is mounted there already", "unmount it first");
    return g_steal_pointer(&canonical);
}

static gboolean fuse_conf_allows_other(void) {
    g_autofree char *text = NULL;
    if (!g_file_get_contents(FUSE_CONF, &text, NULL, NULL))
        return FALSE;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++)
        if (g_str_equal(g_strstrip(*line), "user_allow_other"))
            return TRUE;
    return FALSE;
}

/* What fusermount3 will ask for, asked before a job is begun. */
static gboolean user_check(const char *mount_point, gboolean allow_other, GError **error) {
    g_autofree char *fusermount = g_find_program_in_path("fusermount3");
    const char *reason = NULL, *remedy = NULL;
    if (!fusermount) {
        reason = "'fusermount3' is not installed";
        remedy = "install the package fuse3";
    } else if (access(mount_point, W_OK) != 0) {
        reason = "you may not write to it";
        remedy = "name a directory of yours";
    } else if (allow_other && !fuse_conf_allows_other()) {
        reason = "option allow_other needs the line 'user_allow_other' in '" FUSE_CONF "'";
        remedy = "add it there";
    }
    if (!reason)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to mount on '%s' as an ordinary user: %s; %s, or mount "
                "as root",
                mount_point, reason, remedy);
    return FALSE;
}

gboolean vmsnap_mount_point_check_fuse(const char *mount_point, gboolean allow_other, GError **error) {
    if (geteuid() != 0 && !user_check(mount_point, allow_other, error))
        return FALSE;
    int fd = open(FUSE_DEVICE, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM,
                    "failed to open '%s': %s; load the kernel module with 'modprobe fuse', and see that you may use it",
                    FUSE_DEVICE, g_strerror(errno));
        return FALSE;
    }
    (void)close(fd);
    return TRUE;
}
