/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Clears what snapshots have left whose processes are gone. */
#pragma once

#include "vmsnap/record.h"

/**
 * vmsnap_cleanup_record:
 * @fd: holds the record
 *
 * Clears all that @record describes, the mount of a dead daemon included. Blocks. Returns: FALSE with @error set if
 * something is left.
 */
gboolean vmsnap_cleanup_record(int fd, VmsnapRecord *record, GError **error);

/**
 * vmsnap_cleanup_dead:
 * @machine: name or UUID of a machine whose snapshots are cleared, or NULL for all
 * @mount_point: and those of this mount point, or NULL
 *
 * Clears what was left by snapshots that nobody holds any more. Blocks. Returns: FALSE with @error set if something of
 * it is still left.
 */
gboolean vmsnap_cleanup_dead(const char *machine, const char *mount_point, GError **error);

/**
 * vmsnap_cleanup_dead_in_time:
 *
 * As vmsnap_cleanup_dead(), but gives up when a record's timeout has passed; for a process that exits soon, since a
 * thread may stay behind. The strings must live as long.
 */
gboolean vmsnap_cleanup_dead_in_time(const char *machine, const char *mount_point, GError **error);

/**
 * vmsnap_cleanup_main:
 * @machine: name or UUID, or NULL for all
 *
 * The command mount.vmsnap --cleanup. Returns: an exit code.
 */
int vmsnap_cleanup_main(const char *machine);
