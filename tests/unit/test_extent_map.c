/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The extent map against a plain list of runs, and its bound. */
#include "fs/extent_map.h"

#include "extents.h"

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES
#define NO_BOUND ((size_t)48 << 20)

static const uint64_t sizes[] = {
    1,
    511,
    4096,
    1000003,
    WINDOW_BYTES - 1,
    WINDOW_BYTES,
    WINDOW_BYTES + 1,
    3 * WINDOW_BYTES - 12345,
    7 * WINDOW_BYTES + 512,
};

static void map_fill_window(VmsnapExtentMap *map, const GArray *extents, uint64_t index) {
    VmsnapExtentWindow *window = vmsnap_extent_window_new(map, index);
    uint64_t length = 0, missing;
    while ((missing = vmsnap_extent_window_get_missing(window)) > 0) {
        uint64_t end = index * WINDOW_BYTES + vmsnap_extent_map_get_window_length(map, index);
        VmsnapExtentKind kind = extents_find(extents, end - missing, &length);
        /* Answers cut runs anywhere, and the last one may go on beyond the window. */
        vmsnap_extent_window_append(window, kind, random_below(3) ? length : 1 + random_below(length));
    }
    vmsnap_extent_map_publish(map, window);
}

static VmsnapExtentMap *map_fill(const GArray *extents, uint64_t size_bytes, size_t max_memory_bytes) {
    VmsnapExtentMap *map = vmsnap_extent_map_new(size_bytes, max_memory_bytes);
    uint64_t n_windows = vmsnap_extent_map_get_window_count(map);
    uint64_t first = random_below(n_windows);
    for (uint64_t i = 0; i < n_windows; i++)
        map_fill_window(map, extents, (first + i) % n_windows);
    return map;
}

/* Checks one answer of the map: every byte of the run must be of its kind in the list. */
static void check_lookup(const VmsnapExtentMap *map, const GArray *extents, uint64_t size_bytes, uint64_t offset) {
    VmsnapExtentKind kind;
    uint64_t length = 0;
    g_assert_true(vmsnap_extent_map_lookup(map, offset, &kind, &length));
    g_assert_cmpuint(length, >, 0);
    g_assert_cmpuint(length, <=, size_bytes - offset);
    uint64_t zero_bytes = kind == VMSNAP_EXTENT_ZERO ? length : 0;
    g_assert_cmpuint(extents_count_zero(extents, offset, length), ==, zero_bytes);
}

static void test_lookup_equals_naive(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        uint64_t size = sizes[i];
        g_autoptr(GArray) extents = extents_random(size, size / 16 + 1);
        g_autoptr(VmsnapExtentMap) map = map_fill(extents, size, NO_BOUND);
        for (int n = 0; n < 300; n++)
            check_lookup(map, extents, size, extents_random_offset(extents, size));
        check_lookup(map, extents, size, 0);
        check_lookup(map, extents, size, size - 1);
    }
}

static void test_totals_equal_naive(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(GArray) extents = extents_random(sizes[i], sizes[i] / 16 + 1);
        g_autoptr(VmsnapExtentMap) map = map_fill(extents, sizes[i], NO_BOUND);
        g_assert_cmpuint(vmsnap_extent_map_get_known_bytes(map), ==, sizes[i]);
        g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(map), ==, extents_count_zero(extents, 0, sizes[i]));
    }
}

static void test_windows_cover_the_disk(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(sizes[i], NO_BOUND);
        uint64_t total = 0, n_windows = vmsnap_extent_map_get_window_count(map);
        for (uint64_t index = 0; index < n_windows; index++) {
            uint64_t length = vmsnap_extent_map_get_window_length(map, index);
            g_assert_true(index + 1 == n_windows || length == WINDOW_BYTES);
            total += length;
        }
        g_assert_cmpuint(total, ==, sizes[i]);
    }
}

static void test_an_unknown_window_reaches_its_end(void) {
    uint64_t size = 2 * WINDOW_BYTES + 1000;
    g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(size, NO_BOUND);
    VmsnapExtentWindow *window = vmsnap_extent_window_new(map, 1);
    vmsnap_extent_window_append(window, VMSNAP_EXTENT_ZERO, UINT64_MAX);
    vmsnap_extent_map_publish(map, window);

    VmsnapExtentKind kind;
    uint64_t length = 0;
    g_assert_false(vmsnap_extent_map_lookup(map, 5, &kind, &length));
    g_assert_cmpuint(length, ==, WINDOW_BYTES - 5);
    g_assert_true(vmsnap_extent_map_lookup(map, WINDOW_BYTES, &kind, &length));
    g_assert_cmpuint(length, ==, WINDOW_BYTES);
    g_assert_false(vmsnap_extent_map_lookup(map, 2 * WINDOW_BYTES + 999, &kind, &length));
    g_assert_cmpuint(length, ==, 1);
    g_assert_cmpuint(vmsnap_extent_map_get_known_bytes(map), ==, WINDOW_BYTES);
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(map), ==, WINDOW_BYTES);
}

