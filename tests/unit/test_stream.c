/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which reads are taken to follow each other, and which chunks are chosen ahead of them. */
#include "fs/stream.h"

#include "extents.h"

#define MIB (UINT64_C(1) << 20)
#define BLOCK_BYTES ((size_t)64 << 10)
#define CHUNK_BYTES ((size_t)256 << 10)
/* After so many blocks in a row a stream must run. */
#define N_ENOUGH 32
/* Reads this far apart have nothing to do with each other. */
#define FAR_BYTES (100 * MIB)

/* A file whose data and zeroes are given; nothing is ever read from it. */
typedef struct {
    VmsnapLayout base;
    GArray *extents; /* of VmsnapExtent, owned */
    VmsnapStreams streams;
} Fixture;

static void fixture_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    VmsnapExtentKind kind = extents_find(((const Fixture *)layout)->extents, offset, &ret_segment->length_bytes);
    ret_segment->kind = kind == VMSNAP_EXTENT_ZERO ? VMSNAP_SEGMENT_ZERO : VMSNAP_SEGMENT_DISK;
}

static const VmsnapLayoutClass fixture_class = {.segment_at = fixture_segment_at};

static void fixture_init(Fixture *fixture, GArray *extents) {
    *fixture = (Fixture){.base.class = &fixture_class, .extents = extents};
    for (guint i = 0; i < extents->len; i++)
        fixture->base.size_bytes += g_array_index(extents, VmsnapExtent, i).length_bytes;
}

static void fixture_init_data(Fixture *fixture) {
    fixture_init(fixture, extents_alternate(1000 * FAR_BYTES, 1000 * FAR_BYTES));
}

static void fixture_clear(Fixture *fixture) {
    g_array_unref(fixture->extents);
}

static VmsnapStream *note(Fixture *fixture, uint64_t offset, size_t length, gboolean *ret_begun) {
    return vmsnap_streams_note(&fixture->streams, &fixture->base, offset, length, ret_begun);
}

/* A read that must go on with a stream. */
static void check_goes_on(Fixture *fixture, const VmsnapStream *expected, uint64_t offset, size_t length) {
    gboolean begun;
    VmsnapStream *stream = note(fixture, offset, length, &begun);
    g_assert_true(stream == expected);
    g_assert_false(begun);
}

/* A read that must begin a stream. */
static VmsnapStream *check_begins(Fixture *fixture, uint64_t offset, size_t length) {
    gboolean begun;
    VmsnapStream *stream = note(fixture, offset, length, &begun);
    g_assert_true(begun);
    g_assert_true(stream->came_further);
    g_assert_false(vmsnap_stream_is_running(stream));
    return stream;
}

/* Reads blocks in a row until their stream runs. Returns: the stream, which has come to N_ENOUGH blocks further. */
static VmsnapStream *run_from(Fixture *fixture, uint64_t offset) {
    VmsnapStream *stream = check_begins(fixture, offset, BLOCK_BYTES);
    for (unsigned i = 1; i < N_ENOUGH; i++) {
        check_goes_on(fixture, stream, offset + i * BLOCK_BYTES, BLOCK_BYTES);
        g_assert_true(stream->came_further);
    }
    g_assert_true(vmsnap_stream_is_running(stream));
    g_assert_cmpuint(stream->next, ==, offset + N_ENOUGH * BLOCK_BYTES);
    return stream;
}

static void test_reads_in_a_row_run(void) {
    static const size_t lengths[] = {512, 4096, 10240, 99999, 1 << 20};
    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
        Fixture fixture;
        fixture_init_data(&fixture);
        VmsnapStream *stream = check_begins(&fixture, 12345, lengths[i]);
        for (uint64_t offset = 12345 + lengths[i]; offset < N_ENOUGH * BLOCK_BYTES; offset += lengths[i])
            check_goes_on(&fixture, stream, offset, lengths[i]);
        g_assert_true(vmsnap_stream_is_running(stream));
        fixture_clear(&fixture);
    }
}

