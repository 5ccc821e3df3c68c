/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is given back, and what can be read then: of ranges that are noted, of readers, and of whole files of each
 * format. The naive model is a byte for each byte of a disk that says whether it was handed out.
 */
#include "fs/status.h"
#include "fs/view.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include <errno.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <unistd.h>

#define UNIT_BYTES VMSNAP_RELEASE_UNIT_BYTES
#define MAX_REQUEST_BYTES VMSNAP_RELEASE_MAX_REQUEST_BYTES
#define CHUNK_BYTES VMSNAP_READER_CHUNK_BYTES

/* A snapshot with a view that releases. */
typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapView *view;
} Fixture;

static const VmsnapViewOptions raw_options = {
    .readahead_bytes = 16 << 20, .release = TRUE, .format = {.format = &vmsnap_format_raw}};

static gboolean never(gpointer user_data) {
    (void)user_data;
    return FALSE;
}

/* @extents: (transfer full): of each disk, with NULL at the end */
static void fixture_init_with(Fixture *fixture, const MemoryFaults *faults, const VmsnapViewOptions *options,
                              GArray *const *extents) {
    g_autoptr(GError) error = NULL;
    fixture->snapshot = memory_snapshot_new(faults);
    for (int i = 0; extents[i]; i++) {
        g_autofree char *name = g_strdup_printf("vd%c", 'a' + i);
        memory_disk_allow_release(memory_snapshot_add_disk(fixture->snapshot, name, extents[i]));
    }
    fixture->view = vmsnap_view_new(fixture->snapshot, options);
    (void)vmsnap_view_start(fixture->view, never, NULL, &error);
    g_assert_no_error(error);
}

static void fixture_init(Fixture *fixture, const MemoryFaults *faults, GArray *extents) {
    fixture_init_with(fixture, faults, &raw_options, (GArray *const[]){extents, NULL});
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

static GArray *extents_data(uint64_t size_bytes) {
    return extents_alternate(size_bytes, size_bytes);
}

static VmsnapDisk *disk_of(const Fixture *fixture) {
    return g_ptr_array_index(fixture->snapshot->disks, 0);
}

static VmsnapRelease *release_of(const Fixture *fixture) {
    return ((VmsnapDiskView *)g_ptr_array_index(fixture->view->disks, 0))->release;
}

static const VmsnapLayout *layout_of(const Fixture *fixture, const char *name) {
    return vmsnap_tree_lookup(vmsnap_tree_get(fixture->view->tree, VMSNAP_TREE_ROOT_ID), name)->layout;
}

static VmsnapReader *open_file(Fixture *fixture, const char *name) {
    return vmsnap_reader_new(layout_of(fixture, name), &fixture->view->resources);
}

/* Returns: bytes of the units that can be released. */
static uint64_t all_but_the_last(uint64_t size_bytes) {
    return (size_bytes - 1) / UNIT_BYTES * UNIT_BYTES;
}

static void check_released(const Fixture *fixture, uint64_t bytes) {
    memory_snapshot_wait_idle(fixture->snapshot);
    MemoryCounts counts = memory_snapshot_count(fixture->snapshot);
    g_assert_cmpuint(vmsnap_release_get_bytes(release_of(fixture)), ==, bytes);
    g_assert_cmpuint(counts.released_bytes, ==, bytes);
    g_assert_cmpuint(counts.max_release_bytes, <=, MAX_REQUEST_BYTES);
    /* What is known to be gone is not asked for. */
    g_assert_cmpuint(counts.released_read_bytes, ==, 0);
}

/* One read; whoever makes it may not get the answer. */
typedef struct {
    Latch called;
    gboolean refused;
    int error;
    GByteArray *data;
} Reading;

static gboolean reading_done(int error, const struct iovec *pieces, guint n_pieces, gpointer user_data) {
    Reading *reading = user_data;
    gboolean got = !reading->refused;
    reading->error = error;
    for (guint i = 0; i < n_pieces; i++)
        g_byte_array_append(reading->data, pieces[i].iov_base, (guint)pieces[i].iov_len);
    latch_count(&reading->called);
    return got && error == 0;
}

static void reading_start(Reading *reading, VmsnapReader *reader, uint64_t offset, size_t length) {
    reading->data = g_byte_array_new();
    latch_init(&reading->called);
    vmsnap_reader_read(reader, offset, length, reading_done, reading);
}

/* Returns: (transfer full): the data. */
static GByteArray *reading_finish(Reading *reading) {
    latch_wait(&reading->called, 1);
    latch_clear(&reading->called);
    return reading->data;
}

static void check_data(const VmsnapDisk *disk, const GByteArray *data, uint64_t offset, size_t length) {
    g_autofree uint8_t *expected = g_malloc(length + 1);
    length = MIN(length, disk->size_bytes - offset);
    memory_disk_expand(disk, expected, length, offset);
    g_assert_cmpmem(data->data, data->len, expected, length);
}

/* Reads a raw file, and checks what comes. Returns: 0 or -errno. */
static int read_disk(const VmsnapDisk *disk, VmsnapReader *reader, uint64_t offset, size_t length) {
    Reading reading = {0};
    reading_start(&reading, reader, offset, length);
    g_autoptr(GByteArray) data = reading_finish(&reading);
    if (reading.error == 0)
        check_data(disk, data, offset, length);
    return reading.error;
}

static void check_read(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, size_t length) {
    g_assert_cmpint(read_disk(disk_of(fixture), reader, offset, length), ==, 0);
}

static void check_gone(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, size_t length) {
    g_assert_cmpint(read_disk(disk_of(fixture), reader, offset, length), ==, -EIO);
}

static void check_from_to(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, uint64_t end, size_t length) {
    for (; offset < end; offset += length)
        check_read(fixture, reader, offset, MIN(length, end - offset));
}

/* A reader's note comes just after it has the data. */
static void wait_released(const Fixture *fixture, uint64_t bytes) {
    gint64 deadline_us = g_get_monotonic_time() + LATCH_TIMEOUT_S * G_USEC_PER_SEC;
    while (vmsnap_release_get_bytes(release_of(fixture)) < bytes) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
        g_usleep(100);
    }
    check_released(fixture, bytes);
}

/* What is noted */

/* Disks of any size, and what of them can be released. */
static const uint64_t disk_sizes[] = {1,
                                      UNIT_BYTES - 1,
                                      UNIT_BYTES,
                                      UNIT_BYTES + 1,
                                      2 * UNIT_BYTES - 1,
                                      2 * UNIT_BYTES,
                                      2 * UNIT_BYTES + 1,
                                      5 * UNIT_BYTES + 12345,
                                      80 * UNIT_BYTES};

