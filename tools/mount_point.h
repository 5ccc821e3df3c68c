/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether a directory can be mounted on, and whether this process can mount at all. */
#pragma once

#include <glib.h>
#include <stdint.h>

/**
 * vmsnap_mount_point_check:
 *
 * Takes away a mount whose daemon is dead. Returns: (transfer full): the canonical path of a directory to mount on, or
 * NULL with @error set.
 */
char *vmsnap_mount_point_check(const char *path, GError **error);

/** Returns: whether a vmsnap is mounted on @path, which is canonical. */
gboolean vmsnap_mount_point_is_vmsnap(const char *path);

/**
 * vmsnap_mount_point_check_fuse:
 * @mount_point: canonical
 * @allow_other: whether other users shall be let in
 *
 * Returns: whether FUSE can be used by this user; if not, @error says what is missing.
 */
gboolean vmsnap_mount_point_check_fuse(const char *mount_point, gboolean allow_other, GError **error);

/**
 * vmsnap_mount_point_detach:
 * @path: canonical
 * @mount_id: the kernel's number of a mount, or 0 for none
 *
 * Takes the mount away if it is still on top of @path; whoever has files open keeps them. Warns if it cannot. Returns:
 * whether it was still there.
 */
gboolean vmsnap_mount_point_detach(const char *path, uint64_t mount_id);

/** Takes away each vmsnap on top of @path, which is canonical, whose daemon is dead. Warns if it cannot. */
void vmsnap_mount_point_clear_dead(const char *path);
