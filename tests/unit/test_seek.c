/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* SEEK_DATA and SEEK_HOLE against the plain list of extents. */
#include "fs/read.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapDiskView *view;
    VmsnapLayout *raw;
} Fixture;

static void fixture_init(Fixture *fixture, const MemoryFaults *faults, GArray *extents) {
    fixture->snapshot = memory_snapshot_new(faults);
    fixture->view = vmsnap_disk_view_new(memory_snapshot_add_disk(fixture->snapshot, "vda", extents), NULL);
    fixture->raw = vmsnap_layout_new_raw(fixture->view);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_layout_free(fixture->raw);
    vmsnap_disk_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

typedef struct {
    Latch called;
    int error;
    uint64_t offset;
} Answer;

static void seek_done(int error, uint64_t offset, gpointer user_data) {
    Answer *answer = user_data;
    answer->error = error;
    answer->offset = offset;
    latch_count(&answer->called);
}

/* Returns: what was found, or -errno. */
static int64_t seek(const VmsnapLayout *layout, uint64_t offset, int whence) {
    Answer answer;
    latch_init(&answer.called);
    vmsnap_layout_seek(layout, offset, whence, seek_done, &answer);
    latch_wait(&answer.called, 1);
    latch_clear(&answer.called);
    return answer.error ? answer.error : (int64_t)answer.offset;
}

static int64_t naive_seek(const GArray *extents, uint64_t size, uint64_t offset, int whence) {
    VmsnapExtentKind wanted = whence == SEEK_HOLE ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA;
    if (offset >= size)
        return -ENXIO;
    for (uint64_t length = 0; offset < size; offset += length)
        if (extents_find(extents, offset, &length) == wanted)
            return (int64_t)offset;
    return whence == SEEK_HOLE ? (int64_t)size : -ENXIO;
}

static void check_seeks(const Fixture *fixture, int n_seeks) {
    const GArray *extents = memory_disk_get_extents(fixture->view->disk);
    uint64_t size = fixture->view->disk->size_bytes;
    for (int i = 0; i < n_seeks; i++) {
        uint64_t offset = extents_random_offset(extents, size);
        int whence = random_below(2) ? SEEK_DATA : SEEK_HOLE;
        g_assert_cmpint(seek(fixture->raw, offset, whence), ==, naive_seek(extents, size, offset, whence));
    }
}

static void test_any_offset_equals_naive(void) {
    for (int run = 0; run < 20; run++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_random(1 + random_below(4 * WINDOW_BYTES), 256 << 20));
        check_seeks(&fixture, 200);
        fixture_clear(&fixture);
    }
}

static void test_holes_go_on_across_windows(void) {
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, 4096);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 5 * WINDOW_BYTES);
    extents_append(extents, VMSNAP_EXTENT_DATA, 5 * WINDOW_BYTES);
    fixture_init(&fixture, NULL, extents);
    g_assert_cmpint(seek(fixture.raw, 4096, SEEK_DATA), ==, (int64_t)(5 * WINDOW_BYTES) + 4096);
    g_assert_cmpint(seek(fixture.raw, 5 * WINDOW_BYTES + 4096, SEEK_HOLE), ==, (int64_t)(10 * WINDOW_BYTES) + 4096);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).reads, ==, 0);
    fixture_clear(&fixture);
}

static void test_the_end_is_a_hole_and_beyond_is_nothing(void) {
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, 1000);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 1000);
    fixture_init(&fixture, NULL, extents);
    g_assert_cmpint(seek(fixture.raw, 0, SEEK_HOLE), ==, 1000);
    g_assert_cmpint(seek(fixture.raw, 1999, SEEK_HOLE), ==, 1999);
    g_assert_cmpint(seek(fixture.raw, 1000, SEEK_DATA), ==, -ENXIO);
    for (uint64_t offset = 2000; offset < 2003; offset++) {
        g_assert_cmpint(seek(fixture.raw, offset, SEEK_DATA), ==, -ENXIO);
        g_assert_cmpint(seek(fixture.raw, offset, SEEK_HOLE), ==, -ENXIO);
    }
    g_assert_cmpint(seek(fixture.raw, UINT64_MAX, SEEK_HOLE), ==, -ENXIO);
    fixture_clear(&fixture);
}

static void test_other_whences_are_refused(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_random(1000, 100));
    g_assert_cmpint(seek(fixture.raw, 0, SEEK_SET), ==, -EINVAL);
    g_assert_cmpint(seek(fixture.raw, 0, SEEK_END), ==, -EINVAL);
    g_assert_cmpint(seek(fixture.raw, 0, 4711), ==, -EINVAL);
    fixture_clear(&fixture);
}

