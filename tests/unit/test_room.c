/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much room scratch has, and how soon that may be used up. */
#include "backend/room.h"

#include "extents.h"
#include "memory_backend.h"

#include <string.h>

#define GIB (UINT64_C(1) << 30)

static VmsnapDisk *add_disk(VmsnapSnapshot *snapshot, const char *name) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, 4096);
    return memory_snapshot_add_disk(snapshot, name, extents);
}

static VmsnapSnapshot *snapshot_of_two(uint64_t used_a, uint64_t left_a, uint64_t used_b, uint64_t left_b) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    memory_disk_set_scratch(add_disk(snapshot, "vda"), used_a, left_a);
    memory_disk_set_scratch(add_disk(snapshot, "vdb"), used_b, left_b);
    return snapshot;
}

static void snapshot_end(VmsnapSnapshot *snapshot) {
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static VmsnapRoom measure(uint64_t reserve_bytes, uint64_t max_bytes) {
    VmsnapSnapshot *snapshot = snapshot_of_two(1000, 9000, 2000, 8000);
    VmsnapRoom room;
    g_assert_true(vmsnap_room_measure(snapshot, reserve_bytes, max_bytes, &room));
    snapshot_end(snapshot);
    g_assert_cmpuint(room.used_bytes, ==, 3000);
    g_assert_cmpuint(room.left_bytes, ==, 8000);
    return room;
}

static void test_all_disks_share_what_is_left(void) {
    g_assert_cmpuint(measure(0, 0).room_bytes, ==, 8000);
}

static void test_the_reserve_is_no_room(void) {
    g_assert_cmpuint(measure(500, 0).room_bytes, ==, 7500);
    g_assert_cmpuint(measure(8000, 0).room_bytes, ==, 0);
    g_assert_cmpuint(measure(UINT64_MAX, 0).room_bytes, ==, 0);
}

static void test_a_limit_is_for_all_disks_together(void) {
    g_assert_cmpuint(measure(0, 3500).room_bytes, ==, 500);
    g_assert_cmpuint(measure(0, 3000).room_bytes, ==, 0);
    g_assert_cmpuint(measure(0, 1).room_bytes, ==, 0);
    g_assert_cmpuint(measure(0, UINT64_MAX).room_bytes, ==, 8000);
    g_assert_cmpuint(measure(7900, 3500).room_bytes, ==, 100);
}

static void test_without_scratch_there_is_no_measure(void) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapRoom room = {.used_bytes = 1};
    memory_disk_set_scratch(add_disk(snapshot, "vda"), 1, 2);
    (void)add_disk(snapshot, "vdb");
    g_assert_false(vmsnap_room_measure(snapshot, 0, 0, &room));
    g_assert_cmpuint(room.used_bytes, ==, 1);
    snapshot_end(snapshot);
}

static void test_the_less_room_the_sooner_is_the_next_look(void) {
    static const struct {
        uint64_t room_bytes;
        unsigned ms;
    } looks[] = {
        {0, 10}, {1, 10}, {GIB / 100, 10}, {GIB, 250}, {2 * GIB, 500}, {4 * GIB, 1000}, {UINT64_MAX, 1000},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(looks); i++) {
        VmsnapRoom room = {.room_bytes = looks[i].room_bytes};
        g_assert_cmpuint(vmsnap_room_get_interval_ms(&room), ==, looks[i].ms);
    }
}

static void test_a_snapshot_without_room_is_broken(void) {
    VmsnapSnapshot *snapshot = snapshot_of_two(0, 0, 0, 0);
    VmsnapRoom room = {.used_bytes = 3 << 20, .left_bytes = (5 << 20) - 1};
    vmsnap_room_break(snapshot, &room, "the job was ended");
    g_autofree char *reason = vmsnap_snapshot_dup_break_reason(snapshot);
    g_assert_nonnull(strstr(reason, "(3 MiB used, 4 MiB left in its filesystem), and the job was ended before"));
    g_assert_nonnull(strstr(reason, "scratch=DIR"));
    snapshot_end(snapshot);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/room/all-disks-share-what-is-left", test_all_disks_share_what_is_left);
    g_test_add_func("/room/the-reserve-is-no-room", test_the_reserve_is_no_room);
    g_test_add_func("/room/a-limit-is-for-all-disks-together", test_a_limit_is_for_all_disks_together);
    g_test_add_func("/room/without-scratch-there-is-no-measure", test_without_scratch_there_is_no_measure);
    g_test_add_func("/room/the-less-room-the-sooner-is-the-next-look", test_the_less_room_the_sooner_is_the_next_look);
    g_test_add_func("/room/a-snapshot-without-room-is-broken", test_a_snapshot_without_room_is_broken);
    return g_test_run();
}
