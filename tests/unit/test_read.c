/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads of layouts against the naive expansion, and what they cost and do when the backend fails. */
#include "fs/read.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include <errno.h>
#include <string.h>

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES
#define MAX_READ_BYTES ((size_t)64 << 10)

/* One read and all that came of it. */
typedef struct {
    const VmsnapLayout *layout;
    uint64_t offset;
    size_t length;
    Latch called;
    int error;
    uint8_t *buffer;     /* NULL if the layout had the bytes already */
    const uint8_t *data; /* valid if there was no error */
} Reading;

static void reading_done(int error, gpointer user_data) {
    Reading *reading = user_data;
    reading->error = error;
    latch_count(&reading->called);
}

/* Peeks, and fills a buffer of its own where that does not do, as readers do. */
static void reading_start(Reading *reading, const VmsnapLayout *layout, uint64_t offset, size_t length) {
    *reading = (Reading){.layout = layout, .offset = offset, .length = length};
    latch_init(&reading->called);
    reading->data = vmsnap_layout_peek(layout, offset, length);
    if (reading->data) {
        reading_done(0, reading);
        return;
    }
    reading->data = reading->buffer = g_malloc(length);
    vmsnap_layout_fill(layout, offset, length, reading->buffer, reading_done, reading);
}

static void reading_clear(Reading *reading) {
    g_assert_cmpuint(latch_get(&reading->called), ==, 1);
    g_free(reading->buffer);
    latch_clear(&reading->called);
}

typedef void (*ExpandFunc)(gconstpointer expected, uint8_t *buffer, size_t length, uint64_t offset);

static void reading_check(const Reading *reading, ExpandFunc expand, gconstpointer expected) {
    g_autofree uint8_t *buffer = g_malloc(reading->length);
    expand(expected, buffer, reading->length, reading->offset);
    g_assert_cmpint(reading->error, ==, 0);
    g_assert_cmpmem(reading->data, reading->length, buffer, reading->length);
}

static void check_read(const VmsnapLayout *layout, uint64_t offset, size_t length, ExpandFunc expand,
                       gconstpointer expected) {
    Reading reading;
    reading_start(&reading, layout, offset, length);
    latch_wait(&reading.called, 1);
    reading_check(&reading, expand, expected);
    reading_clear(&reading);
}

static int read_error(const VmsnapLayout *layout, uint64_t offset, size_t length) {
    Reading reading;
    reading_start(&reading, layout, offset, length);
    latch_wait(&reading.called, 1);
    int error = reading.error;
    reading_clear(&reading);
    return error;
}

/* A length of at least a byte for a read from @offset on that lies inside the file. */
static size_t random_length(const VmsnapLayout *layout, uint64_t offset) {
    uint64_t length = 1 + random_below(MAX_READ_BYTES);
    return MIN(length, layout->size_bytes - offset);
}

static void expand_disk(gconstpointer disk, uint8_t *buffer, size_t length, uint64_t offset) {
    memory_disk_expand(disk, buffer, length, offset);
}

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapDisk *disk;
    VmsnapDiskView *view;
    VmsnapLayout *raw;
} Fixture;

static void fixture_init(Fixture *fixture, const MemoryFaults *faults, GArray *extents) {
    fixture->snapshot = memory_snapshot_new(faults);
    fixture->disk = memory_snapshot_add_disk(fixture->snapshot, "vda", extents);
    fixture->view = vmsnap_disk_view_new(fixture->disk, NULL);
    fixture->raw = vmsnap_layout_new_raw(fixture->view);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_layout_free(fixture->raw);
    vmsnap_disk_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

static uint64_t random_offset(const Fixture *fixture) {
    return extents_random_offset(memory_disk_get_extents(fixture->disk), fixture->disk->size_bytes);
}

static void check_any_read(const Fixture *fixture) {
    uint64_t offset = random_offset(fixture);
    check_read(fixture->raw, offset, random_length(fixture->raw, offset), expand_disk, fixture->disk);
}

static void test_any_range_equals_naive(void) {
    static const uint64_t max_lengths[] = {256, 8 << 10, 256 << 20};
    for (size_t i = 0; i < G_N_ELEMENTS(max_lengths); i++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_random(max_lengths[i] * 25 + random_below(10000), max_lengths[i]));
        for (int n = 0; n < 100; n++)
            check_any_read(&fixture);
        fixture_clear(&fixture);
    }
}

