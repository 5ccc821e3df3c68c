/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guardian is a small process beside the daemon that keeps the rights which the daemon gives up. It takes the mount
 * away, or a lost snapshot out of the machine, when the daemon asks, and when the daemon has ended, well or not, it
 * clears whatever is left of the snapshot. It holds the owner record together with the daemon, so that a snapshot is
 * never without an owner.
 */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    const char *uuid;        /* of the snapshot; must outlive the guardian's handle, as mount_point */
    const char *mount_point; /* absolute */
    int record_fd;           /* from vmsnap_record_open(); stays the caller's */
    pid_t pid;
    int fd;      /* of the guardian's end; -1 when it was let go */
    GMutex lock; /* held from a request to its answer */
} VmsnapGuardian;

/**
 * vmsnap_guardian_start:
 * @guardian: with uuid, mount_point and record_fd
 * @foreground: whether it may go on to use this process's streams
 *
 * Forks the guardian. Must be called before there is a thread, or a descriptor that somebody waits to be closed.
 */
gboolean vmsnap_guardian_start(VmsnapGuardian *guardian, gboolean foreground, GError **error);

/**
 * Has the mount taken away, if it is still there. Waits for another request to be answered. Any thread. Returns:
 * whether it was.
 */
gboolean vmsnap_guardian_unmount(VmsnapGuardian *guardian, uint64_t mount_id);

/**
 * vmsnap_guardian_clear:
 *
 * Has cleared in the machine what the record tells of, as VmsnapClearFunc: with one try, which takes a few seconds at
 * most for each thing that does not answer. Any thread.
 */
gboolean vmsnap_guardian_clear(VmsnapGuardian *guardian);

/**
 * vmsnap_guardian_finish:
 *
 * Lets the guardian clear what is left, and waits for that unless it has to try for long. Returns: whether all is
 * clear.
 */
gboolean vmsnap_guardian_finish(VmsnapGuardian *guardian);
