/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Readers against the naive expansion: what they give, what they fetch ahead and what they do not, the memory that they
 * share, and what happens when the backend fails or ends.
 *
 * How large the window of a stream is and when it begins to run are the product's own matter. So tests tell what was
 * fetched ahead by what it is good for: a read that is answered while the backend is held.
 */
#include "fs/reader.h"
#include "fs/stream.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include <errno.h>
#include <string.h>

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES
#define CHUNK_BYTES VMSNAP_READER_CHUNK_BYTES
#define DEMAND_BYTES ((size_t)1 << 20)
#define MAX_READ_BYTES ((size_t)64 << 10)
/* What a stream may read before it runs, or read twice because its first chunk reaches back. */
#define START_BYTES (4 * CHUNK_BYTES)

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapDisk *disk;
    VmsnapDiskView *view;
    VmsnapLayout *raw;
    VmsnapThrottle *throttle;
    VmsnapReaderResources resources;
} Fixture;

typedef struct {
    guint n_ahead;
    guint n_demand;
} PoolSizes;

static const PoolSizes roomy = {.n_ahead = 256, .n_demand = 16};

static void fixture_init(Fixture *fixture, const MemoryFaults *faults, GArray *extents, PoolSizes pools) {
    fixture->snapshot = memory_snapshot_new(faults);
    fixture->disk = memory_snapshot_add_disk(fixture->snapshot, "vda", extents);
    fixture->throttle = vmsnap_throttle_new(0);
    fixture->view = vmsnap_disk_view_new(fixture->disk, fixture->throttle);
    fixture->raw = vmsnap_layout_new_raw(fixture->view);
    fixture->resources = (VmsnapReaderResources){
        .snapshot = fixture->snapshot,
        .demand = vmsnap_buffer_pool_new(DEMAND_BYTES, pools.n_demand),
        .ahead = vmsnap_buffer_pool_new(CHUNK_BYTES, pools.n_ahead),
        .throttle = fixture->throttle,
    };
}

/* The snapshot has ended. Pools assert that they have got back all their buffers. */
static void fixture_free(Fixture *fixture) {
    vmsnap_layout_free(fixture->raw);
    vmsnap_disk_view_free(fixture->view);
    vmsnap_buffer_pool_free(fixture->resources.demand);
    vmsnap_buffer_pool_free(fixture->resources.ahead);
    vmsnap_throttle_free(fixture->throttle);
    vmsnap_snapshot_free(fixture->snapshot);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    fixture_free(fixture);
}

/* Asks for all extents, so that nothing but reads is left to be counted. */
static void fixture_scan(Fixture *fixture) {
    vmsnap_scan_start(fixture->view->scan, NULL);
    memory_snapshot_wait_idle(fixture->snapshot);
    g_assert_true(vmsnap_scan_is_complete(fixture->view->scan));
}

static VmsnapReader *open_disk(Fixture *fixture) {
    return vmsnap_reader_new(fixture->raw, &fixture->resources);
}

static GArray *extents_data(uint64_t size_bytes) {
    return extents_alternate(size_bytes, size_bytes);
}

/* One read and all that came of it. */
typedef struct {
    uint64_t offset;
    size_t length;
    Latch called;
    int error;
    GByteArray *data;
} Reading;

static gboolean reading_done(int error, const struct iovec *pieces, guint n_pieces, gpointer user_data) {
    Reading *reading = user_data;
    reading->error = error;
    if (error)
        g_assert_cmpuint(n_pieces, ==, 0);
    for (guint i = 0; i < n_pieces; i++) {
        g_assert_cmpuint(pieces[i].iov_len, >, 0);
        g_byte_array_append(reading->data, pieces[i].iov_base, (guint)pieces[i].iov_len);
    }
    latch_count(&reading->called);
    return error == 0;
}

static void reading_start(Reading *reading, VmsnapReader *reader, uint64_t offset, size_t length) {
    *reading = (Reading){.offset = offset, .length = length, .data = g_byte_array_new()};
    latch_init(&reading->called);
    vmsnap_reader_read(reader, offset, length, reading_done, reading);
}

static gboolean reading_is_done(Reading *reading) {
    return latch_get(&reading->called) > 0;
}

/* Everybody is called once, by now. */
static void reading_clear(Reading *reading) {
    g_assert_cmpuint(latch_get(&reading->called), ==, 1);
    g_byte_array_unref(reading->data);
    latch_clear(&reading->called);
}

static void reading_check(const Reading *reading, const VmsnapDisk *disk) {
    uint64_t left = reading->offset < disk->size_bytes ? disk->size_bytes - reading->offset : 0;
    size_t length = MIN(reading->length, left);
    g_autofree uint8_t *expected = g_malloc(length + 1);
    memory_disk_expand(disk, expected, length, reading->offset);
    g_assert_cmpint(reading->error, ==, 0);
    g_assert_cmpmem(reading->data->data, reading->data->len, expected, length);
}

static void reading_finish(Reading *reading, const VmsnapDisk *disk) {
    latch_wait(&reading->called, 1);
    reading_check(reading, disk);
    reading_clear(reading);
}

static void check_read(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, size_t length) {
    Reading reading;
    reading_start(&reading, reader, offset, length);
    reading_finish(&reading, fixture->disk);
}

static int read_error(VmsnapReader *reader, uint64_t offset, size_t length) {
    Reading reading;
    reading_start(&reading, reader, offset, length);
    latch_wait(&reading.called, 1);
    int error = reading.error;
    reading_clear(&reading);
    return error;
}

/* Reads, waits until all is quiet, and returns: whether the answer was there before the disk was asked. */
static gboolean check_read_is_ahead(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, size_t length) {
    Reading reading;
    memory_snapshot_hold(fixture->snapshot);
    reading_start(&reading, reader, offset, length);
    gboolean ahead = reading_is_done(&reading);
    memory_snapshot_release(fixture->snapshot);
    reading_finish(&reading, fixture->disk);
    memory_snapshot_wait_idle(fixture->snapshot);
    return ahead;
}

/* Returns: how many bytes of a range had to be waited for by a reader that goes through it. */
static uint64_t count_waited_bytes(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, uint64_t length,
                                   size_t block_bytes) {
    uint64_t waited = 0;
    for (uint64_t end = offset + length; offset < end; offset += block_bytes) {
        size_t step = MIN(block_bytes, end - offset);
        if (!check_read_is_ahead(fixture, reader, offset, step))
            waited += step;
    }
    return waited;
}

static uint64_t count_fetched_bytes(const Fixture *fixture) {
    return memory_snapshot_count(fixture->snapshot).bytes;
}

static void check_from_to(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, uint64_t end, size_t length) {
    for (; offset < end; offset += length)
        check_read(fixture, reader, offset, length);
}

/* What readers give */