static void test_all_goes_but_the_last_unit(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(disk_sizes); i++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_data(disk_sizes[i]));
        vmsnap_release_note(release_of(&fixture), 0, disk_sizes[i]);
        check_released(&fixture, all_but_the_last(disk_sizes[i]));
        g_assert_false(vmsnap_release_has(release_of(&fixture), disk_sizes[i] - 1, 1));
        fixture_clear(&fixture);
    }
}

static void test_a_unit_goes_with_its_last_byte(void) {
    static const uint64_t missing[] = {0, 1, UNIT_BYTES / 2, UNIT_BYTES - 1};
    for (size_t i = 0; i < G_N_ELEMENTS(missing); i++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_data(3 * UNIT_BYTES));
        VmsnapRelease *release = release_of(&fixture);
        if (missing[i] > 0)
            vmsnap_release_note(release, 0, missing[i]);
        vmsnap_release_note(release, missing[i] + 1, 2 * UNIT_BYTES - missing[i] - 1);
        check_released(&fixture, UNIT_BYTES);
        g_assert_false(vmsnap_release_has(release, 0, UNIT_BYTES));
        g_assert_true(vmsnap_release_has(release, 0, UNIT_BYTES + 1));
        vmsnap_release_note(release, missing[i], 1);
        g_assert_true(vmsnap_release_has(release, 0, 1));
        check_released(&fixture, 2 * UNIT_BYTES);
        fixture_clear(&fixture);
    }
}

typedef enum { FORWARD, BACKWARD, SHUFFLED, N_ORDERS } Order;

/* Returns: (transfer full) (element-type guint): all numbers below @n. */
static GArray *numbers_new(guint n, Order order) {
    GArray *numbers = g_array_new(FALSE, FALSE, sizeof(guint));
    for (guint i = 0; i < n; i++) {
        guint number = order == BACKWARD ? n - 1 - i : i;
        g_array_append_val(numbers, number);
    }
    for (guint i = n; order == SHUFFLED && i > 1; i--) {
        guint *last = &g_array_index(numbers, guint, i - 1);
        guint *other = &g_array_index(numbers, guint, random_below(i));
        guint swapped = *last;
        *last = *other;
        *other = swapped;
    }
    return numbers;
}

static const size_t piece_sizes[] = {4096, 10240, 65536 + 1, 99999, 300000, UNIT_BYTES, UNIT_BYTES + 512, 3 << 20};

static void test_pieces_of_any_size_add_up(void) {
    uint64_t size = 6 * UNIT_BYTES + 777;
    for (size_t i = 0; i < G_N_ELEMENTS(piece_sizes); i++) {
        for (Order order = FORWARD; order < N_ORDERS; order++) {
            Fixture fixture;
            fixture_init(&fixture, NULL, extents_data(size));
            g_autoptr(GArray) pieces = numbers_new((guint)(size / piece_sizes[i] + 1), order);
            for (guint n = 0; n < pieces->len; n++) {
                uint64_t offset = g_array_index(pieces, guint, n) * piece_sizes[i];
                vmsnap_release_note(release_of(&fixture), offset, MIN(piece_sizes[i], size - offset));
            }
            check_released(&fixture, all_but_the_last(size));
            fixture_clear(&fixture);
        }
    }
}

/* However finely they lie among data, nobody needs to read them. */
static void test_zeroes_need_not_be_handed_out(void) {
    static const uint64_t run_lengths[] = {512, 4096, 65536, 100000, UNIT_BYTES, 3 * UNIT_BYTES};
    uint64_t size = 9 * UNIT_BYTES + 4096;
    for (size_t i = 0; i < G_N_ELEMENTS(run_lengths); i++) {
        for (Order order = FORWARD; order < SHUFFLED; order++) {
            Fixture fixture;
            fixture_init(&fixture, NULL, extents_alternate(size, run_lengths[i]));
            g_autoptr(GArray) runs = numbers_new((guint)(size / run_lengths[i] / 2 + 1), order);
            for (guint n = 0; n < runs->len; n++) {
                uint64_t offset = g_array_index(runs, guint, n) * 2 * run_lengths[i];
                if (offset < size)
                    vmsnap_release_note(release_of(&fixture), offset, MIN(run_lengths[i], size - offset));
            }
            check_released(&fixture, all_but_the_last(size));
            fixture_clear(&fixture);
        }
    }
}

static GArray *extents_data_between_zeroes(uint64_t before, uint64_t data, uint64_t behind) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, before);
    extents_append(extents, VMSNAP_EXTENT_DATA, data);
    extents_append(extents, VMSNAP_EXTENT_ZERO, behind);
    return extents;
}

/* Nothing goes before somebody has read something. */
static void test_units_of_zeroes_go_with_their_neighbours(void) {
    static const uint64_t n_before[] = {0, 1, 31, 32, 33, 500, 2048, 5000};
    for (size_t i = 0; i < G_N_ELEMENTS(n_before); i++) {
        Fixture fixture;
        uint64_t before = n_before[i] * UNIT_BYTES + 5000, behind = 100 * UNIT_BYTES;
        fixture_init(&fixture, NULL, extents_data_between_zeroes(before, 4096, behind));
        check_released(&fixture, 0);
        vmsnap_release_note(release_of(&fixture), before, 4095);
        check_released(&fixture, 0);
        vmsnap_release_note(release_of(&fixture), before + 4095, 1);
        wait_released(&fixture, all_but_the_last(before + 4096 + behind));
        fixture_clear(&fixture);
    }
}

static void test_a_disk_of_zeroes_is_left_alone(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data_between_zeroes(5 * UNIT_BYTES, 0, 5 * UNIT_BYTES));
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    check_from_to(&fixture, reader, 0, 10 * UNIT_BYTES, UNIT_BYTES);
    check_read(&fixture, reader, 0, UNIT_BYTES);
    check_released(&fixture, 0);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* One request is under way, and what becomes complete meanwhile waits for it and goes together. */
static void test_neighbours_go_together(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(200 * UNIT_BYTES));
    memory_snapshot_hold_releases(fixture.snapshot);
    for (uint64_t unit = 0; unit < 100; unit++)
        vmsnap_release_note(release_of(&fixture), unit * UNIT_BYTES, UNIT_BYTES);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).releases, ==, 1);
    g_assert_cmpuint(vmsnap_release_get_bytes(release_of(&fixture)), ==, 0);
    g_assert_true(vmsnap_release_has(release_of(&fixture), 99 * UNIT_BYTES, 1));
    memory_snapshot_release_releases(fixture.snapshot);
    wait_released(&fixture, 100 * UNIT_BYTES);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).releases, ==, 1 + 4);
    fixture_clear(&fixture);
}

