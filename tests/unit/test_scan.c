/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Filling in a map: in the background, on demand, joined, in pieces, and from a backend that fails. */
#include "fs/scan.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES
#define MEMORY_BYTES ((size_t)48 << 20)

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapDisk *disk;
    VmsnapScan *scan;
    Latch called;
} Fixture;

static void fixture_init(Fixture *fixture, const MemoryFaults *faults, GArray *extents) {
    fixture->snapshot = memory_snapshot_new(faults);
    fixture->disk = memory_snapshot_add_disk(fixture->snapshot, "vda", extents);
    fixture->scan = vmsnap_scan_new(fixture->disk, VMSNAP_EXTENTS_OF_CONTENT, MEMORY_BYTES);
    latch_init(&fixture->called);
}

/* Nobody may have been called more often than he asked. */
static void fixture_clear(Fixture *fixture, unsigned expected_calls) {
    memory_snapshot_end(fixture->snapshot);
    g_assert_cmpuint(latch_get(&fixture->called), ==, expected_calls);
    vmsnap_scan_free(fixture->scan);
    vmsnap_snapshot_free(fixture->snapshot);
    latch_clear(&fixture->called);
}

static void resolve(Fixture *fixture, uint64_t offset) {
    vmsnap_scan_resolve(fixture->scan, offset, latch_count, &fixture->called);
}

static void wait_for_all(Fixture *fixture, int64_t deadline_us) {
    vmsnap_scan_wait(fixture->scan, deadline_us, latch_count, &fixture->called);
}

static void check_map(const Fixture *fixture) {
    const GArray *extents = memory_disk_get_extents(fixture->disk);
    const VmsnapExtentMap *map = vmsnap_scan_get_map(fixture->scan);
    uint64_t size = fixture->disk->size_bytes;
    g_assert_true(vmsnap_scan_is_complete(fixture->scan));
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(map), ==, extents_count_zero(extents, 0, size));
    for (uint64_t offset = 0, length = 0; offset < size; offset += length) {
        VmsnapExtentKind kind;
        g_assert_true(vmsnap_extent_map_lookup(map, offset, &kind, &length));
        uint64_t zero_bytes = kind == VMSNAP_EXTENT_ZERO ? length : 0;
        g_assert_cmpuint(extents_count_zero(extents, offset, length), ==, zero_bytes);
    }
}

static GArray *several_windows(void) {
    return extents_random(3 * WINDOW_BYTES + 4097, 256 << 20);
}

static void test_nothing_is_asked_before_somebody_wants_it(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    g_assert_false(vmsnap_scan_is_complete(fixture.scan));
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 0);
    fixture_clear(&fixture, 0);
}

static void test_background_fills_in_the_whole_map(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    vmsnap_scan_start(fixture.scan, NULL);
    wait_for_all(&fixture, G_MAXINT64);
    latch_wait(&fixture.called, 1);
    check_map(&fixture);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 4);
    fixture_clear(&fixture, 1);
}

static void test_demand_asks_for_its_window_alone(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    resolve(&fixture, 2 * WINDOW_BYTES + 17);
    latch_wait(&fixture.called, 1);
    const VmsnapExtentMap *map = vmsnap_scan_get_map(fixture.scan);
    for (uint64_t i = 0; i < 4; i++)
        g_assert_cmpint(vmsnap_extent_map_has_window(map, i), ==, i == 2);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 1);
    fixture_clear(&fixture, 1);
}

static void test_a_known_window_answers_at_once(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    resolve(&fixture, 0);
    latch_wait(&fixture.called, 1);
    memory_snapshot_hold(fixture.snapshot);
    resolve(&fixture, WINDOW_BYTES - 1);
    g_assert_cmpuint(latch_get(&fixture.called), ==, 2);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 1);
    fixture_clear(&fixture, 2);
}

#define N_JOINERS 4
#define N_JOINS 50

static gpointer join_many(gpointer data) {
    for (int i = 0; i < N_JOINS; i++)
        resolve(data, WINDOW_BYTES + (uint64_t)i * 4096);
    return NULL;
}