static const PoolSizes all_pools[] = {{0, 1},  {0, 16}, {1, 1},  {1, 16},  {2, 1},
                                      {2, 16}, {3, 1},  {3, 16}, {256, 1}, {256, 16}};

static uint64_t random_offset(const Fixture *fixture) {
    return extents_random_offset(memory_disk_get_extents(fixture->disk), fixture->disk->size_bytes);
}

static void test_any_range_equals_naive(void) {
    static const uint64_t max_lengths[] = {256, 64 << 10, 256 << 20};
    for (size_t i = 0; i < G_N_ELEMENTS(max_lengths); i++) {
        for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++) {
            Fixture fixture;
            GArray *extents = extents_random(max_lengths[i] * 25 + random_below(10000), max_lengths[i]);
            fixture_init(&fixture, NULL, extents, all_pools[n]);
            VmsnapReader *reader = open_disk(&fixture);
            for (int reads = 0; reads < 30; reads++)
                check_read(&fixture, reader, random_offset(&fixture), random_below(MAX_READ_BYTES));
            check_read(&fixture, reader, random_offset(&fixture), DEMAND_BYTES);
            check_read(&fixture, reader, random_offset(&fixture), DEMAND_BYTES + 1);
            vmsnap_reader_close(reader);
            fixture_clear(&fixture);
        }
    }
}

static const size_t block_sizes[] = {512,    4096,   4097,   10240,  65536,   99999,
                                     131072, 262143, 262144, 300000, 1 << 20, (1 << 20) + 1};

static void check_whole_disk(GArray *extents, PoolSizes pools, size_t block_bytes) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents, pools);
    VmsnapReader *reader = open_disk(&fixture);
    check_from_to(&fixture, reader, 0, fixture.disk->size_bytes, block_bytes);
    check_read(&fixture, reader, fixture.disk->size_bytes, block_bytes);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* The last chunk is not a whole one. */
static void test_from_begin_to_end_equals_naive(void) {
    uint64_t size = 4 * CHUNK_BYTES + 54321;
    for (size_t i = 0; i < G_N_ELEMENTS(block_sizes); i++)
        for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++)
            check_whole_disk(extents_random(size, n % 2 ? 64 << 10 : 1 << 20), all_pools[n], block_sizes[i]);
}

static void test_a_disk_of_whole_chunks_equals_naive(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(block_sizes); i++)
        check_whole_disk(extents_data(3 * CHUNK_BYTES), roomy, block_sizes[i]);
}

/* Small extents from so far before each window's end to so far behind it, and a hole between. */
static GArray *extents_around_seams(uint64_t near_bytes) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    for (int i = 0; i < 2; i++) {
        g_autoptr(GArray) near = extents_random(2 * near_bytes, 64 << 10);
        extents_append(extents, VMSNAP_EXTENT_ZERO, WINDOW_BYTES - (i ? 2 : 1) * near_bytes);
        g_array_append_vals(extents, near->data, near->len);
    }
    return extents;
}

static void test_windows_join_without_a_seam(void) {
    uint64_t near = 700000;
    for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_around_seams(near), all_pools[n]);
        VmsnapReader *reader = open_disk(&fixture);
        check_from_to(&fixture, reader, WINDOW_BYTES - near - 100, WINDOW_BYTES + near, 100000);
        check_from_to(&fixture, reader, 2 * WINDOW_BYTES - near - 100, fixture.disk->size_bytes, 131072);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

/* The kernel's threads take reads that follow each other in about their order only. */
static void check_shuffled_reads(const Fixture *fixture, VmsnapReader *reader, uint64_t offset, size_t length) {
    Reading readings[6];
    gboolean started[G_N_ELEMENTS(readings)] = {FALSE};
    for (size_t n = 0; n < G_N_ELEMENTS(readings); n++) {
        size_t i = random_below(G_N_ELEMENTS(readings));
        while (started[i])
            i = (i + 1) % G_N_ELEMENTS(readings);
        started[i] = TRUE;
        reading_start(&readings[i], reader, offset + i * length, length);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++)
        reading_finish(&readings[i], fixture->disk);
}

static void test_shuffled_neighbours_equal_naive_and_cost_little(void) {
    static const MemoryFaults slow = {.max_delay_us = 100};
    for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++) {
        Fixture fixture;
        uint64_t size = 60 * MAX_READ_BYTES;
        fixture_init(&fixture, &slow, extents_random(size, CHUNK_BYTES), all_pools[n]);
        VmsnapReader *reader = open_disk(&fixture);
        for (uint64_t offset = 0; offset < size; offset += 6 * MAX_READ_BYTES)
            check_shuffled_reads(&fixture, reader, offset, MAX_READ_BYTES);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

static void test_the_end_gives_less_and_beyond_gives_nothing(void) {
    Fixture fixture;
    uint64_t size = 1000003;
    fixture_init(&fixture, NULL, extents_random(size, 4096), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    check_read(&fixture, reader, size - 1, 1);
    check_read(&fixture, reader, size - 1, 4096);
    check_read(&fixture, reader, size - 100000, 200000);
    check_read(&fixture, reader, size, 1);
    check_read(&fixture, reader, size + 1, 4096);
    check_read(&fixture, reader, UINT64_MAX, 4096);
    check_read(&fixture, reader, UINT64_MAX - 4095, 4096);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

static void test_no_bytes_cost_nothing(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_random(1000003, 4096), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    check_read(&fixture, reader, 0, 0);
    check_read(&fixture, reader, 1000003, 0);
    MemoryCounts counts = memory_snapshot_count(fixture.snapshot);
    g_assert_cmpuint(counts.questions + counts.reads, ==, 0);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

static void test_files_in_memory_need_no_buffer(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(4096), (PoolSizes){.n_ahead = 0, .n_demand = 0});
    g_autofree uint8_t *bytes = g_malloc(3 * CHUNK_BYTES);
    memory_disk_expand(fixture.disk, bytes, 4096, 0);
    memset(bytes + 4096, 'x', 3 * CHUNK_BYTES - 4096);
    g_autoptr(GBytes) content = g_bytes_new_static(bytes, 3 * CHUNK_BYTES);
    VmsnapLayout *layout = vmsnap_layout_new_memory(content);
    VmsnapReader *reader = vmsnap_reader_new(layout, &fixture.resources);
    for (uint64_t offset = 0; offset < 3 * CHUNK_BYTES; offset += 99999) {
        Reading reading;
        reading_start(&reading, reader, offset, 300000);
        g_assert_true(reading_is_done(&reading));
        g_assert_cmpmem(reading.data->data, reading.data->len, bytes + offset, MIN(300000, 3 * CHUNK_BYTES - offset));
        reading_clear(&reading);
    }
    vmsnap_reader_close(reader);
    vmsnap_layout_free(layout);
    fixture_clear(&fixture);
}

static void test_an_empty_file_is_read(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(4096), roomy);
    g_autoptr(GBytes) empty = g_bytes_new(NULL, 0);
    VmsnapLayout *layout = vmsnap_layout_new_memory(empty);
    VmsnapReader *reader = vmsnap_reader_new(layout, &fixture.resources);
    Reading reading;
    reading_start(&reading, reader, 0, 4096);
    g_assert_cmpint(reading.error, ==, 0);
    g_assert_cmpuint(reading.data->len, ==, 0);
    reading_clear(&reading);
    vmsnap_reader_close(reader);
    vmsnap_layout_free(layout);
    fixture_clear(&fixture);
}

static void test_progress_counts_data_that_was_handed_out(void) {
    Fixture fixture;
    uint64_t size = 8 * CHUNK_BYTES;
    fixture_init(&fixture, NULL, extents_alternate(size, 64 << 10), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    const VmsnapProgress *progress = fixture.view->progress;
    check_read(&fixture, reader, 0, 128 << 10);
    g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, 64 << 10);
    check_read(&fixture, reader, 64 << 10, 64 << 10);
    g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, 64 << 10);
    /* By now there are chunks ahead, which nobody has seen. */
    check_read(&fixture, reader, 128 << 10, 128 << 10);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, 128 << 10);
    check_from_to(&fixture, reader, 0, size, 100000);
    g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, size / 2);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* What is fetched ahead, and what is not */