static void test_a_disk_of_no_bytes_has_no_windows(void) {
    g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(0, NO_BOUND);
    g_assert_cmpuint(vmsnap_extent_map_get_window_count(map), ==, 0);
    g_assert_cmpuint(vmsnap_extent_map_get_known_bytes(map), ==, 0);
}

/* A map whose windows may have about @max_changes changes. */
static VmsnapExtentMap *map_new_tight(uint64_t size_bytes, size_t max_changes) {
    uint64_t n_windows = (size_bytes + WINDOW_BYTES - 1) / WINDOW_BYTES;
    return vmsnap_extent_map_new(size_bytes, n_windows * (max_changes + 4) * sizeof(uint32_t));
}

static void test_zero_only_becomes_data_past_the_bound(void) {
    for (int run = 0; run < 20; run++) {
        uint64_t size = WINDOW_BYTES / 4 + random_below(2 * WINDOW_BYTES);
        g_autoptr(GArray) extents = extents_random(size, 64 << 20);
        size_t max_changes = 16 + random_below(64);
        g_autoptr(VmsnapExtentMap) map = map_new_tight(size, max_changes);
        for (uint64_t i = 0; i < vmsnap_extent_map_get_window_count(map); i++)
            map_fill_window(map, extents, i);

        uint64_t zero_bytes = 0;
        for (uint64_t offset = 0, length = 0; offset < size; offset += length) {
            VmsnapExtentKind kind;
            g_assert_true(vmsnap_extent_map_lookup(map, offset, &kind, &length));
            if (kind == VMSNAP_EXTENT_DATA)
                continue;
            g_assert_cmpuint(extents_count_zero(extents, offset, length), ==, length);
            zero_bytes += length;
        }
        g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(map), ==, zero_bytes);
        g_assert_cmpuint(vmsnap_extent_map_get_memory_bytes(map), <=,
                         vmsnap_extent_map_get_window_count(map) * (max_changes + 4) * sizeof(uint32_t));
    }
}

/* Every window may use an equal part of the bound, and no more, however fragmented it is. */
static void test_a_fragmented_16_tib_disk_stays_within_the_bound(void) {
    g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(UINT64_C(16) << 40, NO_BOUND);
    uint64_t n_windows = vmsnap_extent_map_get_window_count(map);
    unsigned n_filled = 0;
    for (uint64_t index = 0; index < n_windows; index += 64, n_filled++) {
        VmsnapExtentWindow *window = vmsnap_extent_window_new(map, index);
        for (unsigned i = 0; vmsnap_extent_window_get_missing(window) > 0; i++)
            vmsnap_extent_window_append(window, i % 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, 64 << 10);
        vmsnap_extent_map_publish(map, window);
    }
    g_assert_cmpuint(vmsnap_extent_map_get_memory_bytes(map), <=, NO_BOUND / n_windows * n_filled);
    g_assert_cmpuint(vmsnap_extent_map_get_known_bytes(map), ==, n_filled * WINDOW_BYTES);
}

/* Runs of a byte by turns are the worst that there can be; the window may end at any moment of that. */
static void test_the_worst_window_stays_within_the_bound(void) {
    size_t bound = 1 << 10;
    for (uint64_t size = 1; size < 5000; size += 7) {
        g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(size, bound);
        VmsnapExtentWindow *window = vmsnap_extent_window_new(map, 0);
        for (uint64_t i = 0; i < size; i++)
            vmsnap_extent_window_append(window, i % 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, 1);
        vmsnap_extent_map_publish(map, window);
        g_assert_cmpuint(vmsnap_extent_map_get_memory_bytes(map), <=, bound);
        g_assert_cmpuint(vmsnap_extent_map_get_known_bytes(map), ==, size);
    }
}

/* So many changes that doubling a bound for each of their overflows would leave the range of any number. */
static void test_a_window_of_very_many_changes_ends(void) {
    uint64_t size = 4 << 20;
    g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(size, 1 << 10);
    VmsnapExtentWindow *window = vmsnap_extent_window_new(map, 0);
    for (uint64_t i = 0; i < size; i += 4)
        vmsnap_extent_window_append(window, i % 8 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, 4);
    vmsnap_extent_map_publish(map, window);
    g_assert_cmpuint(vmsnap_extent_map_get_known_bytes(map), ==, size);
}

static void test_a_window_within_the_bound_keeps_every_hole(void) {
    uint64_t size = 1 << 20;
    g_autoptr(GArray) extents = extents_alternate(size, 512);
    g_autoptr(VmsnapExtentMap) map = map_new_tight(size, extents->len);
    map_fill_window(map, extents, 0);
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(map), ==, size / 2);
}