/* What lies before the last request is not forgotten. */
static void test_what_is_scattered_goes_too(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(400 * UNIT_BYTES));
    g_autoptr(GArray) units = numbers_new(399, SHUFFLED);
    memory_snapshot_hold_releases(fixture.snapshot);
    for (guint n = 0; n < units->len; n += 2)
        vmsnap_release_note(release_of(&fixture), g_array_index(units, guint, n) * UNIT_BYTES, UNIT_BYTES);
    memory_snapshot_release_releases(fixture.snapshot);
    for (guint n = 1; n < units->len; n += 2)
        vmsnap_release_note(release_of(&fixture), g_array_index(units, guint, n) * UNIT_BYTES, UNIT_BYTES);
    wait_released(&fixture, 399 * UNIT_BYTES);
    fixture_clear(&fixture);
}

/* Of a disk so large, units are larger. The backend checks that all is in order. */
static void test_large_disks_have_larger_units(void) {
    static const uint64_t unit_bytes[] = {1 << 20, 2 << 20, 128 << 20, 1 << 30};
    for (size_t i = 0; i < G_N_ELEMENTS(unit_bytes) - FINDS_RACES; i++) {
        uint64_t size = (unit_bytes[i] << 24) - 1;
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_data(size));
        g_autoptr(VmsnapExtentMap) map = vmsnap_extent_map_new(size, 1 << 20);
        memory_disk_allow_release(disk);
        memory_snapshot_hold_releases(snapshot);
        VmsnapRelease *release = vmsnap_release_new(disk, map);
        vmsnap_release_note(release, 0, unit_bytes[i] - 1);
        g_assert_false(vmsnap_release_has(release, 0, 3 * unit_bytes[i]));
        vmsnap_release_note(release, unit_bytes[i] - 1, 1);
        g_assert_true(vmsnap_release_has(release, 0, 1));
        g_assert_false(vmsnap_release_has(release, unit_bytes[i], 3 * unit_bytes[i]));
        vmsnap_release_note(release, size - 3 * unit_bytes[i], 3 * unit_bytes[i]);
        g_assert_true(vmsnap_release_has(release, size - unit_bytes[i], 1));
        g_assert_false(vmsnap_release_has(release, size - unit_bytes[i] + 1, unit_bytes[i] - 1));
        memory_snapshot_end(snapshot);
        vmsnap_release_free(release);
        vmsnap_snapshot_free(snapshot);
    }
}

/* What is forgotten */

/* Who has begun many units and comes back to none has no harm but that; who reads in sequence is never forgotten. */
static void test_the_oldest_of_too_many_units_is_forgotten(void) {
    uint64_t n_units = VMSNAP_RELEASE_MAX_PARTIAL_UNITS + 1;
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data((n_units + 1) * UNIT_BYTES));
    VmsnapRelease *release = release_of(&fixture);
    for (uint64_t unit = 0; unit < n_units; unit++)
        vmsnap_release_note(release, unit * UNIT_BYTES, UNIT_BYTES / 2);
    for (uint64_t unit = n_units; unit-- > 0;)
        vmsnap_release_note(release, unit * UNIT_BYTES + UNIT_BYTES / 2, UNIT_BYTES / 2);
    g_assert_false(vmsnap_release_has(release, 0, UNIT_BYTES));
    check_released(&fixture, (n_units - 1) * UNIT_BYTES);
    vmsnap_release_note(release, 0, UNIT_BYTES / 2);
    check_released(&fixture, n_units * UNIT_BYTES);
    fixture_clear(&fixture);
}

static void test_readers_in_sequence_are_never_forgotten(void) {
    enum { N_READERS = 16, N_RANDOM = 50, BLOCK_BYTES = 10240 };
    uint64_t part = 4 * UNIT_BYTES, random_start = N_READERS * part, size = random_start + 3000 * UNIT_BYTES;
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(size));
    VmsnapRelease *release = release_of(&fixture);
    for (uint64_t offset = 0; offset < part; offset += BLOCK_BYTES) {
        for (uint64_t reader = 0; reader < N_READERS; reader++)
            vmsnap_release_note(release, reader * part + offset, MIN(BLOCK_BYTES, part - offset));
        for (int i = 0; i < N_RANDOM; i++)
            vmsnap_release_note(release, random_start + random_below(size - random_start - 4096), 4096);
    }
    memory_snapshot_wait_idle(fixture.snapshot);
    for (uint64_t offset = 0; offset < random_start; offset += UNIT_BYTES)
        g_assert_true(memory_disk_is_released(disk_of(&fixture), offset, UNIT_BYTES));
    fixture_clear(&fixture);
}

static void test_a_unit_in_too_many_ranges_is_forgotten(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(3 * UNIT_BYTES));
    VmsnapRelease *release = release_of(&fixture);
    vmsnap_release_note(release, UNIT_BYTES, UNIT_BYTES / 2);
    for (uint64_t i = 0; i <= VMSNAP_RELEASE_MAX_RANGES; i++)
        vmsnap_release_note(release, 2 * i * 512, 512);
    for (uint64_t i = 0; i < UNIT_BYTES / 1024; i++)
        vmsnap_release_note(release, (2 * i + 1) * 512, 512);
    check_released(&fixture, 0);
    vmsnap_release_note(release, UNIT_BYTES * 3 / 2, UNIT_BYTES / 2);
    vmsnap_release_note(release, 0, UNIT_BYTES);
    check_released(&fixture, 2 * UNIT_BYTES);
    fixture_clear(&fixture);
}

/* Failures and ends */

/* What was not asked for by then can be read again, and the snapshot is as whole as before. */
static void test_after_a_failure_nothing_more_is_released(void) {
    static const MemoryFaults at_once[] = {{.fail_release = 2}, {.fail_release = 2, .fail_at_once = TRUE}};
    for (size_t i = 0; i < G_N_ELEMENTS(at_once); i++) {
        Fixture fixture;
        fixture_init(&fixture, &at_once[i], extents_data(100 * UNIT_BYTES));
        VmsnapReader *reader = open_file(&fixture, "vda.raw");
        memory_snapshot_hold_releases(fixture.snapshot);
        vmsnap_release_note(release_of(&fixture), 0, UNIT_BYTES);
        vmsnap_release_note(release_of(&fixture), UNIT_BYTES, 50 * UNIT_BYTES);
        check_gone(&fixture, reader, 50 * UNIT_BYTES, 1);
        memory_snapshot_release_releases(fixture.snapshot);
        memory_snapshot_wait_idle(fixture.snapshot);
        vmsnap_release_note(release_of(&fixture), 60 * UNIT_BYTES, 10 * UNIT_BYTES);
        memory_snapshot_wait_idle(fixture.snapshot);
        g_assert_cmpuint(vmsnap_release_get_bytes(release_of(&fixture)), ==, UNIT_BYTES);
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).releases, ==, 2);
        check_gone(&fixture, reader, 0, 1);
        check_gone(&fixture, reader, 33 * UNIT_BYTES - 1, 1);
        check_from_to(&fixture, reader, 33 * UNIT_BYTES, 35 * UNIT_BYTES, UNIT_BYTES);
        check_read(&fixture, reader, 50 * UNIT_BYTES, UNIT_BYTES);
        check_read(&fixture, reader, 60 * UNIT_BYTES, UNIT_BYTES);
        g_assert_false(vmsnap_snapshot_is_broken(fixture.snapshot));
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