static void test_many_who_want_a_window_share_one_question(void) {
    Fixture fixture;
    GThread *joiners[N_JOINERS];
    fixture_init(&fixture, NULL, several_windows());
    memory_snapshot_hold(fixture.snapshot);
    for (int i = 0; i < N_JOINERS; i++)
        joiners[i] = g_thread_new("joiner", join_many, &fixture);
    for (int i = 0; i < N_JOINERS; i++)
        (void)g_thread_join(joiners[i]);
    g_assert_cmpuint(latch_get(&fixture.called), ==, 0);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 1);
    memory_snapshot_release(fixture.snapshot);
    latch_wait(&fixture.called, N_JOINERS * N_JOINS);
    fixture_clear(&fixture, N_JOINERS * N_JOINS);
}

static void test_demand_joins_the_background(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    memory_snapshot_hold(fixture.snapshot);
    vmsnap_scan_start(fixture.scan, NULL);
    resolve(&fixture, 0);
    unsigned questions = memory_snapshot_count(fixture.snapshot).questions;
    resolve(&fixture, 3 * WINDOW_BYTES);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, questions + 1);
    wait_for_all(&fixture, G_MAXINT64);
    memory_snapshot_release(fixture.snapshot);
    latch_wait(&fixture.called, 3);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 4);
    check_map(&fixture);
    fixture_clear(&fixture, 3);
}

typedef struct {
    Fixture *fixture;
    uint64_t offsets[N_JOINS];
} Resolver;

static gpointer resolve_many(gpointer data) {
    const Resolver *resolver = data;
    for (int i = 0; i < N_JOINS; i++)
        resolve(resolver->fixture, resolver->offsets[i]);
    return NULL;
}

static void test_everybody_is_called_once_whatever_runs_beside(void) {
    static const MemoryFaults slow = {.max_delay_us = 500};
    for (int run = 0; run < 5; run++) {
        Fixture fixture;
        Resolver resolvers[N_JOINERS];
        GThread *threads[N_JOINERS];
        fixture_init(&fixture, &slow, extents_random(40 * WINDOW_BYTES, WINDOW_BYTES));
        for (int i = 0; i < N_JOINERS; i++) {
            resolvers[i].fixture = &fixture;
            for (int n = 0; n < N_JOINS; n++)
                resolvers[i].offsets[n] = random_below(fixture.disk->size_bytes);
            threads[i] = g_thread_new("resolver", resolve_many, &resolvers[i]);
        }
        vmsnap_scan_start(fixture.scan, NULL);
        for (int i = 0; i < N_JOINERS; i++)
            (void)g_thread_join(threads[i]);
        wait_for_all(&fixture, G_MAXINT64);
        latch_wait(&fixture.called, N_JOINERS * N_JOINS + 1);
        check_map(&fixture);
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 40);
        fixture_clear(&fixture, N_JOINERS * N_JOINS + 1);
    }
}

static void test_short_answers_are_continued(void) {
    const MemoryFaults short_answers = {.max_answer_bytes = (1 << 20) + random_below(WINDOW_BYTES / 10)};
    Fixture fixture;
    fixture_init(&fixture, &short_answers, extents_random(WINDOW_BYTES + 4097, 256 << 20));
    vmsnap_scan_start(fixture.scan, NULL);
    wait_for_all(&fixture, G_MAXINT64);
    latch_wait(&fixture.called, 1);
    check_map(&fixture);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, >, 2);
    fixture_clear(&fixture, 1);
}

static void check_is_data(const Fixture *fixture, uint64_t offset, uint64_t length_bytes) {
    VmsnapExtentKind kind = VMSNAP_EXTENT_ZERO;
    uint64_t length = 0;
    g_assert_true(vmsnap_extent_map_lookup(vmsnap_scan_get_map(fixture->scan), offset, &kind, &length));
    g_assert_cmpint(kind, ==, VMSNAP_EXTENT_DATA);
    g_assert_cmpuint(length, >=, length_bytes);
}

static void test_a_question_that_fails_makes_its_window_data(void) {
    for (int at_once = 0; at_once < 2; at_once++) {
        const MemoryFaults faults = {.fail_call = 1, .fail_at_once = at_once};
        Fixture fixture;
        fixture_init(&fixture, &faults, extents_alternate(3 * WINDOW_BYTES, 1 << 20));
        resolve(&fixture, WINDOW_BYTES + 5);
        latch_wait(&fixture.called, 1);
        check_is_data(&fixture, WINDOW_BYTES, WINDOW_BYTES);
        fixture_clear(&fixture, 1);
    }
}