static void test_lengths_may_change_on_the_way(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = run_from(&fixture, 0);
    for (int i = 0; i < 100; i++) {
        size_t length = 1 + random_below(MIB);
        check_goes_on(&fixture, stream, stream->next, length);
        g_assert_true(vmsnap_stream_is_running(stream));
    }
    fixture_clear(&fixture);
}

static void test_one_read_never_runs_however_long(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    (void)check_begins(&fixture, 0, 50 * MIB);
    fixture_clear(&fixture);
}

static void test_two_small_reads_do_not_run_yet(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = check_begins(&fixture, 4096, 4096);
    check_goes_on(&fixture, stream, 8192, 4096);
    g_assert_false(vmsnap_stream_is_running(stream));
    fixture_clear(&fixture);
}

/* Of a new stream the second read may come first; sooner or later one stream runs all the same. */
static void test_neighbours_may_come_in_another_order_from_the_start(void) {
    Fixture fixture;
    VmsnapStream *stream = NULL;
    fixture_init_data(&fixture);
    for (unsigned i = 0; i < N_ENOUGH; i++) {
        gboolean begun;
        stream = note(&fixture, (i ^ 1) * BLOCK_BYTES, BLOCK_BYTES, &begun);
    }
    g_assert_true(vmsnap_stream_is_running(stream));
    fixture_clear(&fixture);
}

static void test_neighbours_may_come_in_another_order_on_the_way(void) {
    enum { GROUP = 6 };
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = run_from(&fixture, 0);
    for (unsigned group = 0; group < 10; group++) {
        uint64_t base = stream->next;
        /* The last of them does not follow, since it is too far ahead; whoever reads so far ahead jumps. */
        for (unsigned i = 0; i < GROUP; i++) {
            unsigned place = i ^ 1;
            check_goes_on(&fixture, stream, base + place * BLOCK_BYTES, BLOCK_BYTES);
            g_assert_cmpint(stream->came_further, ==, i % 2 == 0);
            g_assert_true(vmsnap_stream_is_running(stream));
        }
        g_assert_cmpuint(stream->next, ==, base + GROUP * BLOCK_BYTES);
    }
    fixture_clear(&fixture);
}

/* Several threads of the kernel's may have overtaken one that slept. */
static void test_a_read_may_come_late(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = run_from(&fixture, 0);
    uint64_t late = stream->next;
    for (unsigned i = 1; i < 5; i++)
        check_goes_on(&fixture, stream, late + i * BLOCK_BYTES, BLOCK_BYTES);
    check_goes_on(&fixture, stream, late, BLOCK_BYTES);
    g_assert_false(stream->came_further);
    g_assert_true(vmsnap_stream_is_running(stream));
    fixture_clear(&fixture);
}

static void test_backward_reads_never_run(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    for (unsigned i = 100; i > 0; i--)
        (void)check_begins(&fixture, i * BLOCK_BYTES, BLOCK_BYTES);
    fixture_clear(&fixture);
}

static void test_strided_reads_never_run(void) {
    for (unsigned stride = 2; stride < 20; stride++) {
        Fixture fixture;
        fixture_init_data(&fixture);
        for (unsigned i = 0; i < 200; i++) {
            gboolean begun;
            VmsnapStream *stream = note(&fixture, (uint64_t)i * stride * BLOCK_BYTES, BLOCK_BYTES, &begun);
            g_assert_false(vmsnap_stream_is_running(stream));
        }
        fixture_clear(&fixture);
    }
}

static void test_reading_again_comes_no_further(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = check_begins(&fixture, 7 * MIB, BLOCK_BYTES);
    for (int i = 0; i < 100; i++) {
        check_goes_on(&fixture, stream, 7 * MIB, BLOCK_BYTES);
        g_assert_false(stream->came_further);
    }
    g_assert_cmpuint(stream->next, ==, 7 * MIB + BLOCK_BYTES);
    fixture_clear(&fixture);
}

/* 20 MiB of data, a hole of 3 GiB in two segments, and data. */
static GArray *extents_with_hole(void) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, 20 * MIB);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 2048 * MIB);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 1024 * MIB);
    extents_append(extents, VMSNAP_EXTENT_DATA, 100 * MIB);
    return extents;
}

