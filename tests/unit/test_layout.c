/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Segments of the layouts that there are: gapless, inside the file, and of the right kind. */
#include "fs/layout.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES

static void test_memory_is_one_segment(void) {
    g_autoptr(GBytes) content = g_bytes_new_static("0123456789", 10);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    g_assert_cmpuint(layout->size_bytes, ==, 10);
    g_assert_null(layout->disk);
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), ==, 10);
    for (uint64_t offset = 0; offset < 10; offset++) {
        VmsnapSegment segment;
        vmsnap_layout_get_segment(layout, offset, &segment);
        g_assert_cmpint(segment.kind, ==, VMSNAP_SEGMENT_MEMORY);
        g_assert_cmpmem(segment.memory, segment.length_bytes, &"0123456789"[offset], 10 - offset);
    }
    vmsnap_layout_free(layout);
}

static void test_memory_keeps_its_content(void) {
    GBytes *content = g_bytes_new("live", 4);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    g_bytes_unref(content);
    VmsnapSegment segment;
    vmsnap_layout_get_segment(layout, 0, &segment);
    g_assert_cmpmem(segment.memory, segment.length_bytes, "live", 4);
    vmsnap_layout_free(layout);
}

static void test_memory_may_be_empty(void) {
    g_autoptr(GBytes) content = g_bytes_new(NULL, 0);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    g_assert_cmpuint(layout->size_bytes, ==, 0);
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), ==, 0);
    vmsnap_layout_free(layout);
}

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapDiskView *view;
    VmsnapLayout *raw;
} Fixture;

static void fixture_init(Fixture *fixture, GArray *extents) {
    fixture->snapshot = memory_snapshot_new(NULL);
    fixture->view = vmsnap_disk_view_new(memory_snapshot_add_disk(fixture->snapshot, "vda", extents), NULL);
    fixture->raw = vmsnap_layout_new_raw(fixture->view);
}

static void fixture_scan(Fixture *fixture) {
    Latch complete;
    latch_init(&complete);
    vmsnap_scan_start(fixture->view->scan, NULL);
    vmsnap_scan_wait(fixture->view->scan, G_MAXINT64, latch_count, &complete);
    latch_wait(&complete, 1);
    latch_clear(&complete);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_layout_free(fixture->raw);
    vmsnap_disk_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

static void test_raw_is_unknown_before_the_scan(void) {
    Fixture fixture;
    fixture_init(&fixture, extents_random(WINDOW_BYTES + 1000, 1 << 30));
    g_assert_true(fixture.raw->disk == fixture.view);
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(fixture.raw), ==, WINDOW_BYTES + 1000);
    VmsnapSegment segment;
    vmsnap_layout_get_segment(fixture.raw, 4711, &segment);
    g_assert_cmpint(segment.kind, ==, VMSNAP_SEGMENT_UNKNOWN);
    g_assert_true(segment.disk == fixture.view);
    g_assert_cmpuint(segment.disk_offset, ==, 4711);
    g_assert_cmpuint(segment.length_bytes, ==, WINDOW_BYTES - 4711);
    fixture_clear(&fixture);
}

static void test_raw_has_the_extents_of_the_disk(void) {
    Fixture fixture;
    uint64_t size = 2 * WINDOW_BYTES + 12345;
    fixture_init(&fixture, extents_random(size, 256 << 20));
    fixture_scan(&fixture);
    const GArray *extents = memory_disk_get_extents(fixture.view->disk);
    VmsnapSegment segment;
    for (uint64_t offset = 0; offset < size; offset += segment.length_bytes) {
        vmsnap_layout_get_segment(fixture.raw, offset, &segment);
        gboolean zero = segment.kind == VMSNAP_SEGMENT_ZERO;
        g_assert_true(zero || segment.kind == VMSNAP_SEGMENT_DISK);
        g_assert_true(zero || (segment.disk == fixture.view && segment.disk_offset == offset));
        g_assert_cmpuint(extents_count_zero(extents, offset, segment.length_bytes), ==,
                         zero ? segment.length_bytes : 0);
    }
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(fixture.raw), ==, size - extents_count_zero(extents, 0, size));
    fixture_clear(&fixture);
}

static void test_free_takes_null(void) {
    vmsnap_layout_free(NULL);
    vmsnap_disk_view_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/layout/memory-is-one-segment", test_memory_is_one_segment);
    g_test_add_func("/layout/memory-keeps-its-content", test_memory_keeps_its_content);
    g_test_add_func("/layout/memory-may-be-empty", test_memory_may_be_empty);
    g_test_add_func("/layout/raw-is-unknown-before-the-scan", test_raw_is_unknown_before_the_scan);
    g_test_add_func("/layout/raw-has-the-extents-of-the-disk", test_raw_has_the_extents_of_the_disk);
    g_test_add_func("/layout/free-takes-null", test_free_takes_null);
    return g_test_run();
}
