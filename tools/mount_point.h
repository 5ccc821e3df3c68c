/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether a directory can be mounted on, and whether this process can mount at all. */
#pragma once

#include <glib.h>

/** Returns: (transfer full): the canonical path of a directory to mount on, or NULL with @error set. */
char *vmsnap_mount_point_check(const char *path, GError **error);

/** Returns: whether FUSE can be used by this user; if not, @error says what is missing. */
gboolean vmsnap_mount_point_check_fuse(GError **error);