static const size_t usual_sizes[] = {4096, 10240, 65536, 131072, 300000, 1 << 20};

/* Runs of data and zeroes by turns; 0: data alone. */
static const uint64_t run_lengths[] = {0, 4096, 64 << 10, 100000, CHUNK_BYTES, 1 << 20, 3 << 20};

static GArray *extents_of_runs(uint64_t size_bytes, uint64_t run_bytes) {
    return run_bytes ? extents_alternate(size_bytes, run_bytes) : extents_data(size_bytes);
}

static void test_sequential_readers_fetch_each_byte_once(void) {
    uint64_t size = 6 << 20;
    for (size_t i = 0; i < G_N_ELEMENTS(usual_sizes); i++) {
        for (size_t n = 0; n < G_N_ELEMENTS(run_lengths); n++) {
            Fixture fixture;
            fixture_init(&fixture, NULL, extents_of_runs(size, run_lengths[n]), roomy);
            fixture_scan(&fixture);
            VmsnapReader *reader = open_disk(&fixture);
            for (uint64_t offset = 0; offset < size; offset += usual_sizes[i])
                g_assert_cmpint(read_error(reader, offset, usual_sizes[i]), ==, 0);
            uint64_t zero_bytes = vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(fixture.view->scan));
            g_assert_cmpuint(count_fetched_bytes(&fixture), <=, size - zero_bytes + CHUNK_BYTES);
            g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).zero_bytes_read, ==, 0);
            vmsnap_reader_close(reader);
            fixture_clear(&fixture);
        }
    }
}

/* Once a stream runs, what is read next has always been fetched, however data and holes alternate. */
static void test_sequential_readers_need_not_wait(void) {
    uint64_t size = 6 << 20;
    for (size_t i = 0; i < G_N_ELEMENTS(usual_sizes); i++) {
        for (size_t n = 0; n < G_N_ELEMENTS(run_lengths); n++) {
            Fixture fixture;
            fixture_init(&fixture, NULL, extents_of_runs(size, run_lengths[n]), roomy);
            fixture_scan(&fixture);
            VmsnapReader *reader = open_disk(&fixture);
            uint64_t waited = count_waited_bytes(&fixture, reader, 0, size, usual_sizes[i]);
            g_test_message("%" G_GUINT64_FORMAT " bytes waited for, runs of %" G_GUINT64_FORMAT ", blocks of %zu",
                           waited, run_lengths[n], usual_sizes[i]);
            g_assert_cmpuint(waited, <=, START_BYTES + 2 * usual_sizes[i]);
            vmsnap_reader_close(reader);
            fixture_clear(&fixture);
        }
    }
}

static void test_what_follows_is_asked_for_before_it_is_wanted(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(64 << 20), roomy);
    fixture_scan(&fixture);
    VmsnapReader *reader = open_disk(&fixture);
    Reading readings[2];
    memory_snapshot_hold(fixture.snapshot);
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++)
        reading_start(&readings[i], reader, i * 131072, 131072);
    g_assert_cmpuint(count_fetched_bytes(&fixture), >, UINT64_C(2) * 131072);
    memory_snapshot_release(fixture.snapshot);
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++)
        reading_finish(&readings[i], fixture.disk);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_true(check_read_is_ahead(&fixture, reader, UINT64_C(2) * 131072, 131072));
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* Without memory for it there is no read-ahead, and all the rest is as ever. */
static void test_without_a_pool_nothing_is_fetched_ahead(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(4 << 20), (PoolSizes){.n_ahead = 0, .n_demand = 16});
    VmsnapReader *reader = open_disk(&fixture);
    check_from_to(&fixture, reader, 0, 4 << 20, 131072);
    g_assert_cmpuint(count_fetched_bytes(&fixture), ==, 4 << 20);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* However small the pool: one that is in use goes on to be of use. */
static void test_a_small_pool_stays_of_use(void) {
    static const guint pools[] = {1, 2, 3, 4, 6, 8};
    static const size_t sizes[] = {4096, 10240, 65536, CHUNK_BYTES / 2};
    for (size_t n = 0; n < G_N_ELEMENTS(pools); n++) {
        for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
            Fixture fixture;
            uint64_t half = (3 << 20) / sizes[i] * sizes[i];
            fixture_init(&fixture, NULL, extents_data(2 * half), (PoolSizes){.n_ahead = pools[n], .n_demand = 16});
            fixture_scan(&fixture);
            VmsnapReader *reader = open_disk(&fixture);
            (void)count_waited_bytes(&fixture, reader, 0, half, sizes[i]);
            uint64_t waited = count_waited_bytes(&fixture, reader, half, half, sizes[i]);
            g_test_message("%" G_GUINT64_FORMAT " bytes waited for, %u buffers, blocks of %zu", waited, pools[n],
                           sizes[i]);
            g_assert_cmpuint(waited, <, half / 4 * 3);
            vmsnap_reader_close(reader);
            fixture_clear(&fixture);
        }
    }
}

/* Gives the numbers below @n in any order. */
static void shuffle(unsigned *numbers, unsigned n) {
    for (unsigned i = 0; i < n; i++)
        numbers[i] = i;
    for (unsigned i = n - 1; i > 0; i--) {
        unsigned other = (unsigned)random_below(i + 1), number = numbers[i];
        numbers[i] = numbers[other];
        numbers[other] = number;
    }
}

#define N_SCATTERED 12

typedef uint64_t (*PatternFunc)(const unsigned *shuffled, unsigned i, size_t block_bytes);