static void test_memory_is_data(void) {
    g_autoptr(GBytes) content = g_bytes_new_static("0123456789", 10);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    g_assert_cmpint(seek(layout, 3, SEEK_DATA), ==, 3);
    g_assert_cmpint(seek(layout, 3, SEEK_HOLE), ==, 10);
    g_assert_cmpint(seek(layout, 10, SEEK_DATA), ==, -ENXIO);
    vmsnap_layout_free(layout);
}

/* What cannot be known is data: a seek never fails for it. */
static void test_any_one_failure_is_answered_once(void) {
    gboolean failed = TRUE;
    for (unsigned fail_call = 1; failed; fail_call++) {
        for (int at_once = 0; at_once < 2; at_once++) {
            const MemoryFaults faults = {.fail_call = fail_call, .fail_at_once = at_once};
            Fixture fixture;
            Answer answer;
            GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
            extents_append(extents, VMSNAP_EXTENT_ZERO, 4 * WINDOW_BYTES);
            fixture_init(&fixture, &faults, extents);
            latch_init(&answer.called);
            vmsnap_layout_seek(fixture.raw, 0, SEEK_DATA, seek_done, &answer);
            latch_wait(&answer.called, 1);
            failed = memory_snapshot_count(fixture.snapshot).questions >= fail_call;
            g_assert_cmpint(answer.error, ==, failed ? 0 : -ENXIO);
            if (failed)
                g_assert_cmpuint(answer.offset, ==, (fail_call - 1) * WINDOW_BYTES);
            fixture_clear(&fixture);
            g_assert_cmpuint(latch_get(&answer.called), ==, 1);
            latch_clear(&answer.called);
        }
    }
}

static gpointer seek_some(gpointer data) {
    const Fixture *fixture = data;
    const GArray *extents = memory_disk_get_extents(fixture->view->disk);
    uint64_t size = fixture->view->disk->size_bytes;
    for (uint64_t offset = 0; offset < size; offset += 100000007) {
        g_assert_cmpint(seek(fixture->raw, offset, SEEK_DATA), ==, naive_seek(extents, size, offset, SEEK_DATA));
        g_assert_cmpint(seek(fixture->raw, offset, SEEK_HOLE), ==, naive_seek(extents, size, offset, SEEK_HOLE));
    }
    return NULL;
}

static void test_threads_may_seek_at_once(void) {
    Fixture fixture;
    GThread *threads[4];
    fixture_init(&fixture, NULL, extents_random(10 * WINDOW_BYTES, WINDOW_BYTES));
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("seeker", seek_some, &fixture);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        (void)g_thread_join(threads[i]);
    fixture_clear(&fixture);
}

static void *seek_hole(void *data) {
    const Fixture *fixture = data;
    g_assert_cmpint(seek(fixture->raw, 0, SEEK_HOLE), ==, (int64_t)fixture->raw->size_bytes);
    return NULL;
}

/* Every window of a lost disk is answered before the question returns; a seek over all of them must not nest. */
static void test_a_lost_16_tib_disk_takes_no_more_stack_than_a_small_one(void) {
    Fixture fixture;
    pthread_attr_t attributes;
    pthread_t thread;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, UINT64_C(16) << 40);
    fixture_init(&fixture, NULL, extents);
    vmsnap_snapshot_break(fixture.snapshot, "the test says so");
    g_assert_cmpint(pthread_attr_init(&attributes), ==, 0);
    g_assert_cmpint(pthread_attr_setstacksize(&attributes, 256 << 10), ==, 0);
    g_assert_cmpint(pthread_create(&thread, &attributes, seek_hole, &fixture), ==, 0);
    g_assert_cmpint(pthread_join(thread, NULL), ==, 0);
    (void)pthread_attr_destroy(&attributes);
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/seek/any-offset-equals-naive", test_any_offset_equals_naive);
    g_test_add_func("/seek/holes-go-on-across-windows", test_holes_go_on_across_windows);
    g_test_add_func("/seek/the-end-is-a-hole-and-beyond-is-nothing", test_the_end_is_a_hole_and_beyond_is_nothing);
    g_test_add_func("/seek/other-whences-are-refused", test_other_whences_are_refused);
    g_test_add_func("/seek/memory-is-data", test_memory_is_data);
    g_test_add_func("/seek/any-one-failure-is-answered-once", test_any_one_failure_is_answered_once);
    g_test_add_func("/seek/threads-may-seek-at-once", test_threads_may_seek_at_once);
    g_test_add_func("/seek/a-lost-16-tib-disk-takes-no-more-stack-than-a-small-one",
                    test_a_lost_16_tib_disk_takes_no_more_stack_than_a_small_one);
    return g_test_run();
}