/* What the first answers said is kept; only what they did not say becomes data. */
static void test_a_failure_in_mid_window_keeps_what_is_known(void) {
    const MemoryFaults faults = {.fail_call = 3, .max_answer_bytes = 1 << 20};
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, 10 << 20);
    fixture_init(&fixture, &faults, extents);
    resolve(&fixture, 0);
    latch_wait(&fixture.called, 1);
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(fixture.scan)), ==, 2 << 20);
    check_is_data(&fixture, 2 << 20, 8 << 20);
    g_assert_true(vmsnap_scan_is_complete(fixture.scan));
    fixture_clear(&fixture, 1);
}

static void test_an_answer_that_says_nothing_makes_the_window_data(void) {
    static const MemoryFaults faults = {.say_nothing = TRUE};
    Fixture fixture;
    fixture_init(&fixture, &faults, extents_alternate(WINDOW_BYTES, 1 << 20));
    resolve(&fixture, 0);
    latch_wait(&fixture.called, 1);
    check_is_data(&fixture, 0, WINDOW_BYTES);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 1);
    fixture_clear(&fixture, 1);
}

static void test_background_gives_up_after_a_failure_and_demand_does_not(void) {
    for (int at_once = 0; at_once < 2; at_once++) {
        const MemoryFaults faults = {.fail_call = 1, .fail_rest = TRUE, .fail_at_once = at_once};
        Fixture fixture;
        fixture_init(&fixture, &faults, extents_alternate(50 * WINDOW_BYTES, 1 << 30));
        vmsnap_scan_start(fixture.scan, NULL);
        wait_for_all(&fixture, G_MAXINT64);
        latch_wait(&fixture.called, 1);
        g_assert_false(vmsnap_scan_is_complete(fixture.scan));
        g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, <=, 2);
        for (unsigned i = 0; i < 50; i++)
            resolve(&fixture, i * WINDOW_BYTES);
        latch_wait(&fixture.called, 51);
        g_assert_true(vmsnap_scan_is_complete(fixture.scan));
        g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(fixture.scan)), ==, 0);
        fixture_clear(&fixture, 51);
    }
}

/* One call after the other fails, until a run gets by: everybody is called once each time. */
static void test_any_one_failure_calls_everybody_once(void) {
    gboolean failed = TRUE;
    for (unsigned fail_call = 1; failed; fail_call++) {
        for (int at_once = 0; at_once < 2; at_once++) {
            const MemoryFaults faults = {
                .fail_call = fail_call, .fail_at_once = at_once, .max_answer_bytes = WINDOW_BYTES / 4};
            Fixture fixture;
            fixture_init(&fixture, &faults, several_windows());
            vmsnap_scan_start(fixture.scan, NULL);
            for (uint64_t i = 0; i < 4; i++)
                resolve(&fixture, i * WINDOW_BYTES);
            wait_for_all(&fixture, G_MAXINT64);
            latch_wait(&fixture.called, 5);
            for (uint64_t i = 0; i < 4; i++)
                g_assert_true(vmsnap_extent_map_has_window(vmsnap_scan_get_map(fixture.scan), i));
            failed = memory_snapshot_count(fixture.snapshot).questions >= fail_call;
            fixture_clear(&fixture, 5);
        }
    }
}

static void test_wait_does_not_wait_for_what_nobody_fills_in(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    wait_for_all(&fixture, G_MAXINT64);
    g_assert_cmpuint(latch_get(&fixture.called), ==, 1);
    fixture_clear(&fixture, 1);
}

static void test_wait_before_the_deadline_waits_for_the_whole_map(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    memory_snapshot_hold(fixture.snapshot);
    resolve(&fixture, 0);
    vmsnap_scan_start(fixture.scan, NULL);
    wait_for_all(&fixture, G_MAXINT64);
    g_assert_cmpuint(latch_get(&fixture.called), ==, 0);
    memory_snapshot_release(fixture.snapshot);
    latch_wait(&fixture.called, 2);
    g_assert_true(vmsnap_scan_is_complete(fixture.scan));
    fixture_clear(&fixture, 2);
}