static void test_windows_join_without_a_seam(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_random(2 * WINDOW_BYTES + 1000, 8 << 20));
    check_read(fixture.raw, WINDOW_BYTES - 1000, 2000, expand_disk, fixture.disk);
    check_read(fixture.raw, 2 * WINDOW_BYTES - 1, 2, expand_disk, fixture.disk);
    check_read(fixture.raw, 2 * WINDOW_BYTES - 1000, 2000, expand_disk, fixture.disk);
    fixture_clear(&fixture);
}

static void test_the_last_bytes_are_there(void) {
    Fixture fixture;
    uint64_t size = 1000003;
    fixture_init(&fixture, NULL, extents_random(size, 4096));
    check_read(fixture.raw, size - 1, 1, expand_disk, fixture.disk);
    check_read(fixture.raw, size - 100000, 100000, expand_disk, fixture.disk);
    check_read(fixture.raw, 0, size, expand_disk, fixture.disk);
    fixture_clear(&fixture);
}

static void expand_bytes(gconstpointer bytes, uint8_t *buffer, size_t length, uint64_t offset) {
    memcpy(buffer, (const uint8_t *)g_bytes_get_data((GBytes *)bytes, NULL) + offset, length);
}

static void test_memory_gives_its_bytes(void) {
    g_autoptr(GBytes) content = g_bytes_new_static("0123456789", 10);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    for (uint64_t offset = 0; offset < 10; offset++)
        for (size_t length = 1; length <= 10 - offset; length++)
            check_read(layout, offset, length, expand_bytes, content);
    vmsnap_layout_free(layout);
}

static void test_memory_is_seen_without_a_copy(void) {
    g_autoptr(GBytes) content = g_bytes_new_static("0123456789", 10);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    const uint8_t *bytes = g_bytes_get_data(content, NULL);
    g_assert_true(vmsnap_layout_peek(layout, 0, 10) == bytes);
    g_assert_true(vmsnap_layout_peek(layout, 9, 1) == bytes + 9);
    vmsnap_layout_free(layout);
}

/* Data, an unknown window, and a range of two segments must be read; a look at them asks nobody anything. */
static void test_only_what_is_known_and_whole_can_be_seen(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_alternate(1 << 20, 4096));
    g_assert_null(vmsnap_layout_peek(fixture.raw, 4096, 4096));
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 0);
    check_read(fixture.raw, 0, 1, expand_disk, fixture.disk);
    g_assert_nonnull(vmsnap_layout_peek(fixture.raw, 4096, 4096));
    g_assert_nonnull(vmsnap_layout_peek(fixture.raw, 8191, 1));
    g_assert_null(vmsnap_layout_peek(fixture.raw, 0, 1));
    g_assert_null(vmsnap_layout_peek(fixture.raw, 4095, 2));
    g_assert_null(vmsnap_layout_peek(fixture.raw, 4096, 4097));
    MemoryCounts counts = memory_snapshot_count(fixture.snapshot);
    g_assert_cmpuint(counts.questions, ==, 1);
    g_assert_cmpuint(counts.reads, ==, 1);
    fixture_clear(&fixture);
}

/* A layout as formats build them: parts that are memory, zeroes, or ranges of disks. */
typedef struct {
    VmsnapLayout base;
    GArray *parts; /* of VmsnapSegment; UNKNOWN stands for a range of a disk, whose raw layout knows more */
    VmsnapLayout *raws[2];
    VmsnapDiskView *views[2];
} MixedLayout;

static const VmsnapSegment *mixed_find(const MixedLayout *mixed, uint64_t offset, uint64_t *ret_skip) {
    const VmsnapSegment *part = &g_array_index(mixed->parts, VmsnapSegment, 0);
    for (; offset >= part->length_bytes; part++)
        offset -= part->length_bytes;
    *ret_skip = offset;
    return part;
}

static void mixed_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    const MixedLayout *mixed = (const MixedLayout *)layout;
    uint64_t skip;
    const VmsnapSegment *part = mixed_find(mixed, offset, &skip);
    uint64_t left = part->length_bytes - skip;
    if (part->kind == VMSNAP_SEGMENT_UNKNOWN) {
        vmsnap_layout_get_segment(mixed->raws[part->disk == mixed->views[1]], part->disk_offset + skip, ret_segment);
        ret_segment->length_bytes = MIN(ret_segment->length_bytes, left);
    } else {
        *ret_segment = (VmsnapSegment){.kind = part->kind, .length_bytes = left};
        if (part->memory)
            ret_segment->memory = part->memory + skip;
    }
}

