/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether a directory can be mounted on, and whether this process can mount at all. */
#pragma once

#include <glib.h>

/** Returns: (transfer full): the canonical path of a directory to mount on, or NULL with @error set. */
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