/* Places of a random reader, so far from each other that it never seems to go on. */
static uint64_t pattern_random(const unsigned *shuffled, unsigned i, size_t block_bytes) {
    return (uint64_t)shuffled[i] * 5 * block_bytes;
}

static uint64_t pattern_backward(const unsigned *shuffled, unsigned i, size_t block_bytes) {
    (void)shuffled;
    return (uint64_t)(N_SCATTERED - 1 - i) * block_bytes;
}

static uint64_t pattern_every_second(const unsigned *shuffled, unsigned i, size_t block_bytes) {
    (void)shuffled;
    return (uint64_t)i * 2 * block_bytes;
}

static uint64_t pattern_strided(const unsigned *shuffled, unsigned i, size_t block_bytes) {
    (void)shuffled;
    return (uint64_t)i * 7 * block_bytes;
}

static uint64_t pattern_one_place(const unsigned *shuffled, unsigned i, size_t block_bytes) {
    (void)shuffled;
    (void)i;
    return 3 * block_bytes;
}

/* From the outside to the middle, as some who look for headers and trailers. */
static uint64_t pattern_both_ends(const unsigned *shuffled, unsigned i, size_t block_bytes) {
    (void)shuffled;
    return (uint64_t)(i % 2 ? 5 * N_SCATTERED - i * 2 : i * 2) * block_bytes;
}

static void check_pattern_fetches_no_more(PatternFunc pattern, size_t block_bytes) {
    Fixture fixture;
    unsigned shuffled[N_SCATTERED];
    shuffle(shuffled, N_SCATTERED);
    fixture_init(&fixture, NULL, extents_data((uint64_t)8 * N_SCATTERED * block_bytes), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    for (unsigned i = 0; i < N_SCATTERED; i++)
        check_read(&fixture, reader, pattern(shuffled, i, block_bytes), block_bytes);
    g_assert_cmpuint(count_fetched_bytes(&fixture), ==, (uint64_t)N_SCATTERED * block_bytes);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

static void test_who_does_not_go_on_fetches_no_more_than_he_wants(void) {
    static const PatternFunc patterns[] = {pattern_random,  pattern_backward,  pattern_every_second,
                                           pattern_strided, pattern_one_place, pattern_both_ends};
    for (size_t i = 0; i < G_N_ELEMENTS(patterns); i++)
        for (size_t n = 0; n < G_N_ELEMENTS(usual_sizes); n++)
            check_pattern_fetches_no_more(patterns[i], usual_sizes[n]);
}

#define N_STREAMS 4

static void test_interleaved_streams_of_one_file_all_need_not_wait(void) {
    size_t block_bytes = 65536;
    uint64_t length = 8 << 20;
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(N_STREAMS * WINDOW_BYTES), roomy);
    fixture_scan(&fixture);
    VmsnapReader *reader = open_disk(&fixture);
    uint64_t waited[N_STREAMS] = {0};
    for (uint64_t offset = 0; offset < length; offset += block_bytes)
        for (unsigned i = 0; i < N_STREAMS; i++)
            waited[i] +=
                count_waited_bytes(&fixture, reader, i * WINDOW_BYTES + 4096 + offset, block_bytes, block_bytes);
    for (unsigned i = 0; i < N_STREAMS; i++)
        g_assert_cmpuint(waited[i], <=, START_BYTES);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* As cp and tar: they ask where data are, and read nothing else. */
static void test_who_jumps_over_holes_needs_not_wait(void) {
    static const uint64_t data_lengths[] = {64 << 10, 100000, CHUNK_BYTES, 300000, 1 << 20, 3 << 20};
    static const uint64_t hole_lengths[] = {4096, 64 << 10, 1 << 20, 64 << 20};
    for (size_t i = 0; i < G_N_ELEMENTS(data_lengths); i++) {
        for (size_t n = 0; n < G_N_ELEMENTS(hole_lengths); n++) {
            Fixture fixture;
            uint64_t run = data_lengths[i] + hole_lengths[n], n_runs = (6 << 20) / data_lengths[i];
            GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
            for (uint64_t k = 0; k < n_runs; k++) {
                extents_append(extents, VMSNAP_EXTENT_DATA, data_lengths[i]);
                extents_append(extents, VMSNAP_EXTENT_ZERO, hole_lengths[n]);
            }
            fixture_init(&fixture, NULL, extents, roomy);
            fixture_scan(&fixture);
            VmsnapReader *reader = open_disk(&fixture);
            uint64_t waited = 0;
            for (uint64_t k = 0; k < n_runs; k++)
                waited += count_waited_bytes(&fixture, reader, k * run, data_lengths[i], 131072);
            g_test_message("%" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " bytes waited for, data %" G_GUINT64_FORMAT
                           ", holes %" G_GUINT64_FORMAT,
                           waited, n_runs * data_lengths[i], data_lengths[i], hole_lengths[n]);
            g_assert_cmpuint(waited, <=, START_BYTES);
            vmsnap_reader_close(reader);
            fixture_clear(&fixture);
        }
    }
}

static void test_holes_never_cost_a_disk_read(void) {
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, 20 << 20);
    fixture_init(&fixture, NULL, extents, (PoolSizes){.n_ahead = 256, .n_demand = 0});
    fixture_scan(&fixture);
    VmsnapReader *reader = open_disk(&fixture);
    for (size_t i = 0; i < G_N_ELEMENTS(usual_sizes); i++)
        g_assert_cmpuint(count_waited_bytes(&fixture, reader, 0, 4 << 20, usual_sizes[i]), ==, 0);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).reads, ==, 0);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* The reader has not come to the hole yet, and what lies behind it has been fetched. */
static void test_streams_run_ahead_in_data_not_in_offsets(void) {
    uint64_t data = 1 << 20, hole = 900 << 20;
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, data);
    extents_append(extents, VMSNAP_EXTENT_ZERO, hole);
    extents_append(extents, VMSNAP_EXTENT_DATA, data);
    fixture_init(&fixture, NULL, extents, roomy);
    fixture_scan(&fixture);
    VmsnapReader *reader = open_disk(&fixture);
    check_from_to(&fixture, reader, 0, data - 131072, 131072);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_cmpuint(count_fetched_bytes(&fixture), >, data + CHUNK_BYTES);
    check_read(&fixture, reader, data - 131072, 131072);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_true(check_read_is_ahead(&fixture, reader, data + hole, 131072));
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* A limit so low that a chunk would keep others waiting for seconds. */
static void test_a_low_limit_leaves_no_room_for_read_ahead(void) {
    Fixture fixture;
    Reading readings[8];
    fixture_init(&fixture, NULL, extents_data(8 << 20), roomy);
    fixture_scan(&fixture);
    VmsnapReader *reader = open_disk(&fixture);
    vmsnap_throttle_set_rate(fixture.throttle, 10000);
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++)
        reading_start(&readings[i], reader, i * 65536, 65536);
    vmsnap_reader_close(reader);
    vmsnap_throttle_set_rate(fixture.throttle, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(readings); i++)
        reading_finish(&readings[i], fixture.disk);
    g_assert_cmpuint(count_fetched_bytes(&fixture), ==, sizeof readings / sizeof readings[0] * 65536);
    fixture_clear(&fixture);
}