static void expand_mixed(gconstpointer expected, uint8_t *buffer, size_t length, uint64_t offset) {
    for (size_t done = 0, step; done < length; done += step) {
        uint64_t skip;
        const VmsnapSegment *part = mixed_find(expected, offset + done, &skip);
        step = MIN(part->length_bytes - skip, length - done);
        if (part->kind == VMSNAP_SEGMENT_MEMORY)
            memcpy(buffer + done, part->memory + skip, step);
        else if (part->kind == VMSNAP_SEGMENT_ZERO)
            memset(buffer + done, 0, step);
        else
            memory_disk_expand(part->disk->disk, buffer + done, step, part->disk_offset + skip);
    }
}

static const VmsnapLayoutClass mixed_class = {.segment_at = mixed_segment_at};

static void mixed_add_random_part(MixedLayout *mixed, const uint8_t *memory, size_t memory_bytes) {
    static const VmsnapSegmentKind kinds[] = {VMSNAP_SEGMENT_MEMORY, VMSNAP_SEGMENT_ZERO, VMSNAP_SEGMENT_UNKNOWN};
    VmsnapSegment part = {.kind = kinds[random_below(3)], .length_bytes = 1 + random_below(20000)};
    if (part.kind == VMSNAP_SEGMENT_MEMORY) {
        part.memory = memory + random_below(memory_bytes - part.length_bytes);
    } else if (part.kind == VMSNAP_SEGMENT_UNKNOWN) {
        part.disk = mixed->views[random_below(2)];
        part.disk_offset = random_below(part.disk->disk->size_bytes - part.length_bytes);
    }
    g_array_append_val(mixed->parts, part);
    mixed->base.size_bytes += part.length_bytes;
}

static void test_segments_of_all_kinds_and_two_disks_join(void) {
    uint8_t memory[32768];
    for (size_t i = 0; i < sizeof memory; i++)
        memory[i] = (uint8_t)random_below(256);
    for (int run = 0; run < 10; run++) {
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        MixedLayout mixed = {.base.class = &mixed_class};
        mixed.parts = g_array_new(FALSE, FALSE, sizeof(VmsnapSegment));
        for (int i = 0; i < 2; i++) {
            GArray *extents = extents_random(2 * WINDOW_BYTES, 64 << 20);
            VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, i ? "vdb" : "vda", extents);
            mixed.views[i] = vmsnap_disk_view_new(disk, NULL);
            mixed.raws[i] = vmsnap_layout_new_raw(mixed.views[i]);
        }
        for (int i = 0; i < 100; i++)
            mixed_add_random_part(&mixed, memory, sizeof memory);
        for (int i = 0; i < 30; i++) {
            uint64_t offset = random_below(mixed.base.size_bytes);
            check_read(&mixed.base, offset, random_length(&mixed.base, offset), expand_mixed, &mixed);
        }
        memory_snapshot_end(snapshot);
        for (int i = 0; i < 2; i++) {
            vmsnap_layout_free(mixed.raws[i]);
            vmsnap_disk_view_free(mixed.views[i]);
        }
        g_array_unref(mixed.parts);
        vmsnap_snapshot_free(snapshot);
    }
}

static void test_zero_extents_never_cost_a_disk_read(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_random(10 << 20, 64 << 10));
    for (int i = 0; i < 100; i++)
        check_any_read(&fixture);
    MemoryCounts counts = memory_snapshot_count(fixture.snapshot);
    g_assert_cmpuint(counts.reads, >, 0);
    g_assert_cmpuint(counts.zero_bytes_read, ==, 0);
    fixture_clear(&fixture);
}

static void test_holes_larger_than_a_request_are_zeroes(void) {
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, 10 << 20);
    fixture_init(&fixture, NULL, extents);
    check_read(fixture.raw, 0, 1, expand_disk, fixture.disk);
    check_read(fixture.raw, 1, 1 << 20, expand_disk, fixture.disk);
    check_read(fixture.raw, 1, (1 << 20) + 1, expand_disk, fixture.disk);
    check_read(fixture.raw, 0, 10 << 20, expand_disk, fixture.disk);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).reads, ==, 0);
    fixture_clear(&fixture);
}