static void waited(gpointer user_data) {
    Fixture *fixture = user_data;
    g_assert_false(vmsnap_scan_is_complete(fixture->scan));
    latch_count(&fixture->called);
}

static void test_the_first_answer_after_the_deadline_ends_the_wait(void) {
    static const MemoryFaults slow = {.max_delay_us = 20000};
    Fixture fixture;
    fixture_init(&fixture, &slow, extents_random(50 * WINDOW_BYTES, WINDOW_BYTES));
    vmsnap_scan_start(fixture.scan, NULL);
    vmsnap_scan_wait(fixture.scan, g_get_monotonic_time() - 1, waited, &fixture);
    latch_wait(&fixture.called, 1);
    fixture_clear(&fixture, 1);
}

/* A window of many short answers takes long, and each of them is an answer. */
static void test_a_short_answer_after_the_deadline_ends_the_wait(void) {
    static const MemoryFaults short_answers = {.max_delay_us = 20000, .max_answer_bytes = WINDOW_BYTES / 50};
    Fixture fixture;
    fixture_init(&fixture, &short_answers, extents_random(WINDOW_BYTES, WINDOW_BYTES));
    vmsnap_scan_start(fixture.scan, NULL);
    vmsnap_scan_wait(fixture.scan, g_get_monotonic_time() - 1, waited, &fixture);
    latch_wait(&fixture.called, 1);
    fixture_clear(&fixture, 1);
}

static void test_a_sparse_16_tib_disk_is_scanned_with_one_question_a_window(void) {
    Fixture fixture;
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, UINT64_C(16) << 40);
    fixture_init(&fixture, NULL, extents);
    vmsnap_scan_start(fixture.scan, NULL);
    wait_for_all(&fixture, G_MAXINT64);
    latch_wait(&fixture.called, 1);
    g_assert_true(vmsnap_scan_is_complete(fixture.scan));
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(fixture.scan)), ==, UINT64_C(16) << 40);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 8192);
    fixture_clear(&fixture, 1);
}

static void test_the_end_of_the_snapshot_answers_all_who_wait(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    memory_snapshot_hold(fixture.snapshot);
    vmsnap_scan_start(fixture.scan, NULL);
    for (uint64_t i = 0; i < 4; i++)
        resolve(&fixture, i * WINDOW_BYTES);
    wait_for_all(&fixture, G_MAXINT64);
    fixture_clear(&fixture, 5);
}

static void test_a_lost_snapshot_answers_at_once(void) {
    Fixture fixture;
    fixture_init(&fixture, NULL, several_windows());
    vmsnap_snapshot_break(fixture.snapshot, "the test says so");
    vmsnap_scan_start(fixture.scan, NULL);
    for (uint64_t i = 0; i < 4; i++)
        resolve(&fixture, i * WINDOW_BYTES);
    g_assert_cmpuint(latch_get(&fixture.called), ==, 4);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 0);
    fixture_clear(&fixture, 4);
}

/* Changes, and the content of what has changed */

/* @changes: (transfer full): of the disk of a fixture whose scan is of its changes from now on */
static void fixture_ask_changes(Fixture *fixture, GArray *changes) {
    memory_disk_set_changes(fixture->disk, "cp1", changes);
    vmsnap_scan_free(fixture->scan);
    fixture->scan = vmsnap_scan_new(fixture->disk, VMSNAP_EXTENTS_OF_CHANGES, MEMORY_BYTES);
}

static unsigned count_questions(const Fixture *fixture) {
    return memory_snapshot_count(fixture->snapshot).questions;
}

static void scan_all(Fixture *fixture, const VmsnapExtentMap *changes) {
    vmsnap_scan_start(fixture->scan, changes);
    wait_for_all(fixture, G_MAXINT64);
    latch_wait(&fixture->called, 1);
}

