/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "room.h"

/* No guest writes faster than that, and nothing is worth more than a look each second. */
#define MAX_GROWTH_BYTES_PER_MS ((UINT64_C(4) << 30) / 1000)
#define MIN_INTERVAL_MS 10
#define MAX_INTERVAL_MS 1000

gboolean vmsnap_room_measure(const VmsnapSnapshot *snapshot, uint64_t reserve_bytes, uint64_t max_bytes,
                             VmsnapRoom *ret_room) {
    VmsnapRoom room = {.left_bytes = UINT64_MAX};
    for (guint i = 0; i < snapshot->disks->len; i++) {
        uint64_t used_bytes, left_bytes;
        if (!vmsnap_disk_get_scratch(g_ptr_array_index(snapshot->disks, i), &used_bytes, &left_bytes))
            return FALSE;
        room.used_bytes += used_bytes;
        room.left_bytes = MIN(room.left_bytes, left_bytes);
    }
    room.room_bytes = room.left_bytes - MIN(room.left_bytes, reserve_bytes);
    if (max_bytes > 0)
        room.room_bytes = MIN(room.room_bytes, max_bytes - MIN(room.used_bytes, max_bytes));
    *ret_room = room;
    return TRUE;
}

unsigned vmsnap_room_get_interval_ms(const VmsnapRoom *room) {
    return (unsigned)CLAMP(room->room_bytes / MAX_GROWTH_BYTES_PER_MS, MIN_INTERVAL_MS, MAX_INTERVAL_MS);
}

void vmsnap_room_break(VmsnapSnapshot *snapshot, const VmsnapRoom *room, const char *ended) {
    vmsnap_snapshot_break(snapshot,
                          "scratch space ran out (%" G_GUINT64_FORMAT " MiB used, %" G_GUINT64_FORMAT
                          " MiB left in its filesystem), and %s before the guest could suffer; "
                          "give it more with -o scratch=DIR, or change scratch_reserve= or scratch_max=",
                          room->used_bytes >> 20, room->left_bytes >> 20, ended);
}
