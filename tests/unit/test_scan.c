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
    return g_test_run();
}
