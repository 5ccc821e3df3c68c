/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much room scratch has left, and when to look again. */
#pragma once

#include "vmsnap/backend.h"

/** Scratch, of all disks of a snapshot together. */
typedef struct {
    uint64_t used_bytes;
    uint64_t left_bytes;
    uint64_t room_bytes; /* until a limit is reached */
} VmsnapRoom;

/**
 * vmsnap_room_measure:
 * @reserve_bytes: what scratch must leave free
 * @max_bytes: what scratch may use, or 0 for no limit
 *
 * Returns: FALSE if it cannot be measured.
 */
gboolean vmsnap_room_measure(const VmsnapSnapshot *snapshot, uint64_t reserve_bytes, uint64_t max_bytes,
                             VmsnapRoom *ret_room);

/** Returns: in how many milliseconds to look again: not later than the fastest guest would need to use up the room. */
unsigned vmsnap_room_get_interval_ms(const VmsnapRoom *room);

/** Breaks the snapshot, since there is no room any more. @ended: what happens in its place, for the message */
void vmsnap_room_break(VmsnapSnapshot *snapshot, const VmsnapRoom *room, const char *ended);
