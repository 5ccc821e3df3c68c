/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Stable copies of the small files that belong to a machine. */
#pragma once

#include <glib.h>
#include <sys/types.h>

/**
 * vmsnap_config_file_load:
 * @path: a regular file
 * @uid: with whose rights the file is opened, if this process is root's
 * @directory: where there is room for a nameless copy
 *
 * Copies a file, so that what happens to it later is not seen, without holding it in memory.
 * Returns: (transfer full): the content, or NULL with @error set.
 */
GBytes *vmsnap_config_file_load(const char *path, uid_t uid, gid_t gid, const char *directory, GError **error);