/* One large hole among many small ones is what sparse copies live on, wherever it stands. */
static void test_the_shortest_holes_go_first(void) {
    uint64_t hole = WINDOW_BYTES / 2;
    for (int position = 0; position < 3; position++) {
        g_autoptr(VmsnapExtentMap) map = map_new_tight(WINDOW_BYTES, 1500);
        VmsnapExtentWindow *window = vmsnap_extent_window_new(map, 0);
        uint64_t before = (WINDOW_BYTES - hole) / 2 * (unsigned)position;
        for (uint64_t offset = 0; offset < WINDOW_BYTES;) {
            uint64_t length = offset == before ? hole : 4096;
            gboolean zero = offset == before || offset / 4096 % 2 == 1;
            vmsnap_extent_window_append(window, zero ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, length);
            offset += length;
        }
        vmsnap_extent_map_publish(map, window);
        VmsnapExtentKind kind;
        uint64_t length = 0;
        g_assert_true(vmsnap_extent_map_lookup(map, before + hole / 2, &kind, &length));
        g_assert_cmpint(kind, ==, VMSNAP_EXTENT_ZERO);
    }
}

static void test_a_sparse_16_tib_disk_takes_next_to_nothing(void) {
    uint64_t size = UINT64_C(16) << 40;
    gint64 start_us = g_get_monotonic_time();
    g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(size, NO_BOUND);
    for (uint64_t index = 0; index < vmsnap_extent_map_get_window_count(map); index++) {
        VmsnapExtentWindow *window = vmsnap_extent_window_new(map, index);
        vmsnap_extent_window_append(window, VMSNAP_EXTENT_ZERO, WINDOW_BYTES);
        vmsnap_extent_map_publish(map, window);
    }
    for (int i = 0; i < 100000; i++) {
        VmsnapExtentKind kind;
        uint64_t length = 0;
        g_assert_true(vmsnap_extent_map_lookup(map, random_below(size), &kind, &length));
        g_assert_cmpint(kind, ==, VMSNAP_EXTENT_ZERO);
    }
    g_assert_cmpuint(vmsnap_extent_map_get_memory_bytes(map), <, 256 << 10);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 5 * G_USEC_PER_SEC);
}

typedef struct {
    VmsnapExtentMap *map;
    const GArray *extents;
    uint64_t size_bytes;
} Publication;

static gpointer publish_all(gpointer data) {
    const Publication *publication = data;
    for (uint64_t i = 0; i < vmsnap_extent_map_get_window_count(publication->map); i++)
        map_fill_window(publication->map, publication->extents, i);
    return NULL;
}

static void test_readers_see_whole_windows_while_others_appear(void) {
    uint64_t size = 5 * WINDOW_BYTES + 4097;
    g_autoptr(GArray) extents = extents_random(size, 256 << 20);
    g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(size, NO_BOUND);
    Publication publication = {.map = map, .extents = extents, .size_bytes = size};
    GThread *writer = g_thread_new("writer", publish_all, &publication);
    while (vmsnap_extent_map_get_known_bytes(map) < size) {
        for (uint64_t i = 0; i < vmsnap_extent_map_get_window_count(map); i++)
            if (vmsnap_extent_map_has_window(map, i))
                check_lookup(map, extents, size, MIN(i * WINDOW_BYTES + 1234567, size - 1));
    }
    (void)g_thread_join(writer);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/extent-map/lookup-equals-naive", test_lookup_equals_naive);
    g_test_add_func("/extent-map/totals-equal-naive", test_totals_equal_naive);
    g_test_add_func("/extent-map/windows-cover-the-disk", test_windows_cover_the_disk);
    g_test_add_func("/extent-map/an-unknown-window-reaches-its-end", test_an_unknown_window_reaches_its_end);
    g_test_add_func("/extent-map/a-disk-of-no-bytes-has-no-windows", test_a_disk_of_no_bytes_has_no_windows);
    g_test_add_func("/extent-map/zero-only-becomes-data-past-the-bound", test_zero_only_becomes_data_past_the_bound);
    g_test_add_func("/extent-map/a-fragmented-16-tib-disk-stays-within-the-bound",
                    test_a_fragmented_16_tib_disk_stays_within_the_bound);
    g_test_add_func("/extent-map/the-worst-window-stays-within-the-bound",
                    test_the_worst_window_stays_within_the_bound);
    g_test_add_func("/extent-map/a-window-of-very-many-changes-ends", test_a_window_of_very_many_changes_ends);
    g_test_add_func("/extent-map/a-window-within-the-bound-keeps-every-hole",
                    test_a_window_within_the_bound_keeps_every_hole);
    g_test_add_func("/extent-map/the-shortest-holes-go-first", test_the_shortest_holes_go_first);
    g_test_add_func("/extent-map/a-sparse-16-tib-disk-takes-next-to-nothing",
                    test_a_sparse_16_tib_disk_takes_next_to_nothing);
    g_test_add_func("/extent-map/readers-see-whole-windows-while-others-appear",
                    test_readers_see_whole_windows_while_others_appear);
    return g_test_run();
}