static void test_changes_are_other_than_content(void) {
    Fixture fixture;
    GArray *changes = extents_random(3 * WINDOW_BYTES + 4097, 256 << 20);
    fixture_init(&fixture, NULL, several_windows());
    fixture_ask_changes(&fixture, changes);
    scan_all(&fixture, NULL);
    const VmsnapExtentMap *map = vmsnap_scan_get_map(fixture.scan);
    g_assert_true(vmsnap_scan_is_complete(fixture.scan));
    g_assert_false(vmsnap_scan_has_failed(fixture.scan));
    g_assert_cmpint(vmsnap_scan_get_question(fixture.scan), ==, VMSNAP_EXTENTS_OF_CHANGES);
    g_assert_true(vmsnap_scan_get_disk(fixture.scan) == fixture.disk);
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(map), ==,
                     extents_count_zero(changes, 0, fixture.disk->size_bytes));
    for (int i = 0; i < 100; i++) {
        uint64_t offset = extents_random_offset(changes, fixture.disk->size_bytes), length;
        VmsnapExtentKind kind;
        g_assert_true(vmsnap_extent_map_lookup(map, offset, &kind, &length));
        g_assert_cmpint(kind, ==, extents_find(changes, offset, &length));
    }
    fixture_clear(&fixture, 1);
}

/* It is the way that takes time, and no work of the server's. Content is asked for one at a time. */
static void test_several_questions_about_changes_are_under_way(void) {
    for (int of_changes = 0; of_changes < 2; of_changes++) {
        Fixture fixture;
        const uint64_t size = 40 * WINDOW_BYTES;
        fixture_init(&fixture, NULL, extents_random(size, WINDOW_BYTES));
        if (of_changes)
            fixture_ask_changes(&fixture, extents_random(size, WINDOW_BYTES));
        memory_snapshot_hold(fixture.snapshot);
        vmsnap_scan_start(fixture.scan, NULL);
        g_assert_cmpuint(count_questions(&fixture), ==, of_changes ? 16 : 1);
        resolve(&fixture, size - 1);
        resolve(&fixture, 0);
        g_assert_cmpuint(count_questions(&fixture), ==, of_changes ? 17 : 2);
        memory_snapshot_release(fixture.snapshot);
        wait_for_all(&fixture, G_MAXINT64);
        latch_wait(&fixture.called, 3);
        g_assert_true(vmsnap_scan_is_complete(fixture.scan));
        g_assert_cmpuint(count_questions(&fixture), ==, 40);
        fixture_clear(&fixture, 3);
    }
}

/* As many as there are windows, and not more. */
static void test_a_small_disk_has_few_questions_under_way(void) {
    for (uint64_t n_windows = 1; n_windows <= 17; n_windows += 4) {
        Fixture fixture;
        fixture_init(&fixture, NULL, extents_alternate(n_windows * WINDOW_BYTES, WINDOW_BYTES));
        fixture_ask_changes(&fixture, extents_alternate(n_windows * WINDOW_BYTES, 1 << 30));
        memory_snapshot_hold(fixture.snapshot);
        vmsnap_scan_start(fixture.scan, NULL);
        g_assert_cmpuint(count_questions(&fixture), ==, MIN(n_windows, 16));
        memory_snapshot_release(fixture.snapshot);
        wait_for_all(&fixture, G_MAXINT64);
        latch_wait(&fixture.called, 1);
        g_assert_cmpuint(count_questions(&fixture), ==, n_windows);
        fixture_clear(&fixture, 1);
    }
}

/* Any one question fails, until a run gets by. */
static void test_what_cannot_be_had_is_dirty(void) {
    gboolean failed = TRUE;
    for (unsigned fail_call = 1; failed; fail_call++) {
        for (int how = 0; how < 4; how++) {
            const MemoryFaults faults = {.fail_call = fail_call,
                                         .fail_at_once = how & 1,
                                         .fail_rest = how >> 1,
                                         .max_answer_bytes = WINDOW_BYTES / 3};
            const uint64_t size = 5 * WINDOW_BYTES;
            Fixture fixture;
            fixture_init(&fixture, &faults, extents_alternate(size, WINDOW_BYTES));
            GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
            extents_append(changes, VMSNAP_EXTENT_CLEAN, size);
            fixture_ask_changes(&fixture, changes);
            scan_all(&fixture, NULL);
            failed = count_questions(&fixture) >= fail_call;
            g_assert_cmpint(vmsnap_scan_has_failed(fixture.scan), ==, failed);
            uint64_t clean = vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(fixture.scan));
            g_assert_cmpint(clean < size, ==, failed);
            for (uint64_t i = 0; i < 5; i++)
                resolve(&fixture, i * WINDOW_BYTES);
            latch_wait(&fixture.called, 6);
            g_assert_true(vmsnap_scan_is_complete(fixture.scan));
            g_assert_cmpint(vmsnap_scan_has_failed(fixture.scan), ==, failed);
            fixture_clear(&fixture, 6);
        }
    }
}