#define HOLE_START (20 * MIB)
#define HOLE_END (3092 * MIB)

/* Returns: a stream that has come to the hole. */
static VmsnapStream *run_to_hole(Fixture *fixture) {
    fixture_init(fixture, extents_with_hole());
    return run_from(fixture, HOLE_START - N_ENOUGH * BLOCK_BYTES);
}

static void test_a_jump_over_a_hole_goes_on(void) {
    Fixture fixture;
    VmsnapStream *stream = run_to_hole(&fixture);
    for (unsigned i = 0; i < 10; i++) {
        check_goes_on(&fixture, stream, HOLE_END + i * BLOCK_BYTES, BLOCK_BYTES);
        g_assert_true(stream->came_further);
        g_assert_true(vmsnap_stream_is_running(stream));
    }
    fixture_clear(&fixture);
}

static void test_a_jump_over_data_does_not_go_on(void) {
    Fixture fixture;
    VmsnapStream *stream = run_to_hole(&fixture);
    g_assert_true(check_begins(&fixture, HOLE_END + 4096, BLOCK_BYTES) != stream);
    fixture_clear(&fixture);
}

/* However much the hole is, only data that is read makes a stream run. */
static void test_a_hole_makes_no_stream_run(void) {
    Fixture fixture;
    fixture_init(&fixture, extents_with_hole());
    VmsnapStream *stream = check_begins(&fixture, HOLE_START - 4096, 4096);
    check_goes_on(&fixture, stream, HOLE_END, 4096);
    g_assert_false(vmsnap_stream_is_running(stream));
    fixture_clear(&fixture);
}

static void test_several_streams_go_on_beside_each_other(void) {
    Fixture fixture;
    VmsnapStream *streams[VMSNAP_MAX_STREAMS];
    fixture_init_data(&fixture);
    for (unsigned i = 0; i < VMSNAP_MAX_STREAMS; i++)
        streams[i] = check_begins(&fixture, i * FAR_BYTES, BLOCK_BYTES);
    for (unsigned n = 1; n < N_ENOUGH; n++)
        for (unsigned i = 0; i < VMSNAP_MAX_STREAMS; i++)
            check_goes_on(&fixture, streams[i], i * FAR_BYTES + n * BLOCK_BYTES, BLOCK_BYTES);
    for (unsigned i = 0; i < VMSNAP_MAX_STREAMS; i++) {
        g_assert_true(vmsnap_stream_is_running(streams[i]));
        for (unsigned k = 0; k < i; k++)
            g_assert_true(streams[i] != streams[k]);
    }
    fixture_clear(&fixture);
}

static void test_the_ninth_takes_the_place_of_who_rested_longest(void) {
    Fixture fixture;
    VmsnapStream *streams[VMSNAP_MAX_STREAMS];
    fixture_init_data(&fixture);
    for (unsigned i = 0; i < VMSNAP_MAX_STREAMS; i++)
        streams[i] = check_begins(&fixture, i * FAR_BYTES, BLOCK_BYTES);
    check_goes_on(&fixture, streams[0], BLOCK_BYTES, 4096);
    VmsnapStream *ninth = check_begins(&fixture, VMSNAP_MAX_STREAMS * FAR_BYTES, BLOCK_BYTES);
    g_assert_true(ninth == streams[1]);
    g_assert_cmpuint(ninth->start, ==, VMSNAP_MAX_STREAMS * FAR_BYTES);
    g_assert_true(check_begins(&fixture, 99 * FAR_BYTES, BLOCK_BYTES) == streams[2]);
    fixture_clear(&fixture);
}

