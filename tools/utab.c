/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For a mount without an entry in /run/mount/utab, root's umount(8) asks statfs(2) for the type and learns "fuse", not
 * "fuse.vmsnap": it would not find our helper and return before the backup job has ended. With an entry it reads
 * mountinfo, which has the whole type.
 */
#include "utab.h"

#include <glib.h>
#include <libmount.h>
#include <unistd.h>

static void utab_update(const char *mount_point_to_remove, struct libmnt_fs *fs_to_add) {
    struct libmnt_update *update = mnt_new_update();
    if (!update)
        return;
    int result = mnt_update_set_fs(update, 0, mount_point_to_remove, fs_to_add);
    if (result == 0)
        result = mnt_update_table(update, NULL);
    if (result < 0)
        g_warning("failed to update libmount's table: %s", g_strerror(-result));
    mnt_free_update(update);
}

void vmsnap_utab_add(const char *source, const char *mount_point) {
    if (geteuid() != 0)
        return;
    struct libmnt_fs *fs = mnt_new_fs();
    if (fs && mnt_fs_set_fstype(fs, "fuse.vmsnap") == 0 && mnt_fs_set_source(fs, source) == 0 &&
        mnt_fs_set_target(fs, mount_point) == 0 && mnt_fs_append_options(fs, "uhelper=fuse.vmsnap") == 0)
        utab_update(NULL, fs);
    mnt_unref_fs(fs);
}

void vmsnap_utab_remove(const char *mount_point) {
    if (geteuid() == 0)
        utab_update(mount_point, NULL);
}
