/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checks that are made before anything is begun, so that what cannot be mounted costs the guest nothing. */
#include "mount_point.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <libmount.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOUNTS "/proc/self/mountinfo"
#define FUSE_DEVICE "/dev/fuse"
#define FUSE_TYPE "fuse.vmsnap"

static gboolean is_vmsnap_mount(const char *path) {
    struct libmnt_table *table = mnt_new_table_from_file(MOUNTS);
    struct libmnt_fs *fs = table ? mnt_table_find_target(table, path, MNT_ITER_BACKWARD) : NULL;
    gboolean found = fs && g_strcmp0(mnt_fs_get_fstype(fs), FUSE_TYPE) == 0;
    mnt_unref_table(table);
    return found;
}

static char *fail(GError **error, const char *path, const char *reason, const char *remedy) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to mount on '%s': %s; %s", path, reason, remedy);
    return NULL;
}

char *vmsnap_mount_point_check(const char *path, GError **error) {
    /* A path that a dead daemon serves does not resolve, but the kernel still lists it. */
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    if (is_vmsnap_mount(absolute))
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
    if (is_vmsnap_mount(canonical))
        return fail(error, path, "a vmsnap is mounted there already", "unmount it first");
    return g_steal_pointer(&canonical);
}

gboolean vmsnap_mount_point_check_fuse(GError **error) {
    g_autofree char *fusermount = g_find_program_in_path("fusermount3");
    if (geteuid() != 0 && !fusermount) {
        g_set_error(
            error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
            "failed to mount as an ordinary user: 'fusermount3' is not installed; install the package fuse3, or "
            "mount as root");
        return FALSE;
    }
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