static void test_the_end_answers_what_is_under_way(void) {
    for (int holds_all = 0; holds_all < 2; holds_all++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_data(100 * UNIT_BYTES));
        if (holds_all)
            memory_snapshot_hold(fixture.snapshot);
        else
            memory_snapshot_hold_releases(fixture.snapshot);
        vmsnap_release_note(release_of(&fixture), 0, UNIT_BYTES);
        vmsnap_release_note(release_of(&fixture), 0, 100 * UNIT_BYTES);
        fixture_clear(&fixture);
    }
}

static void test_a_lost_snapshot_releases_nothing(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(100 * UNIT_BYTES));
    vmsnap_snapshot_break(fixture.snapshot, "the test says so");
    vmsnap_release_note(release_of(&fixture), 0, 100 * UNIT_BYTES);
    check_released(&fixture, 0);
    fixture_clear(&fixture);
}

/* Readers */

static void check_whole_file(GArray *extents, size_t block_bytes, uint64_t readahead_bytes) {
    VmsnapViewOptions options = raw_options;
    options.readahead_bytes = readahead_bytes;
    Fixture fixture;
    fixture_init_with(&fixture, NULL, &options, (GArray *const[]){extents, NULL});
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    uint64_t size = disk_of(&fixture)->size_bytes;
    check_from_to(&fixture, reader, 0, size, block_bytes);
    wait_released(&fixture, all_but_the_last(size));
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

static void test_a_whole_file_gives_all_but_the_last_unit_back(void) {
    uint64_t size = 4 * UNIT_BYTES + 4321;
    for (size_t i = 0; i < G_N_ELEMENTS(piece_sizes); i += 1 + 2 * FINDS_RACES) {
        for (int ahead = 0; ahead < 2; ahead++) {
            check_whole_file(extents_data(size), piece_sizes[i], ahead ? 16 << 20 : 0);
            check_whole_file(extents_alternate(size, 65536), piece_sizes[i], ahead ? 16 << 20 : 0);
            check_whole_file(extents_alternate(size, UNIT_BYTES + UNIT_BYTES / 2), piece_sizes[i], ahead ? 1 : 0);
        }
    }
}

/* As tar does, which jumps over holes and reads 10 KiB at a time. */
static void test_who_jumps_over_holes_gives_all_back(void) {
    Fixture fixture;
    uint64_t size = 20 * UNIT_BYTES, run = 200000;
    fixture_init(&fixture, NULL, extents_alternate(size, run));
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    for (uint64_t offset = 0; offset < size; offset += 2 * run)
        check_from_to(&fixture, reader, offset, MIN(offset + run, size), 10240);
    wait_released(&fixture, all_but_the_last(size));
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* Whatever the backend would say: it may be slow to forget, or know nothing of it yet. */
static void test_a_second_read_fails_at_once(void) {
    static const MemoryFaults reads_released = {.read_released = TRUE};
    for (int held = 0; held < 2; held++) {
        Fixture fixture;
        fixture_init(&fixture, &reads_released, extents_data(8 * UNIT_BYTES));
        VmsnapReader *reader = open_file(&fixture, "vda.raw");
        if (held)
            memory_snapshot_hold_releases(fixture.snapshot);
        check_from_to(&fixture, reader, 0, 4 * UNIT_BYTES, 131072);
        for (uint64_t unit = 0; unit < 4; unit++)
            while (!vmsnap_release_has(release_of(&fixture), unit * UNIT_BYTES, 1))
                g_usleep(100);
        if (!held)
            wait_released(&fixture, 4 * UNIT_BYTES);
        uint64_t bytes = memory_snapshot_count(fixture.snapshot).bytes;
        for (int i = 0; i < 100; i++)
            check_gone(&fixture, reader, random_below(4 * UNIT_BYTES), 1 + random_below(UNIT_BYTES));
        check_gone(&fixture, reader, 4 * UNIT_BYTES - 1, 2);
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).bytes, ==, bytes);
        check_read(&fixture, reader, 4 * UNIT_BYTES, UNIT_BYTES / 2);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

static void test_zeroes_can_always_be_read(void) {
    Fixture fixture;
    uint64_t size = 4 * UNIT_BYTES, run = UNIT_BYTES / 4;
    fixture_init(&fixture, NULL, extents_alternate(size, run));
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    check_from_to(&fixture, reader, 0, size, 65536);
    wait_released(&fixture, 3 * UNIT_BYTES);
    for (uint64_t offset = run; offset + run < 3 * UNIT_BYTES; offset += 2 * run) {
        check_read(&fixture, reader, offset, run);
        check_gone(&fixture, reader, offset - 1, run);
        check_gone(&fixture, reader, offset + 1, run);
    }
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

static void test_parts_of_a_unit_can_be_read_again(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(3 * UNIT_BYTES));
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    for (int i = 0; i < 3; i++)
        check_from_to(&fixture, reader, 1, 2 * UNIT_BYTES - 1, UNIT_BYTES - 1);
    check_released(&fixture, 0);
    check_read(&fixture, reader, 0, UNIT_BYTES);
    wait_released(&fixture, UNIT_BYTES);
    check_gone(&fixture, reader, UNIT_BYTES - 1, 1);
    check_read(&fixture, reader, UNIT_BYTES, UNIT_BYTES - 1);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* Its last chunks have been fetched, and nobody has got them. */
static void test_read_ahead_releases_nothing(void) {
    for (uint64_t end = UNIT_BYTES / 2; end < 6 * UNIT_BYTES; end += UNIT_BYTES / 2 + 1000) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_data(16 * UNIT_BYTES));
        VmsnapReader *reader = open_file(&fixture, "vda.raw");
        check_from_to(&fixture, reader, 0, end, 65536);
        memory_snapshot_wait_idle(fixture.snapshot);
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).bytes, >=, end + UNIT_BYTES / 4);
        wait_released(&fixture, end / UNIT_BYTES * UNIT_BYTES);
        check_read(&fixture, reader, end / UNIT_BYTES * UNIT_BYTES, UNIT_BYTES);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

static void test_chunks_of_what_is_gone_are_of_no_use(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(16 * UNIT_BYTES));
    VmsnapReader *first = open_file(&fixture, "vda.raw"), *second = open_file(&fixture, "vda.raw");
    check_from_to(&fixture, first, 0, UNIT_BYTES / 2, 65536);
    memory_snapshot_wait_idle(fixture.snapshot);
    check_from_to(&fixture, second, 0, 4 * UNIT_BYTES, 65536);
    wait_released(&fixture, 4 * UNIT_BYTES);
    check_gone(&fixture, first, UNIT_BYTES / 2, 65536);
    check_gone(&fixture, first, UNIT_BYTES, 65536);
    check_from_to(&fixture, first, 4 * UNIT_BYTES, 16 * UNIT_BYTES, 65536);
    wait_released(&fixture, 15 * UNIT_BYTES);
    vmsnap_reader_close(first);
    vmsnap_reader_close(second);
    fixture_clear(&fixture);
}