/* Memory */

#define N_READERS 64

static void test_buffers_for_demand_are_bounded(void) {
    static const guint bounds[] = {1, 16};
    for (size_t n = 0; n < G_N_ELEMENTS(bounds); n++) {
        Fixture fixture;
        VmsnapReader *readers[N_READERS];
        Reading readings[N_READERS];
        fixture_init(&fixture, NULL, extents_data(64 << 20), (PoolSizes){.n_ahead = 256, .n_demand = bounds[n]});
        fixture_scan(&fixture);
        memory_snapshot_hold(fixture.snapshot);
        for (unsigned i = 0; i < N_READERS; i++) {
            readers[i] = open_disk(&fixture);
            reading_start(&readings[i], readers[i], i * CHUNK_BYTES, 100000);
        }
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).outstanding, ==, bounds[n]);
        memory_snapshot_release(fixture.snapshot);
        for (unsigned i = 0; i < N_READERS; i++) {
            reading_finish(&readings[i], fixture.disk);
            vmsnap_reader_close(readers[i]);
        }
        fixture_clear(&fixture);
    }
}

static void test_buffers_for_read_ahead_are_bounded(void) {
    static const guint bounds[] = {0, 3, 20};
    for (size_t n = 0; n < G_N_ELEMENTS(bounds); n++) {
        Fixture fixture;
        VmsnapReader *readers[N_READERS];
        Reading readings[N_READERS][2];
        fixture_init(&fixture, NULL, extents_data(64 << 20), (PoolSizes){bounds[n], 2 * N_READERS});
        fixture_scan(&fixture);
        memory_snapshot_hold(fixture.snapshot);
        for (unsigned i = 0; i < N_READERS; i++) {
            readers[i] = open_disk(&fixture);
            for (unsigned k = 0; k < 2; k++)
                reading_start(&readings[i][k], readers[i], i * CHUNK_BYTES + k * 131072, 131072);
        }
        uint64_t ahead_bytes = count_fetched_bytes(&fixture) - 2 * N_READERS * 131072;
        g_assert_cmpuint(ahead_bytes, <=, bounds[n] * CHUNK_BYTES);
        g_assert_cmpint(ahead_bytes > 0, ==, bounds[n] > 0);
        memory_snapshot_release(fixture.snapshot);
        for (unsigned i = 0; i < N_READERS; i++) {
            for (unsigned k = 0; k < 2; k++)
                reading_finish(&readings[i][k], fixture.disk);
            vmsnap_reader_close(readers[i]);
        }
        fixture_clear(&fixture);
    }
}

/* One reader after the other comes, and all go on by turns. Those who came last must not stay without buffers. */
static void test_late_readers_get_their_share(void) {
    enum { READERS = 10, LATENESS = 8 };
    size_t block_bytes = 65536;
    Fixture fixture;
    VmsnapReader *readers[READERS];
    uint64_t waited[READERS] = {0}, read[READERS] = {0};
    fixture_init(&fixture, NULL, extents_data(64 << 20), (PoolSizes){.n_ahead = 4 * READERS, .n_demand = 16});
    fixture_scan(&fixture);
    for (unsigned i = 0; i < READERS; i++)
        readers[i] = open_disk(&fixture);
    for (unsigned turn = 0; turn < 180; turn++) {
        for (unsigned i = 0; i < READERS && i * LATENESS <= turn; i++) {
            uint64_t offset = (uint64_t)(turn - i * LATENESS) * block_bytes;
            gboolean ahead = check_read_is_ahead(&fixture, readers[i], offset, block_bytes);
            /* All are there, and have found their share. */
            if (turn >= 140) {
                read[i]++;
                waited[i] += !ahead;
            }
        }
    }
    for (unsigned i = 0; i < READERS; i++) {
        g_test_message("reader %u waited for %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " reads", i, waited[i],
                       read[i]);
        g_assert_cmpuint(waited[i], <, read[i] / 2);
        vmsnap_reader_close(readers[i]);
    }
    fixture_clear(&fixture);
}

/* Returns: how many buffers a pool has that nobody uses. */
static guint count_free(VmsnapBufferPool *pool) {
    g_autoptr(GPtrArray) taken = g_ptr_array_new();
    for (uint8_t *buffer; (buffer = vmsnap_buffer_pool_try_take(pool, 0));)
        g_ptr_array_add(taken, buffer);
    for (guint i = 0; i < taken->len; i++)
        vmsnap_buffer_pool_give(pool, g_ptr_array_index(taken, i));
    return taken->len;
}

static void test_closing_gives_up_what_was_fetched_ahead(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(64 << 20), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    check_from_to(&fixture, reader, 0, 2 << 20, 131072);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_cmpuint(count_free(fixture.resources.ahead), <, roomy.n_ahead);
    vmsnap_reader_close(reader);
    g_assert_cmpuint(count_free(fixture.resources.ahead), ==, roomy.n_ahead);
    fixture_clear(&fixture);
}