static void test_who_runs_outlives_reads_elsewhere_for_a_while(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = run_from(&fixture, 0);
    for (unsigned i = 1; i <= 20 * VMSNAP_MAX_STREAMS; i++)
        g_assert_true(check_begins(&fixture, i * FAR_BYTES, BLOCK_BYTES) != stream);
    check_goes_on(&fixture, stream, stream->next, BLOCK_BYTES);
    g_assert_true(vmsnap_stream_is_running(stream));
    /* Not for ever. */
    uint64_t next = stream->next;
    for (unsigned i = 0; i < 100000; i++)
        (void)check_begins(&fixture, (1 + i * UINT64_C(7) % 997) * FAR_BYTES, 4096);
    (void)check_begins(&fixture, next, BLOCK_BYTES);
    fixture_clear(&fixture);
}

static void test_windows_double_up_to_a_limit(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = run_from(&fixture, 0);
    guint first = stream->window;
    g_assert_cmpuint(first, >, 0);
    for (int i = 0; i < 40; i++)
        vmsnap_stream_widen(stream);
    guint limit = stream->window;
    g_assert_cmpuint(limit, >, first);
    stream->window = first;
    for (guint expected = first; expected < limit;) {
        vmsnap_stream_widen(stream);
        expected *= 2;
        g_assert_cmpuint(stream->window, ==, MIN(expected, limit));
    }
    g_assert_cmpuint(check_begins(&fixture, FAR_BYTES, BLOCK_BYTES)->window, ==, first);
    fixture_clear(&fixture);
}

static void check_chooses(Fixture *fixture, VmsnapStream *stream, uint64_t expected) {
    uint64_t index;
    g_assert_true(vmsnap_stream_choose_chunk(stream, &fixture->base, CHUNK_BYTES, &index));
    g_assert_cmpuint(index, ==, expected);
}

static void check_chooses_none(Fixture *fixture, VmsnapStream *stream) {
    uint64_t index;
    g_assert_false(vmsnap_stream_choose_chunk(stream, &fixture->base, CHUNK_BYTES, &index));
}

/* Each chunk is chosen once, the last one too, which may be a part of one. */
static void test_chunks_are_chosen_up_to_the_end_and_once(void) {
    static const uint64_t sizes[] = {40 * CHUNK_BYTES, 40 * CHUNK_BYTES + 1, 41 * CHUNK_BYTES - 1};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        Fixture fixture;
        fixture_init(&fixture, extents_alternate(sizes[i], sizes[i]));
        VmsnapStream *stream = run_from(&fixture, 0);
        for (uint64_t index = stream->next / CHUNK_BYTES; index * CHUNK_BYTES < sizes[i]; index++)
            check_chooses(&fixture, stream, index);
        for (int again = 0; again < 3; again++)
            check_chooses_none(&fixture, stream);
        fixture_clear(&fixture);
    }
}

static void test_chunks_begin_where_the_stream_has_come_to(void) {
    Fixture fixture;
    fixture_init_data(&fixture);
    VmsnapStream *stream = run_from(&fixture, 0);
    check_goes_on(&fixture, stream, stream->next, 100);
    check_chooses(&fixture, stream, stream->next / CHUNK_BYTES);
    /* What was passed by meanwhile is of no use. */
    for (int i = 0; i < 10; i++)
        check_goes_on(&fixture, stream, stream->next, MIB);
    check_chooses(&fixture, stream, stream->next / CHUNK_BYTES);
    check_chooses(&fixture, stream, stream->next / CHUNK_BYTES + 1);
    fixture_clear(&fixture);
}

static void test_holes_are_passed_over(void) {
    Fixture fixture;
    VmsnapStream *stream = run_to_hole(&fixture);
    check_chooses(&fixture, stream, HOLE_END / CHUNK_BYTES);
    check_chooses(&fixture, stream, HOLE_END / CHUNK_BYTES + 1);
    fixture_clear(&fixture);
}

/* A chunk with a byte of data in it is one to be fetched, and one whose data the stream has passed is not. */
static void test_a_chunk_is_what_has_data_ahead_in_it(void) {
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    uint64_t data = N_ENOUGH * BLOCK_BYTES + 1000, first = data / CHUNK_BYTES;
    extents_append(extents, VMSNAP_EXTENT_DATA, data);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 5 * CHUNK_BYTES);
    extents_append(extents, VMSNAP_EXTENT_DATA, 1);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 5 * CHUNK_BYTES);
    fixture_init(&fixture, extents);
    VmsnapStream *stream = run_from(&fixture, 0);
    check_goes_on(&fixture, stream, stream->next, 1000);
    check_chooses(&fixture, stream, first + 5);
    check_chooses_none(&fixture, stream);
    fixture_clear(&fixture);
}

