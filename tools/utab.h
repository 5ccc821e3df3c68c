/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libmount's own table of mounts, which decides whether umount(8) calls a helper. */
#pragma once

/**
 * vmsnap_utab_add:
 *
 * Notes that @mount_point is to be unmounted by umount.fuse.vmsnap. Does nothing for an ordinary user, whose umount(8)
 * looks for the helper anyway.
 */
void vmsnap_utab_add(const char *source, const char *mount_point);

/** Removes the note. */
void vmsnap_utab_remove(const char *mount_point);