/* A chunk of which everything has been asked for goes with its last reader. */
static void test_what_was_read_is_given_up(void) {
    Fixture fixture;
    uint64_t size = 16 * CHUNK_BYTES;
    fixture_init(&fixture, NULL, extents_data(size), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    check_from_to(&fixture, reader, 0, size / 2, CHUNK_BYTES / 2);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_cmpuint(count_free(fixture.resources.ahead), <, roomy.n_ahead);
    check_from_to(&fixture, reader, size / 2, size, CHUNK_BYTES / 2);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_cmpuint(count_free(fixture.resources.ahead), ==, roomy.n_ahead);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* Streams of one file are replaced, and so is what was fetched for them, though no stream ever passes it by. */
static void test_new_streams_take_the_place_of_old_ones(void) {
    static const PoolSizes large = {.n_ahead = 500, .n_demand = 16};
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(WINDOW_BYTES), large);
    fixture_scan(&fixture);
    VmsnapReader *reader = open_disk(&fixture);
    guint n_free = 0;
    for (uint64_t i = 0; i < 20; i++) {
        g_assert_cmpuint(count_waited_bytes(&fixture, reader, (19 - i) * (100 << 20), 3 << 20, 131072), <=,
                         START_BYTES);
        if (i == VMSNAP_MAX_STREAMS)
            n_free = count_free(fixture.resources.ahead);
    }
    g_assert_cmpuint(count_free(fixture.resources.ahead), >=, n_free);
    vmsnap_reader_close(reader);
    g_assert_cmpuint(count_free(fixture.resources.ahead), ==, large.n_ahead);
    fixture_clear(&fixture);
}

/* Failures */

#define BLOCK_BYTES ((size_t)131072)

/* Reads the first two blocks, which begins a stream, and the third, which waits for its chunk. All are on their way. */
static void start_run(Fixture *fixture, VmsnapReader *reader, Reading *readings) {
    fixture_scan(fixture);
    memory_snapshot_hold(fixture->snapshot);
    for (unsigned i = 0; i < 2; i++)
        reading_start(&readings[i], reader, i * BLOCK_BYTES, BLOCK_BYTES);
    unsigned reads = memory_snapshot_count(fixture->snapshot).reads;
    g_assert_cmpuint(reads, >, 2);
    reading_start(&readings[2], reader, 2 * BLOCK_BYTES, BLOCK_BYTES);
    g_assert_false(reading_is_done(&readings[2]));
}

/* The question for extents is the first call, and two reads follow; so the fourth one is a chunk. */
#define CHUNK_CALL 4

static void test_who_waits_for_a_chunk_that_fails_reads_alone(void) {
    const MemoryFaults faults = {.fail_call = CHUNK_CALL};
    Fixture fixture;
    Reading readings[3];
    fixture_init(&fixture, &faults, extents_data(64 << 20), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    start_run(&fixture, reader, readings);
    memory_snapshot_release(fixture.snapshot);
    for (unsigned i = 0; i < 3; i++)
        reading_finish(&readings[i], fixture.disk);
    check_from_to(&fixture, reader, 3 * BLOCK_BYTES, 20 * BLOCK_BYTES, BLOCK_BYTES);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

static void test_who_cannot_read_alone_either_fails_once(void) {
    for (int at_once = 0; at_once < 2; at_once++) {
        const MemoryFaults faults = {.fail_call = CHUNK_CALL, .fail_rest = TRUE, .fail_at_once = at_once};
        Fixture fixture;
        Reading readings[3];
        fixture_init(&fixture, &faults, extents_data(64 << 20), roomy);
        VmsnapReader *reader = open_disk(&fixture);
        fixture_scan(&fixture);
        memory_snapshot_hold(fixture.snapshot);
        for (unsigned i = 0; i < 3; i++)
            reading_start(&readings[i], reader, i * BLOCK_BYTES, BLOCK_BYTES);
        memory_snapshot_release(fixture.snapshot);
        for (unsigned i = 0; i < 2; i++)
            reading_finish(&readings[i], fixture.disk);
        latch_wait(&readings[2].called, 1);
        g_assert_cmpint(readings[2].error, ==, -EIO);
        g_assert_cmpuint(vmsnap_progress_get_bytes(fixture.view->progress), ==, 2 * BLOCK_BYTES);
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
        reading_clear(&readings[2]);
    }
}

/* A place that cannot be read fails those who touch it, and nobody else in its chunk. */
static void test_a_bad_range_fails_who_touches_it(void) {
    uint64_t size = 12 * CHUNK_BYTES;
    for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++) {
        const MemoryFaults faults = {
            .bad_offset = random_below(size - 4096), .bad_bytes = 4096, .fail_at_once = random_below(2)};
        size_t block_bytes = usual_sizes[random_below(4)];
        Fixture fixture;
        fixture_init(&fixture, &faults, extents_data(size), all_pools[n]);
        VmsnapReader *reader = open_disk(&fixture);
        for (uint64_t offset = 0; offset < size; offset += block_bytes) {
            gboolean bad = offset < faults.bad_offset + faults.bad_bytes && faults.bad_offset < offset + block_bytes;
            if (bad)
                g_assert_cmpint(read_error(reader, offset, block_bytes), ==, -EIO);
            else
                check_read(&fixture, reader, offset, block_bytes);
        }
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
    }
}

#define N_RUN 12

/* A stream across a window, all of it at once; one call after the other fails, until a run gets by. */
static void test_any_one_failure_is_told_once(void) {
    gboolean failed = TRUE;
    for (unsigned fail_call = 1; failed; fail_call++) {
        for (int at_once = 0; at_once < 2; at_once++) {
            const MemoryFaults faults = {.fail_call = fail_call, .fail_at_once = at_once, .max_answer_bytes = 1 << 30};
            uint64_t start = WINDOW_BYTES - N_RUN / 2 * BLOCK_BYTES;
            Fixture fixture;
            Reading readings[N_RUN];
            unsigned n_failed = 0;
            fixture_init(&fixture, &faults, extents_alternate(WINDOW_BYTES + (8 << 20), 1 << 20),
                         all_pools[fail_call % G_N_ELEMENTS(all_pools)]);
            VmsnapReader *reader = open_disk(&fixture);
            for (unsigned i = 0; i < N_RUN; i++)
                reading_start(&readings[i], reader, start + i * BLOCK_BYTES, BLOCK_BYTES);
            for (unsigned i = 0; i < N_RUN; i++) {
                latch_wait(&readings[i].called, 1);
                n_failed += readings[i].error != 0;
                if (readings[i].error)
                    g_assert_cmpint(readings[i].error, ==, -EIO);
                else
                    reading_check(&readings[i], fixture.disk);
            }
            g_assert_cmpuint(n_failed, <=, 1);
            MemoryCounts counts = memory_snapshot_count(fixture.snapshot);
            failed = counts.reads + counts.questions >= fail_call;
            vmsnap_reader_close(reader);
            fixture_clear(&fixture);
            for (unsigned i = 0; i < N_RUN; i++)
                reading_clear(&readings[i]);
        }
    }
}

/* After a failure that stays, every read of data fails once, however many wait for a buffer or for a chunk. */
static void test_failures_that_stay_are_told_to_each_once(void) {
    for (unsigned fail_call = 1; fail_call < 20; fail_call++) {
        const MemoryFaults faults = {.fail_call = fail_call, .fail_rest = TRUE, .fail_at_once = fail_call % 2};
        Fixture fixture;
        Reading readings[N_RUN];
        fixture_init(&fixture, &faults, extents_data(8 << 20), all_pools[fail_call % G_N_ELEMENTS(all_pools)]);
        VmsnapReader *reader = open_disk(&fixture);
        for (unsigned i = 0; i < N_RUN; i++)
            reading_start(&readings[i], reader, i * BLOCK_BYTES, BLOCK_BYTES);
        for (unsigned i = 0; i < N_RUN; i++) {
            latch_wait(&readings[i].called, 1);
            if (readings[i].error)
                g_assert_cmpint(readings[i].error, ==, -EIO);
            else
                reading_check(&readings[i], fixture.disk);
        }
        vmsnap_reader_close(reader);
        fixture_clear(&fixture);
        for (unsigned i = 0; i < N_RUN; i++)
            reading_clear(&readings[i]);
    }
}

/* The end */

static void test_a_reader_closed_early_still_answers(void) {
    for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++) {
        Fixture fixture;
        Reading readings[N_RUN];
        fixture_init(&fixture, NULL, extents_data(8 << 20), all_pools[n]);
        VmsnapReader *reader = open_disk(&fixture);
        memory_snapshot_hold(fixture.snapshot);
        for (unsigned i = 0; i < N_RUN; i++)
            reading_start(&readings[i], reader, i * BLOCK_BYTES, BLOCK_BYTES);
        vmsnap_reader_close(reader);
        memory_snapshot_release(fixture.snapshot);
        for (unsigned i = 0; i < N_RUN; i++)
            reading_finish(&readings[i], fixture.disk);
        fixture_clear(&fixture);
    }
}

static void test_a_reader_closed_while_chunks_load_leaves_nothing(void) {
    Fixture fixture;
    Reading readings[3];
    fixture_init(&fixture, NULL, extents_data(64 << 20), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    start_run(&fixture, reader, readings);
    vmsnap_reader_close(reader);
    memory_snapshot_release(fixture.snapshot);
    for (unsigned i = 0; i < 3; i++)
        reading_finish(&readings[i], fixture.disk);
    memory_snapshot_wait_idle(fixture.snapshot);
    g_assert_cmpuint(count_free(fixture.resources.ahead), ==, roomy.n_ahead);
    fixture_clear(&fixture);
}

static void test_closing_nothing_is_allowed(void) {
    vmsnap_reader_close(NULL);
}

/* Reads and chunks in flight, and reads that wait for a buffer. */
static void test_the_end_of_the_snapshot_answers_everybody(void) {
    for (size_t n = 0; n < G_N_ELEMENTS(all_pools); n++) {
        for (int close_first = 0; close_first < 2; close_first++) {
            Fixture fixture;
            Reading readings[N_READERS];
            fixture_init(&fixture, NULL, extents_data(64 << 20), all_pools[n]);
            fixture_scan(&fixture);
            VmsnapReader *reader = open_disk(&fixture);
            memory_snapshot_hold(fixture.snapshot);
            for (unsigned i = 0; i < N_READERS; i++)
                reading_start(&readings[i], reader, i * BLOCK_BYTES, BLOCK_BYTES);
            if (close_first)
                vmsnap_reader_close(reader);
            memory_snapshot_end(fixture.snapshot);
            for (unsigned i = 0; i < N_READERS; i++) {
                g_assert_cmpint(readings[i].error, ==, -EIO);
                reading_clear(&readings[i]);
            }
            if (!close_first) {
                g_assert_cmpint(read_error(reader, 0, BLOCK_BYTES), ==, -EIO);
                vmsnap_reader_close(reader);
            }
            fixture_free(&fixture);
        }
    }
}

/* What the limit holds back is answered when the throttle stops, after the snapshot. */
static void test_the_end_answers_what_the_limit_holds_back(void) {
    Fixture fixture;
    Reading readings[N_READERS];
    fixture_init(&fixture, NULL, extents_data(64 << 20), roomy);
    fixture_scan(&fixture);
    vmsnap_throttle_set_rate(fixture.throttle, 1);
    VmsnapReader *reader = open_disk(&fixture);
    for (unsigned i = 0; i < N_READERS; i++)
        reading_start(&readings[i], reader, i * BLOCK_BYTES, BLOCK_BYTES);
    memory_snapshot_end(fixture.snapshot);
    vmsnap_throttle_stop(fixture.throttle);
    unsigned n_failed = 0;
    for (unsigned i = 0; i < N_READERS; i++) {
        n_failed += readings[i].error != 0;
        reading_clear(&readings[i]);
    }
    g_assert_cmpuint(n_failed, >=, N_READERS - 1);
    vmsnap_reader_close(reader);
    fixture_free(&fixture);
}

static void test_a_lost_snapshot_fails_who_needs_the_disk(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, extents_data(WINDOW_BYTES), roomy);
    VmsnapReader *reader = open_disk(&fixture);
    check_from_to(&fixture, reader, 0, 1 << 20, BLOCK_BYTES);
    memory_snapshot_wait_idle(fixture.snapshot);
    vmsnap_snapshot_break(fixture.snapshot, "the test says so");
    g_assert_cmpint(read_error(reader, WINDOW_BYTES / 2, BLOCK_BYTES), ==, -EIO);
    /* Also where it was fetched ahead. */
    g_assert_cmpint(read_error(reader, 1 << 20, BLOCK_BYTES), ==, -EIO);
    vmsnap_reader_close(reader);
    fixture_clear(&fixture);
}

/* Everything at once */

#define N_THREADS 8
#define N_FILES 8
#define N_READS 24

typedef enum { SEQUENTIAL, RANDOM, MIXED, N_HABITS } Habit;

typedef struct {
    const Fixture *fixture;
    VmsnapReader *readers[N_FILES];
    uint64_t offsets[N_FILES][N_READS];
    size_t lengths[N_FILES][N_READS];
} Worker;

static void worker_plan(Worker *worker, unsigned file, Habit habit) {
    uint64_t size = worker->fixture->disk->size_bytes, position = random_below(size / 2);
    for (unsigned i = 0; i < N_READS; i++) {
        size_t length = habit == SEQUENTIAL ? MAX_READ_BYTES : 1 + random_below(MAX_READ_BYTES);
        gboolean jumps = habit == RANDOM || (habit == MIXED && random_below(6) == 0);
        if (jumps)
            position = random_offset(worker->fixture);
        worker->offsets[file][i] = position;
        worker->lengths[file][i] = length;
        position += length;
    }
}

/* A few reads of each file are in flight together. */
static gpointer worker_run(gpointer data) {
    enum { DEPTH = 3 };
    const Worker *worker = data;
    Reading readings[N_FILES][DEPTH];
    for (unsigned i = 0; i < N_READS; i += DEPTH) {
        for (unsigned file = 0; file < N_FILES; file++)
            for (unsigned k = 0; k < DEPTH; k++)
                reading_start(&readings[file][k], worker->readers[file], worker->offsets[file][i + k],
                              worker->lengths[file][i + k]);
        for (unsigned file = 0; file < N_FILES; file++)
            for (unsigned k = 0; k < DEPTH; k++)
                reading_finish(&readings[file][k], worker->fixture->disk);
    }
    for (unsigned file = 0; file < N_FILES; file++)
        vmsnap_reader_close(worker->readers[file]);
    return NULL;
}

static void test_many_readers_share_little_memory(void) {
    static const MemoryFaults slow = {.max_delay_us = 50};
    static const PoolSizes pools[] = {{.n_ahead = 12, .n_demand = 3}, {.n_ahead = 256, .n_demand = 16}};
    for (size_t n = 0; n < G_N_ELEMENTS(pools); n++) {
        Fixture fixture;
        g_autofree Worker *workers = g_new0(Worker, N_THREADS);
        GThread *threads[N_THREADS];
        fixture_init(&fixture, &slow, extents_random(WINDOW_BYTES + 4097, 64 << 20), pools[n]);
        for (unsigned i = 0; i < N_THREADS; i++) {
            workers[i].fixture = &fixture;
            for (unsigned file = 0; file < N_FILES; file++) {
                workers[i].readers[file] = open_disk(&fixture);
                worker_plan(&workers[i], file, (i + file) % N_HABITS);
            }
        }
        for (unsigned i = 0; i < N_THREADS; i++)
            threads[i] = g_thread_new("reader", worker_run, &workers[i]);
        for (unsigned i = 0; i < N_THREADS; i++)
            (void)g_thread_join(threads[i]);
        fixture_clear(&fixture);
    }
}

/* Threads share a reader, each with a part of one sequential read, while it fails now and then. */
typedef struct {
    const Fixture *fixture;
    VmsnapReader *reader;
    uint64_t next; /* atomic */
} SharedRun;

static gpointer shared_run(gpointer data) {
    SharedRun *run = data;
    while (TRUE) {
        uint64_t offset = __atomic_fetch_add(&run->next, MAX_READ_BYTES, __ATOMIC_RELAXED);
        if (offset >= run->fixture->disk->size_bytes)
            return NULL;
        check_read(run->fixture, run->reader, offset, MAX_READ_BYTES);
    }
}

static void test_threads_may_share_a_reader(void) {
    static const MemoryFaults slow = {.max_delay_us = 50};
    Fixture fixture;
    GThread *threads[4];
    fixture_init(&fixture, &slow, extents_random(16 << 20, 1 << 20), (PoolSizes){.n_ahead = 20, .n_demand = 2});
    SharedRun run = {.fixture = &fixture, .reader = open_disk(&fixture)};
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", shared_run, &run);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        (void)g_thread_join(threads[i]);
    vmsnap_reader_close(run.reader);
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/reader/any-range-equals-naive", test_any_range_equals_naive);
    g_test_add_func("/reader/from-begin-to-end-equals-naive", test_from_begin_to_end_equals_naive);
    g_test_add_func("/reader/a-disk-of-whole-chunks-equals-naive", test_a_disk_of_whole_chunks_equals_naive);
    g_test_add_func("/reader/windows-join-without-a-seam", test_windows_join_without_a_seam);
    g_test_add_func("/reader/shuffled-neighbours-equal-naive-and-cost-little",
                    test_shuffled_neighbours_equal_naive_and_cost_little);
    g_test_add_func("/reader/the-end-gives-less-and-beyond-gives-nothing",
                    test_the_end_gives_less_and_beyond_gives_nothing);
    g_test_add_func("/reader/no-bytes-cost-nothing", test_no_bytes_cost_nothing);
    g_test_add_func("/reader/files-in-memory-need-no-buffer", test_files_in_memory_need_no_buffer);
    g_test_add_func("/reader/an-empty-file-is-read", test_an_empty_file_is_read);
    g_test_add_func("/reader/progress-counts-data-that-was-handed-out", test_progress_counts_data_that_was_handed_out);
    g_test_add_func("/reader/sequential-readers-fetch-each-byte-once", test_sequential_readers_fetch_each_byte_once);
    g_test_add_func("/reader/sequential-readers-need-not-wait", test_sequential_readers_need_not_wait);
    g_test_add_func("/reader/what-follows-is-asked-for-before-it-is-wanted",
                    test_what_follows_is_asked_for_before_it_is_wanted);
    g_test_add_func("/reader/without-a-pool-nothing-is-fetched-ahead", test_without_a_pool_nothing_is_fetched_ahead);
    g_test_add_func("/reader/a-small-pool-stays-of-use", test_a_small_pool_stays_of_use);
    g_test_add_func("/reader/who-does-not-go-on-fetches-no-more-than-he-wants",
                    test_who_does_not_go_on_fetches_no_more_than_he_wants);
    g_test_add_func("/reader/interleaved-streams-of-one-file-all-need-not-wait",
                    test_interleaved_streams_of_one_file_all_need_not_wait);
    g_test_add_func("/reader/who-jumps-over-holes-needs-not-wait", test_who_jumps_over_holes_needs_not_wait);
    g_test_add_func("/reader/holes-never-cost-a-disk-read", test_holes_never_cost_a_disk_read);
    g_test_add_func("/reader/streams-run-ahead-in-data-not-in-offsets", test_streams_run_ahead_in_data_not_in_offsets);
    g_test_add_func("/reader/a-low-limit-leaves-no-room-for-read-ahead",
                    test_a_low_limit_leaves_no_room_for_read_ahead);
    g_test_add_func("/reader/buffers-for-demand-are-bounded", test_buffers_for_demand_are_bounded);
    g_test_add_func("/reader/buffers-for-read-ahead-are-bounded", test_buffers_for_read_ahead_are_bounded);
    g_test_add_func("/reader/late-readers-get-their-share", test_late_readers_get_their_share);
    g_test_add_func("/reader/closing-gives-up-what-was-fetched-ahead", test_closing_gives_up_what_was_fetched_ahead);
    g_test_add_func("/reader/what-was-read-is-given-up", test_what_was_read_is_given_up);
    g_test_add_func("/reader/new-streams-take-the-place-of-old-ones", test_new_streams_take_the_place_of_old_ones);
    g_test_add_func("/reader/who-waits-for-a-chunk-that-fails-reads-alone",
                    test_who_waits_for_a_chunk_that_fails_reads_alone);
    g_test_add_func("/reader/who-cannot-read-alone-either-fails-once", test_who_cannot_read_alone_either_fails_once);
    g_test_add_func("/reader/a-bad-range-fails-who-touches-it", test_a_bad_range_fails_who_touches_it);
    g_test_add_func("/reader/any-one-failure-is-told-once", test_any_one_failure_is_told_once);
    g_test_add_func("/reader/failures-that-stay-are-told-to-each-once", test_failures_that_stay_are_told_to_each_once);
    g_test_add_func("/reader/a-reader-closed-early-still-answers", test_a_reader_closed_early_still_answers);
    g_test_add_func("/reader/a-reader-closed-while-chunks-load-leaves-nothing",
                    test_a_reader_closed_while_chunks_load_leaves_nothing);
    g_test_add_func("/reader/closing-nothing-is-allowed", test_closing_nothing_is_allowed);
    g_test_add_func("/reader/the-end-of-the-snapshot-answers-everybody",
                    test_the_end_of_the_snapshot_answers_everybody);
    g_test_add_func("/reader/the-end-answers-what-the-limit-holds-back",
                    test_the_end_answers_what_the_limit_holds_back);
    g_test_add_func("/reader/a-lost-snapshot-fails-who-needs-the-disk", test_a_lost_snapshot_fails_who_needs_the_disk);
    g_test_add_func("/reader/many-readers-share-little-memory", test_many_readers_share_little_memory);
    g_test_add_func("/reader/threads-may-share-a-reader", test_threads_may_share_a_reader);
    return g_test_run();
}