/* Maps the changes, then the content where there are any. Returns: how many questions the content took. */
static unsigned scan_changed_content(Fixture *fixture, GArray *changes) {
    Latch called;
    latch_init(&called);
    memory_disk_set_changes(fixture->disk, "cp1", changes);
    VmsnapScan *changes_scan = vmsnap_scan_new(fixture->disk, VMSNAP_EXTENTS_OF_CHANGES, MEMORY_BYTES);
    vmsnap_scan_start(changes_scan, NULL);
    vmsnap_scan_wait(changes_scan, G_MAXINT64, latch_count, &called);
    latch_wait(&called, 1);
    unsigned before = count_questions(fixture);
    g_assert_cmpuint(before, ==, vmsnap_extent_map_get_window_count(vmsnap_scan_get_map(changes_scan)));
    scan_all(fixture, vmsnap_scan_get_map(changes_scan));
    g_assert_true(vmsnap_scan_is_complete(fixture->scan));
    g_assert_false(vmsnap_scan_has_failed(fixture->scan));
    unsigned n_questions = count_questions(fixture) - before;
    memory_snapshot_wait_idle(fixture->snapshot);
    latch_clear(&called);
    vmsnap_scan_free(changes_scan);
    return n_questions;
}

static void test_content_is_not_asked_for_where_nothing_has_changed(void) {
    Fixture fixture;
    GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, 5 * WINDOW_BYTES + 4096);
    extents_append(changes, VMSNAP_EXTENT_CLEAN, 2 * WINDOW_BYTES - 1);
    extents_append(changes, VMSNAP_EXTENT_DIRTY, 2);
    extents_append(changes, VMSNAP_EXTENT_CLEAN, 3 * WINDOW_BYTES - 1 + 4096);
    fixture_init(&fixture, NULL, extents);
    g_assert_cmpuint(scan_changed_content(&fixture, changes), ==, 2);
    for (uint64_t i = 0; i < 6; i++) {
        VmsnapExtentKind kind;
        uint64_t length;
        g_assert_true(vmsnap_extent_map_lookup(vmsnap_scan_get_map(fixture.scan), i * WINDOW_BYTES, &kind, &length));
        g_assert_cmpint(kind, ==, i == 1 || i == 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA);
    }
    fixture_clear(&fixture, 1);
}

static void test_content_is_asked_for_where_it_is_wanted_though_clean(void) {
    Fixture fixture;
    VmsnapExtentMap *changes = vmsnap_extent_map_new(3 * WINDOW_BYTES, MEMORY_BYTES);
    fixture_init(&fixture, NULL, extents_alternate(3 * WINDOW_BYTES, 1 << 20));
    /* All clean, but for the first window, of which that is not known. */
    for (uint64_t i = 1; i < 3; i++) {
        VmsnapExtentWindow *window = vmsnap_extent_window_new(changes, i);
        vmsnap_extent_window_append(window, VMSNAP_EXTENT_CLEAN, WINDOW_BYTES);
        vmsnap_extent_map_publish(changes, window);
    }
    resolve(&fixture, 2 * WINDOW_BYTES);
    latch_wait(&fixture.called, 1);
    vmsnap_scan_start(fixture.scan, changes);
    wait_for_all(&fixture, G_MAXINT64);
    latch_wait(&fixture.called, 2);
    g_assert_true(vmsnap_scan_is_complete(fixture.scan));
    g_assert_cmpuint(count_questions(&fixture), ==, 2);
    g_assert_cmpuint(vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(fixture.scan)), ==, WINDOW_BYTES);
    fixture_clear(&fixture, 2);
    vmsnap_extent_map_free(changes);
}