static void test_extents_are_asked_for_once(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_random(2 * WINDOW_BYTES, 256 << 20));
    for (int i = 0; i < 3; i++)
        check_read(fixture.raw, WINDOW_BYTES - 100, 200, expand_disk, fixture.disk);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 2);
    fixture_clear(&fixture);
}

static void test_a_read_that_touches_a_failure_fails(void) {
    for (int at_once = 0; at_once < 2; at_once++) {
        const MemoryFaults faults = {.fail_call = 2, .fail_rest = TRUE, .fail_at_once = at_once};
        Fixture fixture;
        fixture_init(&fixture, &faults, extents_alternate(1 << 20, 4096));
        g_assert_cmpint(read_error(fixture.raw, 0, 64 << 10), ==, -EIO);
        g_assert_cmpint(read_error(fixture.raw, 4095, 2), ==, -EIO);
        check_read(fixture.raw, 4096, 4096, expand_disk, fixture.disk);
        fixture_clear(&fixture);
    }
}

/* Several reads at once, across windows; one call after the other fails, until a run gets by. */
static void test_any_one_failure_is_told_once(void) {
    static const uint64_t offsets[] = {0, 1 << 20, WINDOW_BYTES - 40000, WINDOW_BYTES + 5, 2 * WINDOW_BYTES - 1};
    gboolean failed = TRUE;
    for (unsigned fail_call = 1; failed; fail_call++) {
        for (int at_once = 0; at_once < 2; at_once++) {
            const MemoryFaults faults = {.fail_call = fail_call, .fail_at_once = at_once, .max_answer_bytes = 1 << 30};
            Fixture fixture;
            Reading readings[G_N_ELEMENTS(offsets)];
            unsigned n_failed = 0;
            fixture_init(&fixture, &faults, extents_alternate(3 * WINDOW_BYTES, 32 << 20));
            for (size_t i = 0; i < G_N_ELEMENTS(offsets); i++)
                reading_start(&readings[i], fixture.raw, offsets[i], 80000);
            for (size_t i = 0; i < G_N_ELEMENTS(offsets); i++) {
                latch_wait(&readings[i].called, 1);
                n_failed += readings[i].error != 0;
                if (readings[i].error)
                    g_assert_cmpint(readings[i].error, ==, -EIO);
                else
                    reading_check(&readings[i], expand_disk, fixture.disk);
            }
            g_assert_cmpuint(n_failed, <=, 1);
            MemoryCounts counts = memory_snapshot_count(fixture.snapshot);
            failed = counts.reads + counts.questions >= fail_call;
            fixture_clear(&fixture);
            for (size_t i = 0; i < G_N_ELEMENTS(offsets); i++)
                reading_clear(&readings[i]);
        }
    }
}

/* A read of many segments in which all disk reads fail is still one failure. */
static void test_many_failures_of_a_read_are_told_once(void) {
    for (int at_once = 0; at_once < 2; at_once++) {
        const MemoryFaults faults = {.fail_call = 2, .fail_rest = TRUE, .fail_at_once = at_once};
        Fixture fixture;
        Reading reading;
        fixture_init(&fixture, &faults, extents_alternate(1 << 20, 512));
        reading_start(&reading, fixture.raw, 0, 256 << 10);
        latch_wait(&reading.called, 1);
        g_assert_cmpint(reading.error, ==, -EIO);
        fixture_clear(&fixture);
        reading_clear(&reading);
    }
}

static void test_a_lost_snapshot_fails_every_disk_read(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_alternate(1 << 20, 4096));
    check_read(fixture.raw, 0, 1, expand_disk, fixture.disk);
    vmsnap_snapshot_break(fixture.snapshot, "the test says so");
    g_assert_cmpint(read_error(fixture.raw, 0, 1), ==, -EIO);
    g_assert_cmpint(read_error(fixture.raw, 4096, 4097), ==, -EIO);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).reads, ==, 1);
    fixture_clear(&fixture);
}

