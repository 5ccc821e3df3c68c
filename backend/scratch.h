/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A snapshot's scratch files: where they are, what they begin as, and how much they use. */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>

/**
 * vmsnap_scratch_choose:
 * @base_dir: where the user wants it, or NULL for the default
 * @uuid: of the snapshot
 * @reserve_bytes: what must stay free there
 *
 * Returns: (transfer full): a directory that can be made for the scratch files, or NULL with @error set.
 */
char *vmsnap_scratch_choose(const char *base_dir, const char *uuid, uint64_t reserve_bytes, GError **error);

/**
 * vmsnap_scratch_make_image:
 * @dir_fd: the scratch directory
 * @name: of the file to make in it
 * @size_bytes: of the disk
 * @uid: of QEMU's user, also @gid: only root can give it away
 *
 * Makes an empty qcow2 image, for QEMU to put old data into. Returns: FALSE with @error set if it cannot be made.
 */
gboolean vmsnap_scratch_make_image(int dir_fd, const char *name, uint64_t size_bytes, uid_t uid, gid_t gid,
                                   GError **error);

/** Removes a scratch file that QEMU does not use any more, so that its room is free. */
void vmsnap_scratch_remove_image(int dir_fd, const char *name);

/**
 * vmsnap_scratch_measure:
 * @dir_fd: the scratch directory
 * @name: of a scratch file in it
 * @ret_used_bytes: what the file uses
 * @ret_left_bytes: what is free in its filesystem
 *
 * Returns: FALSE if it cannot tell, since there is no such file any more.
 */
gboolean vmsnap_scratch_measure(int dir_fd, const char *name, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes);
