/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where vmsnap keeps what lives as long as a snapshot, and the private directories for it. */
#pragma once

#include <glib.h>
#include <sys/types.h>

/** Returns: (transfer full): /run/vmsnap for root, else vmsnap/ in XDG_RUNTIME_DIR. */
char *vmsnap_dirs_get_runtime(void);

/** Returns: (transfer full): /var/lib/vmsnap for root, else vmsnap/ in XDG_STATE_HOME: on disk, for scratch files. */
char *vmsnap_dirs_get_state(void);

/**
 * vmsnap_dirs_make_base:
 *
 * Makes @path and its parents where they are missing, so that others can pass through but not list it.
 */
gboolean vmsnap_dirs_make_base(const char *path, GError **error);

/**
 * vmsnap_dirs_make_private:
 *
 * Makes the directory @path, which must not exist, for @uid and @gid alone, who may make files in it.
 */
gboolean vmsnap_dirs_make_private(const char *path, uid_t uid, gid_t gid, GError **error);

/**
 * vmsnap_dirs_make_passage:
 *
 * Makes the directory @path, which must not exist, for this user; @gid may pass through to files, but not make any.
 */
gboolean vmsnap_dirs_make_passage(const char *path, gid_t gid, GError **error);

/**
 * vmsnap_dirs_remove_private:
 *
 * Removes @path and the files and empty directories in it, but nothing below: whoever owns the directory may have put
 * anything there. It is no error if @path does not exist, or is NULL.
 */
gboolean vmsnap_dirs_remove_private(const char *path, GError **error);