static void test_the_end_of_the_snapshot_answers_reads_in_flight(void) {
    Fixture fixture;
    Reading readings[20];
    fixture_init(&fixture, NULL, extents_alternate(1 << 20, 4096));
    check_read(fixture.raw, 0, 1, expand_disk, fixture.disk);
    memory_snapshot_hold(fixture.snapshot);
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++)
        reading_start(&readings[i], fixture.raw, i * 8192, 10000);
    memory_snapshot_end(fixture.snapshot);
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++) {
        g_assert_cmpint(readings[i].error, ==, -EIO);
        reading_clear(&readings[i]);
    }
    g_assert_cmpint(read_error(fixture.raw, 0, 1), ==, -EIO);
    vmsnap_layout_free(fixture.raw);
    vmsnap_disk_view_free(fixture.view);
    vmsnap_snapshot_free(fixture.snapshot);
}

#define N_THREADS 4
#define N_READS 60

typedef struct {
    const Fixture *fixture;
    uint64_t offsets[N_READS];
    size_t lengths[N_READS];
} Reader;

/* All reads of a thread are in flight together. */
static gpointer read_many(gpointer data) {
    const Reader *reader = data;
    const Fixture *fixture = reader->fixture;
    Reading readings[N_READS];
    for (int i = 0; i < N_READS; i++)
        reading_start(&readings[i], fixture->raw, reader->offsets[i], reader->lengths[i]);
    for (int i = 0; i < N_READS; i++) {
        latch_wait(&readings[i].called, 1);
        reading_check(&readings[i], expand_disk, fixture->disk);
        reading_clear(&readings[i]);
    }
    return NULL;
}

static void test_threads_may_read_at_once(void) {
    static const MemoryFaults slow = {.max_delay_us = 50};
    Fixture fixture;
    Reader readers[N_THREADS];
    GThread *threads[N_THREADS];
    fixture_init(&fixture, &slow, extents_random(3 * WINDOW_BYTES + 4097, 64 << 20));
    for (int i = 0; i < N_THREADS; i++) {
        readers[i].fixture = &fixture;
        for (int n = 0; n < N_READS; n++) {
            readers[i].offsets[n] = random_offset(&fixture);
            readers[i].lengths[n] = random_length(fixture.raw, readers[i].offsets[n]);
        }
    }
    for (int i = 0; i < N_THREADS; i++)
        threads[i] = g_thread_new("reader", read_many, &readers[i]);
    vmsnap_scan_start(fixture.view->scan, NULL);
    for (int i = 0; i < N_THREADS; i++)
        (void)g_thread_join(threads[i]);
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/read/any-range-equals-naive", test_any_range_equals_naive);
    g_test_add_func("/read/windows-join-without-a-seam", test_windows_join_without_a_seam);
    g_test_add_func("/read/the-last-bytes-are-there", test_the_last_bytes_are_there);
    g_test_add_func("/read/memory-gives-its-bytes", test_memory_gives_its_bytes);
    g_test_add_func("/read/memory-is-seen-without-a-copy", test_memory_is_seen_without_a_copy);
    g_test_add_func("/read/only-what-is-known-and-whole-can-be-seen", test_only_what_is_known_and_whole_can_be_seen);
    g_test_add_func("/read/segments-of-all-kinds-and-two-disks-join", test_segments_of_all_kinds_and_two_disks_join);
    g_test_add_func("/read/zero-extents-never-cost-a-disk-read", test_zero_extents_never_cost_a_disk_read);
    g_test_add_func("/read/holes-larger-than-a-request-are-zeroes", test_holes_larger_than_a_request_are_zeroes);
    g_test_add_func("/read/extents-are-asked-for-once", test_extents_are_asked_for_once);
    g_test_add_func("/read/a-read-that-touches-a-failure-fails", test_a_read_that_touches_a_failure_fails);
    g_test_add_func("/read/any-one-failure-is-told-once", test_any_one_failure_is_told_once);
    g_test_add_func("/read/many-failures-of-a-read-are-told-once", test_many_failures_of_a_read_are_told_once);
    g_test_add_func("/read/a-lost-snapshot-fails-every-disk-read", test_a_lost_snapshot_fails_every_disk_read);
    g_test_add_func("/read/the-end-of-the-snapshot-answers-reads-in-flight",
                    test_the_end_of_the_snapshot_answers_reads_in_flight);
    g_test_add_func("/read/threads-may-read-at-once", test_threads_may_read_at_once);
    return g_test_run();
}