/* Nobody is asked, and everybody is called. */
static void test_a_clean_disk_of_16_tib_takes_no_question_about_content(void) {
    for (int is_clean = 0; is_clean < 2; is_clean++) {
        Fixture fixture;
        GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        extents_append(extents, VMSNAP_EXTENT_DATA, UINT64_C(16) << 40);
        extents_append(changes, VMSNAP_EXTENT_CLEAN, (UINT64_C(16) << 40) - (is_clean ? 0 : 512));
        if (!is_clean)
            extents_append(changes, VMSNAP_EXTENT_DIRTY, 512);
        fixture_init(&fixture, NULL, extents);
        g_assert_cmpuint(scan_changed_content(&fixture, changes), ==, is_clean ? 0 : 1);
        g_assert_cmpuint(count_questions(&fixture), ==, 8192 + (is_clean ? 0 : 1));
        fixture_clear(&fixture, 1);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/scan/nothing-is-asked-before-somebody-wants-it", test_nothing_is_asked_before_somebody_wants_it);
    g_test_add_func("/scan/background-fills-in-the-whole-map", test_background_fills_in_the_whole_map);
    g_test_add_func("/scan/demand-asks-for-its-window-alone", test_demand_asks_for_its_window_alone);
    g_test_add_func("/scan/a-known-window-answers-at-once", test_a_known_window_answers_at_once);
    g_test_add_func("/scan/many-who-want-a-window-share-one-question", test_many_who_want_a_window_share_one_question);
    g_test_add_func("/scan/demand-joins-the-background", test_demand_joins_the_background);
    g_test_add_func("/scan/everybody-is-called-once-whatever-runs-beside",
                    test_everybody_is_called_once_whatever_runs_beside);
    g_test_add_func("/scan/short-answers-are-continued", test_short_answers_are_continued);
    g_test_add_func("/scan/a-question-that-fails-makes-its-window-data",
                    test_a_question_that_fails_makes_its_window_data);
    g_test_add_func("/scan/a-failure-in-mid-window-keeps-what-is-known",
                    test_a_failure_in_mid_window_keeps_what_is_known);
    g_test_add_func("/scan/an-answer-that-says-nothing-makes-the-window-data",
                    test_an_answer_that_says_nothing_makes_the_window_data);
    g_test_add_func("/scan/background-gives-up-after-a-failure-and-demand-does-not",
                    test_background_gives_up_after_a_failure_and_demand_does_not);
    g_test_add_func("/scan/any-one-failure-calls-everybody-once", test_any_one_failure_calls_everybody_once);
    g_test_add_func("/scan/wait-does-not-wait-for-what-nobody-fills-in",
                    test_wait_does_not_wait_for_what_nobody_fills_in);
    g_test_add_func("/scan/wait-before-the-deadline-waits-for-the-whole-map",
                    test_wait_before_the_deadline_waits_for_the_whole_map);
    g_test_add_func("/scan/the-first-answer-after-the-deadline-ends-the-wait",
                    test_the_first_answer_after_the_deadline_ends_the_wait);
    g_test_add_func("/scan/a-short-answer-after-the-deadline-ends-the-wait",
                    test_a_short_answer_after_the_deadline_ends_the_wait);
    g_test_add_func("/scan/a-sparse-16-tib-disk-is-scanned-with-one-question-a-window",
                    test_a_sparse_16_tib_disk_is_scanned_with_one_question_a_window);
    g_test_add_func("/scan/the-end-of-the-snapshot-answers-all-who-wait",
                    test_the_end_of_the_snapshot_answers_all_who_wait);
    g_test_add_func("/scan/a-lost-snapshot-answers-at-once", test_a_lost_snapshot_answers_at_once);
    g_test_add_func("/scan/changes-are-other-than-content", test_changes_are_other_than_content);
    g_test_add_func("/scan/several-questions-about-changes-are-under-way",
                    test_several_questions_about_changes_are_under_way);
    g_test_add_func("/scan/a-small-disk-has-few-questions-under-way", test_a_small_disk_has_few_questions_under_way);
    g_test_add_func("/scan/what-cannot-be-had-is-dirty", test_what_cannot_be_had_is_dirty);
    g_test_add_func("/scan/content-is-not-asked-for-where-nothing-has-changed",
                    test_content_is_not_asked_for_where_nothing_has_changed);
    g_test_add_func("/scan/content-is-asked-for-where-it-is-wanted-though-clean",
                    test_content_is_asked_for_where_it_is_wanted_though_clean);
    g_test_add_func("/scan/a-clean-disk-of-16-tib-takes-no-question-about-content",
                    test_a_clean_disk_of_16_tib_takes_no_question_about_content);
    return g_test_run();
}