/* A search is not endless, and the next one goes on with it. */
static void test_a_long_search_goes_on_later(void) {
    enum { N_SEGMENTS = 2000 };
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, N_ENOUGH * BLOCK_BYTES);
    for (unsigned i = 0; i < N_SEGMENTS; i++)
        extents_append(extents, VMSNAP_EXTENT_ZERO, CHUNK_BYTES);
    extents_append(extents, VMSNAP_EXTENT_DATA, CHUNK_BYTES);
    fixture_init(&fixture, extents);
    VmsnapStream *stream = run_from(&fixture, 0);
    unsigned n_searches = 0;
    uint64_t index;
    while (!vmsnap_stream_choose_chunk(stream, &fixture.base, CHUNK_BYTES, &index))
        g_assert_cmpuint(++n_searches, <, N_SEGMENTS);
    g_assert_cmpuint(n_searches, >, 0);
    g_assert_cmpuint(index, ==, N_ENOUGH * BLOCK_BYTES / CHUNK_BYTES + N_SEGMENTS);
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/stream/reads-in-a-row-run", test_reads_in_a_row_run);
    g_test_add_func("/stream/lengths-may-change-on-the-way", test_lengths_may_change_on_the_way);
    g_test_add_func("/stream/one-read-never-runs-however-long", test_one_read_never_runs_however_long);
    g_test_add_func("/stream/two-small-reads-do-not-run-yet", test_two_small_reads_do_not_run_yet);
    g_test_add_func("/stream/neighbours-may-come-in-another-order-from-the-start",
                    test_neighbours_may_come_in_another_order_from_the_start);
    g_test_add_func("/stream/neighbours-may-come-in-another-order-on-the-way",
                    test_neighbours_may_come_in_another_order_on_the_way);
    g_test_add_func("/stream/a-read-may-come-late", test_a_read_may_come_late);
    g_test_add_func("/stream/backward-reads-never-run", test_backward_reads_never_run);
    g_test_add_func("/stream/strided-reads-never-run", test_strided_reads_never_run);
    g_test_add_func("/stream/reading-again-comes-no-further", test_reading_again_comes_no_further);
    g_test_add_func("/stream/a-jump-over-a-hole-goes-on", test_a_jump_over_a_hole_goes_on);
    g_test_add_func("/stream/a-jump-over-data-does-not-go-on", test_a_jump_over_data_does_not_go_on);
    g_test_add_func("/stream/a-hole-makes-no-stream-run", test_a_hole_makes_no_stream_run);
    g_test_add_func("/stream/several-streams-go-on-beside-each-other", test_several_streams_go_on_beside_each_other);
    g_test_add_func("/stream/the-ninth-takes-the-place-of-who-rested-longest",
                    test_the_ninth_takes_the_place_of_who_rested_longest);
    g_test_add_func("/stream/who-runs-outlives-reads-elsewhere-for-a-while",
                    test_who_runs_outlives_reads_elsewhere_for_a_while);
    g_test_add_func("/stream/windows-double-up-to-a-limit", test_windows_double_up_to_a_limit);
    g_test_add_func("/stream/chunks-are-chosen-up-to-the-end-and-once", test_chunks_are_chosen_up_to_the_end_and_once);
    g_test_add_func("/stream/chunks-begin-where-the-stream-has-come-to",
                    test_chunks_begin_where_the_stream_has_come_to);
    g_test_add_func("/stream/holes-are-passed-over", test_holes_are_passed_over);
    g_test_add_func("/stream/a-chunk-is-what-has-data-ahead-in-it", test_a_chunk_is_what_has_data_ahead_in_it);
    g_test_add_func("/stream/a-long-search-goes-on-later", test_a_long_search_goes_on_later);
    return g_test_run();
}