/* As when the kernel does not take the answer, since who asked was killed. */
static void test_who_gets_no_answer_takes_nothing(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(3 * UNIT_BYTES));
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    Reading refused = {.refused = TRUE};
    reading_start(&refused, reader, 0, UNIT_BYTES);
    g_byte_array_unref(reading_finish(&refused));
    g_assert_cmpint(refused.error, ==, 0);
    check_released(&fixture, 0);
    check_read(&fixture, reader, 0, UNIT_BYTES);
    wait_released(&fixture, UNIT_BYTES);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* What it got of that unit can be read again. */
static void test_who_meets_an_error_takes_nothing(void) {
    enum { BLOCK_BYTES = 50000 };
    static const MemoryFaults bad = {.bad_offset = 2 * UNIT_BYTES + 300000, .bad_bytes = 1};
    Fixture fixture;
    fixture_init(&fixture, &bad, extents_data(5 * UNIT_BYTES));
    VmsnapReader *reader = open_file(&fixture, "vda.raw");
    int n_failed = 0;
    for (uint64_t offset = 0; offset < 5 * UNIT_BYTES; offset += BLOCK_BYTES)
        n_failed += read_disk(disk_of(&fixture), reader, offset, BLOCK_BYTES) != 0;
    g_assert_cmpint(n_failed, ==, 1);
    wait_released(&fixture, 3 * UNIT_BYTES);
    g_assert_false(vmsnap_release_has(release_of(&fixture), 2 * UNIT_BYTES, UNIT_BYTES));
    check_read(&fixture, reader, 2 * UNIT_BYTES, 250000);
    check_gone(&fixture, reader, 2 * UNIT_BYTES - 1, 1);
    check_gone(&fixture, reader, 3 * UNIT_BYTES, 1);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* Reads of one range that are under way together give the bytes, or fail. */
static void test_reads_under_way_are_right_or_fail(void) {
    enum { N_READS = 6 };
    static const MemoryFaults faults[] = {{.max_delay_us = 100}, {.max_delay_us = 100, .read_released = TRUE}};
    for (int run = 0; run < (FINDS_RACES ? 10 : 30); run++) {
        Fixture fixture;
        fixture_init(&fixture, &faults[run % 2], extents_data(4 * UNIT_BYTES));
        VmsnapReader *reader = open_file(&fixture, "vda.raw");
        Reading readings[N_READS] = {0};
        memory_snapshot_hold(fixture.snapshot);
        for (int i = 0; i < N_READS; i++)
            reading_start(&readings[i], reader, UNIT_BYTES, UNIT_BYTES);
        memory_snapshot_release(fixture.snapshot);
        int n_right = 0;
        for (int i = 0; i < N_READS; i++) {
            g_autoptr(GByteArray) data = reading_finish(&readings[i]);
            if (readings[i].error == 0)
                check_data(disk_of(&fixture), data, UNIT_BYTES, UNIT_BYTES);
            else
                g_assert_cmpint(readings[i].error, ==, -EIO);
            n_right += readings[i].error == 0;
        }
        g_assert_cmpint(n_right, >=, 1);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

/* Several streams of one reader, by turns, and several readers. */
static void test_streams_by_turns_give_all_back(void) {
    enum { N_STREAMS = 4 };
    uint64_t part = 5 * UNIT_BYTES + 1000, size = N_STREAMS * part;
    for (int shared = 0; shared < 2; shared++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_alternate(size, 700000));
        VmsnapReader *readers[N_STREAMS];
        for (int i = 0; i < N_STREAMS; i++)
            readers[i] = i > 0 && shared ? readers[0] : open_file(&fixture, "vda.raw");
        for (uint64_t offset = 0; offset < part; offset += 50000)
            for (unsigned i = 0; i < N_STREAMS; i++)
                check_read(&fixture, readers[i], i * part + offset, MIN(50000, part - offset));
        wait_released(&fixture, all_but_the_last(size));
        for (int i = 0; i < (shared ? 1 : N_STREAMS); i++)
            vmsnap_reader_close(readers[i]);
        fixture_clear(&fixture);
    }
}

/* Against the naive model */

#define MODEL_BYTES (4 * UNIT_BYTES + 54321)
#define MAX_READ_BYTES (400 << 10)

typedef struct {
    Fixture *fixture;
    uint8_t *handed_out; /* a byte for each byte; atomic */
} Model;

static void model_init(Model *model, Fixture *fixture) {
    model->fixture = fixture;
    model->handed_out = g_malloc0(MODEL_BYTES);
    for (uint64_t offset = 0, run; offset < MODEL_BYTES; offset += run)
        if (extents_find(memory_disk_get_extents(disk_of(fixture)), offset, &run) == VMSNAP_EXTENT_ZERO)
            memset(model->handed_out + offset, TRUE, MIN(run, MODEL_BYTES - offset));
}

static void model_note(Model *model, uint64_t offset, size_t length) {
    for (size_t i = 0; i < length; i++)
        __atomic_store_n(&model->handed_out[offset + i], TRUE, __ATOMIC_RELAXED);
}

/* When no other thread notes anything. */
static gboolean model_unit_is_gone(const Model *model, uint64_t unit) {
    if ((unit + 1) * UNIT_BYTES > all_but_the_last(MODEL_BYTES))
        return FALSE;
    return !memchr(model->handed_out + unit * UNIT_BYTES, FALSE, UNIT_BYTES);
}

/* Whether a range has a byte of data that is gone. */
static gboolean model_fails(const Model *model, uint64_t offset, size_t length) {
    const GArray *extents = memory_disk_get_extents(disk_of(model->fixture));
    uint64_t end = offset + length, next;
    for (; offset < end; offset = next) {
        next = MIN((offset / UNIT_BYTES + 1) * UNIT_BYTES, end);
        if (extents_count_zero(extents, offset, next - offset) < next - offset &&
            model_unit_is_gone(model, offset / UNIT_BYTES))
            return TRUE;
    }
    return FALSE;
}

/* What was released is complete in the model; the other way round only as far as the backend was asked by now. */
static void model_check_released(const Model *model) {
    memory_snapshot_wait_idle(model->fixture->snapshot);
    for (uint64_t unit = 0; unit * UNIT_BYTES < MODEL_BYTES; unit++)
        if (memory_disk_is_released(disk_of(model->fixture), unit * UNIT_BYTES, 1))
            g_assert_true(model_unit_is_gone(model, unit));
}

static GArray *model_extents(int run) {
    static const uint64_t max_lengths[] = {32 << 10, 200 << 10, UNIT_BYTES, 4 * UNIT_BYTES};
    return run % 5 == 4 ? extents_data(MODEL_BYTES) : extents_random(MODEL_BYTES, max_lengths[run % 5]);
}

static size_t random_length(uint64_t offset) {
    uint64_t length = 1 + random_below(MAX_READ_BYTES);
    return MIN(length, MODEL_BYTES - offset);
}

/* Returns: whether it failed. When all is quiet, what was read has been noted. */
static gboolean model_read(Model *model, VmsnapReader *reader) {
    uint64_t offset = random_below(MODEL_BYTES);
    size_t length = random_length(offset);
    gboolean fails = model_fails(model, offset, length);
    g_assert_cmpint(read_disk(disk_of(model->fixture), reader, offset, length), ==, fails ? -EIO : 0);
    if (!fails)
        model_note(model, offset, length);
    memory_snapshot_wait_idle(model->fixture->snapshot);
    return fails;
}

static void test_any_reads_equal_the_model(void) {
    static const MemoryFaults reads_released = {.read_released = TRUE};
    int n_failed = 0;
    for (int run = 0; run < (FINDS_RACES ? 5 : 10); run++) {
        Fixture fixture;
        Model model;
        fixture_init(&fixture, run % 2 ? &reads_released : NULL, model_extents(run));
        model_init(&model, &fixture);
        VmsnapReader *reader = open_file(&fixture, "vda.raw");
        for (int i = 0; i < 100; i++)
            n_failed += model_read(&model, reader);
        model_check_released(&model);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
        g_free(model.handed_out);
    }
    g_test_message("%d reads failed", n_failed);
    g_assert_cmpint(n_failed, >, 0);
}

#define N_THREADS 6
#define N_READS 60

typedef struct {
    Model *model;
    uint64_t offsets[N_READS];
    size_t lengths[N_READS];
    gboolean failed[N_READS];
} Worker;

static void worker_plan(Worker *worker, Model *model) {
    worker->model = model;
    for (int i = 0; i < N_READS; i++) {
        worker->offsets[i] = random_below(MODEL_BYTES);
        worker->lengths[i] = random_length(worker->offsets[i]);
    }
}

static gpointer worker_run(gpointer data) {
    Worker *worker = data;
    Model *model = worker->model;
    VmsnapReader *reader = open_file(model->fixture, "vda.raw");
    for (int i = 0; i < N_READS; i++) {
        int error = read_disk(disk_of(model->fixture), reader, worker->offsets[i], worker->lengths[i]);
        g_assert_true(error == 0 || error == -EIO);
        worker->failed[i] = error != 0;
        if (!error)
            model_note(model, worker->offsets[i], worker->lengths[i]);
    }
    vmsnap_reader_close(reader);
    return NULL;
}

/* Whoever reads gets the right bytes or, only where all of a unit has been handed out, an error. */
static void test_any_reads_of_threads_fit_the_model(void) {
    static const MemoryFaults faults[] = {{.max_delay_us = 50}, {.max_delay_us = 50, .read_released = TRUE}};
    for (int run = 0; run < (FINDS_RACES ? 3 : 10); run++) {
        Fixture fixture;
        Model model;
        g_autofree Worker *workers = g_new0(Worker, N_THREADS);
        GThread *threads[N_THREADS];
        fixture_init(&fixture, &faults[run % 2], model_extents(run));
        model_init(&model, &fixture);
        for (int i = 0; i < N_THREADS; i++)
            worker_plan(&workers[i], &model);
        for (int i = 0; i < N_THREADS; i++)
            threads[i] = g_thread_new("reader", worker_run, &workers[i]);
        for (int i = 0; i < N_THREADS; i++)
            (void)g_thread_join(threads[i]);
        model_check_released(&model);
        for (int i = 0; i < N_THREADS; i++)
            for (int k = 0; k < N_READS; k++)
                if (workers[i].failed[k])
                    g_assert_true(model_fails(&model, workers[i].offsets[k], workers[i].lengths[k]));
        for (uint64_t offset = 0; offset < MODEL_BYTES; offset += UNIT_BYTES)
            if (model_fails(&model, offset, MIN(UNIT_BYTES, MODEL_BYTES - offset)))
                g_assert_true(vmsnap_release_has(release_of(&fixture), offset, 1));
        fixture_clear(&fixture);
        g_free(model.handed_out);
    }
}

/* Files */

typedef struct {
    const char *file;
    VmsnapViewOptions options;
} Format;

static const Format formats[] = {
    {"vda.raw", {.readahead_bytes = 16 << 20, .release = TRUE, .format = {.format = &vmsnap_format_raw}}},
    {"vda.qcow2",
     {.readahead_bytes = 16 << 20,
      .release = TRUE,
      .format = {.format = &vmsnap_format_qcow2, .cluster_bytes = 65536}}},
    {"vda.qcow2", {.release = TRUE, .format = {.format = &vmsnap_format_qcow2, .cluster_bytes = 512}}},
    {"vda.qcow2",
     {.readahead_bytes = 1 << 20,
      .release = TRUE,
      .format = {.format = &vmsnap_format_qcow2, .cluster_bytes = 2 << 20}}},
    {"vm1.vma", {.readahead_bytes = 16 << 20, .release = TRUE, .format = {.format = &vmsnap_format_vma}}},
    {"vm1.vma", {.release = TRUE, .format = {.format = &vmsnap_format_vma}}},
};

/* Two disks; the second is only in the archive. */
static void fixture_init_format(Fixture *fixture, const Format *format, uint64_t max_length) {
    uint64_t size = 5 * UNIT_BYTES + 8192;
    gboolean both = format->options.format.format->one_file;
    GArray *first = max_length ? extents_random(size, max_length) : extents_data(size);
    fixture_init_with(fixture, NULL, &format->options,
                      (GArray *const[]){first, both ? extents_alternate(3 * UNIT_BYTES, 65536) : NULL, NULL});
}

/* Reads a file. Returns: (transfer full): its bytes, those of reads that failed left out. */
static GByteArray *read_file(VmsnapReader *reader, uint64_t size, size_t block_bytes, gboolean fails) {
    GByteArray *bytes = g_byte_array_new();
    for (uint64_t offset = 0; offset < size; offset += block_bytes) {
        Reading reading = {0};
        reading_start(&reading, reader, offset, block_bytes);
        g_autoptr(GByteArray) data = reading_finish(&reading);
        g_assert_true(fails || reading.error == 0);
        g_byte_array_append(bytes, data->data, data->len);
    }
    return bytes;
}

static void check_all_disks_released(const Fixture *fixture) {
    gint64 deadline_us = g_get_monotonic_time() + LATCH_TIMEOUT_S * G_USEC_PER_SEC;
    for (guint i = 0; i < fixture->view->disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(fixture->view->disks, i);
        uint64_t all = all_but_the_last(disk->disk->size_bytes);
        while (vmsnap_release_get_bytes(disk->release) < all) {
            g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
            g_usleep(100);
        }
        g_assert_true(memory_disk_is_released(disk->disk, 0, all));
    }
    g_assert_cmpuint(memory_snapshot_count(fixture->snapshot).released_read_bytes, ==, 0);
}

static void note_seek(int error, uint64_t offset, gpointer user_data) {
    int64_t found = error ? error : (int64_t)offset;
    g_array_append_val((GArray *)user_data, found);
}

/* Returns: (transfer full): what SEEK and stat say. With complete maps, they say so at once. */
static GArray *describe(const VmsnapLayout *layout) {
    GArray *numbers = g_array_new(FALSE, FALSE, sizeof(int64_t));
    for (uint64_t offset = 0; offset < layout->size_bytes; offset += 99999) {
        vmsnap_layout_seek(layout, offset, SEEK_DATA, note_seek, numbers);
        vmsnap_layout_seek(layout, offset, SEEK_HOLE, note_seek, numbers);
    }
    int64_t sizes[] = {(int64_t)layout->size_bytes, (int64_t)vmsnap_layout_get_allocated_bytes(layout)};
    g_array_append_vals(numbers, sizes, G_N_ELEMENTS(sizes));
    return numbers;
}

static void test_files_of_each_format_give_all_back(void) {
    static const uint64_t max_lengths[] = {0, 65536, 2 * UNIT_BYTES};
    static const size_t blocks[] = {10240, 131072, UNIT_BYTES};
    for (size_t i = 0; i < G_N_ELEMENTS(formats) * G_N_ELEMENTS(max_lengths); i++) {
        Fixture fixture;
        const Format *format = &formats[i % G_N_ELEMENTS(formats)];
        fixture_init_format(&fixture, format, max_lengths[i / G_N_ELEMENTS(formats)]);
        const VmsnapLayout *layout = layout_of(&fixture, format->file);
        g_autoptr(GArray) before = describe(layout);
        VmsnapReader *reader = open_file(&fixture, format->file);
        g_autoptr(GByteArray) bytes = read_file(reader, layout->size_bytes, blocks[i % 3], FALSE);
        g_assert_cmpuint(bytes->len, ==, layout->size_bytes);
        check_all_disks_released(&fixture);
        g_autoptr(GArray) after = describe(layout);
        g_assert_cmpmem(before->data, before->len * sizeof(int64_t), after->data, after->len * sizeof(int64_t));
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

/* What is read is what it is without a release. */
static void test_files_that_are_released_have_the_same_bytes(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(formats); i++) {
        Fixture fixture;
        fixture_init_format(&fixture, &formats[i], UNIT_BYTES);
        VmsnapReaderResources keeping = fixture.view->resources;
        keeping.releases = FALSE;
        const VmsnapLayout *layout = layout_of(&fixture, formats[i].file);
        VmsnapReader *keeper = vmsnap_reader_new(layout, &keeping);
        g_autoptr(GByteArray) expected = read_file(keeper, layout->size_bytes, 131072, FALSE);
        check_released(&fixture, 0);
        VmsnapReader *reader = open_file(&fixture, formats[i].file);
        g_autoptr(GByteArray) bytes = read_file(reader, layout->size_bytes, 131072, FALSE);
        g_assert_cmpmem(bytes->data, bytes->len, expected->data, expected->len);
        vmsnap_reader_close(keeper);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

/* Also where a chunk has something of two units, of which one is gone. */
static void test_tables_can_be_read_again_and_data_not(void) {
    for (size_t i = 1; i < G_N_ELEMENTS(formats); i++) {
        Fixture fixture;
        fixture_init_format(&fixture, &formats[i], 0);
        const VmsnapLayout *layout = layout_of(&fixture, formats[i].file);
        VmsnapReader *reader = open_file(&fixture, formats[i].file);
        g_autoptr(GByteArray) all = read_file(reader, layout->size_bytes, 65536, FALSE);
        check_all_disks_released(&fixture);
        g_autoptr(GByteArray) header = read_file(reader, 512, 512, FALSE);
        g_assert_cmpmem(header->data, header->len, all->data, 512);
        g_autoptr(GByteArray) again = read_file(reader, layout->size_bytes, 65536, TRUE);
        uint64_t gone_bytes = 0;
        for (guint n = 0; n < fixture.snapshot->disks->len; n++)
            gone_bytes += all_but_the_last(((VmsnapDisk *)g_ptr_array_index(fixture.snapshot->disks, n))->size_bytes);
        g_assert_cmpuint(again->len, <=, layout->size_bytes - gone_bytes / 2);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

/* A qcow2 file is read from anywhere on, as by somebody who goes on with what was broken off. */
static void test_whoever_goes_on_in_the_middle_gets_the_rest(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(formats); i++) {
        Fixture fixture;
        fixture_init_format(&fixture, &formats[i], 0);
        const VmsnapLayout *layout = layout_of(&fixture, formats[i].file);
        uint64_t middle = layout->size_bytes / 2 / 1000 * 1000;
        VmsnapReader *first = open_file(&fixture, formats[i].file);
        g_byte_array_unref(read_file(first, middle, 1000, FALSE));
        vmsnap_reader_close(first);
        VmsnapReader *second = open_file(&fixture, formats[i].file);
        for (uint64_t offset = middle; offset < layout->size_bytes; offset += 50000) {
            Reading reading = {0};
            reading_start(&reading, second, offset, 50000);
            g_byte_array_unref(reading_finish(&reading));
            g_assert_cmpint(reading.error, ==, 0);
        }
        check_all_disks_released(&fixture);
        vmsnap_reader_close(second);
        fixture_clear(&fixture);
    }
}

/* A view that does not release, or a disk that cannot be, is as ever. */
static void test_disks_are_released_only_if_told_and_able(void) {
    for (int told = 0; told < 2; told++) {
        VmsnapViewOptions options = raw_options;
        options.release = told;
        g_autoptr(GError) error = NULL;
        Fixture fixture = {.snapshot = memory_snapshot_new(NULL)};
        VmsnapDisk *disk = memory_snapshot_add_disk(fixture.snapshot, "vda", extents_data(4 * UNIT_BYTES));
        if (!told)
            memory_disk_allow_release(disk);
        fixture.view = vmsnap_view_new(fixture.snapshot, &options);
        g_assert_true(vmsnap_view_start(fixture.view, never, NULL, &error));
        g_assert_null(release_of(&fixture));
        VmsnapReader *reader = open_file(&fixture, "vda.raw");
        for (int i = 0; i < 2; i++)
            check_from_to(&fixture, reader, 0, 4 * UNIT_BYTES, 100000);
        memory_snapshot_wait_idle(fixture.snapshot);
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).releases, ==, 0);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

/* Before a file is there, all is known that must not be read from the disk. */
static void test_a_view_that_releases_knows_its_disks(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_alternate(UINT64_C(5) << 30, 1 << 20));
    const VmsnapDiskView *disk = g_ptr_array_index(fixture.view->disks, 0);
    g_assert_true(vmsnap_scan_is_complete(disk->scan));
    fixture_clear(&fixture);
}

static void test_the_status_tells_what_was_released(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(4 * UNIT_BYTES));
    vmsnap_release_note(release_of(&fixture), 0, 2 * UNIT_BYTES);
    check_released(&fixture, 2 * UNIT_BYTES);
    g_autofree char *json = vmsnap_status_build_json(fixture.view);
    g_autofree char *text = vmsnap_status_build_text(fixture.view);
    g_autoptr(JsonParser) parser = json_parser_new();
    g_assert_true(json_parser_load_from_data(parser, json, -1, NULL));
    JsonObject *root = json_node_get_object(json_parser_get_root(parser));
    JsonObject *disk = json_array_get_object_element(json_object_get_array_member(root, "disks"), 0);
    g_assert_cmpint(json_object_get_int_member(disk, "released"), ==, (gint64)(2 * UNIT_BYTES));
    g_assert_nonnull(strstr(text, "2.0 MiB released"));
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/release/all-goes-but-the-last-unit", test_all_goes_but_the_last_unit);
    g_test_add_func("/release/a-unit-goes-with-its-last-byte", test_a_unit_goes_with_its_last_byte);
    g_test_add_func("/release/pieces-of-any-size-add-up", test_pieces_of_any_size_add_up);
    g_test_add_func("/release/zeroes-need-not-be-handed-out", test_zeroes_need_not_be_handed_out);
    g_test_add_func("/release/units-of-zeroes-go-with-their-neighbours", test_units_of_zeroes_go_with_their_neighbours);
    g_test_add_func("/release/a-disk-of-zeroes-is-left-alone", test_a_disk_of_zeroes_is_left_alone);
    g_test_add_func("/release/neighbours-go-together", test_neighbours_go_together);
    g_test_add_func("/release/what-is-scattered-goes-too", test_what_is_scattered_goes_too);
    g_test_add_func("/release/large-disks-have-larger-units", test_large_disks_have_larger_units);
    g_test_add_func("/release/the-oldest-of-too-many-units-is-forgotten",
                    test_the_oldest_of_too_many_units_is_forgotten);
    g_test_add_func("/release/readers-in-sequence-are-never-forgotten", test_readers_in_sequence_are_never_forgotten);
    g_test_add_func("/release/a-unit-in-too-many-ranges-is-forgotten", test_a_unit_in_too_many_ranges_is_forgotten);
    g_test_add_func("/release/after-a-failure-nothing-more-is-released", test_after_a_failure_nothing_more_is_released);
    g_test_add_func("/release/the-end-answers-what-is-under-way", test_the_end_answers_what_is_under_way);
    g_test_add_func("/release/a-lost-snapshot-releases-nothing", test_a_lost_snapshot_releases_nothing);
    g_test_add_func("/release/a-whole-file-gives-all-but-the-last-unit-back",
                    test_a_whole_file_gives_all_but_the_last_unit_back);
    g_test_add_func("/release/who-jumps-over-holes-gives-all-back", test_who_jumps_over_holes_gives_all_back);
    g_test_add_func("/release/a-second-read-fails-at-once", test_a_second_read_fails_at_once);
    g_test_add_func("/release/zeroes-can-always-be-read", test_zeroes_can_always_be_read);
    g_test_add_func("/release/parts-of-a-unit-can-be-read-again", test_parts_of_a_unit_can_be_read_again);
    g_test_add_func("/release/read-ahead-releases-nothing", test_read_ahead_releases_nothing);
    g_test_add_func("/release/chunks-of-what-is-gone-are-of-no-use", test_chunks_of_what_is_gone_are_of_no_use);
    g_test_add_func("/release/who-gets-no-answer-takes-nothing", test_who_gets_no_answer_takes_nothing);
    g_test_add_func("/release/who-meets-an-error-takes-nothing", test_who_meets_an_error_takes_nothing);
    g_test_add_func("/release/reads-under-way-are-right-or-fail", test_reads_under_way_are_right_or_fail);
    g_test_add_func("/release/streams-by-turns-give-all-back", test_streams_by_turns_give_all_back);
    g_test_add_func("/release/any-reads-equal-the-model", test_any_reads_equal_the_model);
    g_test_add_func("/release/any-reads-of-threads-fit-the-model", test_any_reads_of_threads_fit_the_model);
    g_test_add_func("/release/files-of-each-format-give-all-back", test_files_of_each_format_give_all_back);
    g_test_add_func("/release/files-that-are-released-have-the-same-bytes",
                    test_files_that_are_released_have_the_same_bytes);
    g_test_add_func("/release/tables-can-be-read-again-and-data-not", test_tables_can_be_read_again_and_data_not);
    g_test_add_func("/release/whoever-goes-on-in-the-middle-gets-the-rest",
                    test_whoever_goes_on_in_the_middle_gets_the_rest);
    g_test_add_func("/release/disks-are-released-only-if-told-and-able", test_disks_are_released_only_if_told_and_able);
    g_test_add_func("/release/a-view-that-releases-knows-its-disks", test_a_view_that_releases_knows_its_disks);
    g_test_add_func("/release/the-status-tells-what-was-released", test_the_status_tells_what_was_released);
    return g_test_run();
}
