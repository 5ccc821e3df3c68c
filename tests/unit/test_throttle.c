/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The limit: never faster than it, at once when it goes, and in order.
 *
 * A busy machine may make anything slow, so nothing here asserts that something is fast; what must come at once has as
 * long as a latch waits, and the limit would keep it waiting for longer than that.
 */
#include "fs/throttle.h"

#include "latch.h"

#include <errno.h>
#include <string.h>

#define READ_BYTES ((size_t)64 << 10)
#define MAX_READS 512
/* Bytes a second at which one read is owed for longer than any latch waits. */
#define CRAWL 1

/* A read that has come to the disk. */
typedef struct {
    gint64 begun_us;
    size_t length;
    uint64_t offset;
} Begun;

/* A disk that writes down when its reads begin, and answers them in the call. */
typedef struct {
    VmsnapSnapshot snapshot;
    VmsnapDisk disk;
    uint8_t buffer[READ_BYTES];
    Latch done;
    GMutex lock;
    GArray *begun; /* of Begun; guarded by lock */
} Fixture;

static void disk_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                      gpointer user_data) {
    Fixture *fixture = (Fixture *)disk->snapshot;
    Begun begun = {.begun_us = g_get_monotonic_time(), .length = length, .offset = offset};
    g_assert_true(buffer == fixture->buffer);
    g_mutex_lock(&fixture->lock);
    g_array_append_val(fixture->begun, begun);
    g_mutex_unlock(&fixture->lock);
    done(0, user_data);
}

static const VmsnapBackend backend = {.name = "clock", .read = disk_read};

static Fixture *fixture_new(void) {
    Fixture *fixture = g_new0(Fixture, 1);
    vmsnap_snapshot_init(&fixture->snapshot, &backend);
    fixture->disk = (VmsnapDisk){.snapshot = &fixture->snapshot, .size_bytes = MAX_READS * READ_BYTES};
    fixture->begun = g_array_new(FALSE, FALSE, sizeof(Begun));
    g_mutex_init(&fixture->lock);
    latch_init(&fixture->done);
    return fixture;
}

static void fixture_free(Fixture *fixture) {
    vmsnap_snapshot_clear(&fixture->snapshot);
    g_array_unref(fixture->begun);
    g_mutex_clear(&fixture->lock);
    latch_clear(&fixture->done);
    g_free(fixture);
}

static void read_done(int error, gpointer user_data) {
    g_assert_cmpint(error, ==, 0);
    latch_count(user_data);
}

static void start_read(Fixture *fixture, VmsnapThrottle *throttle, unsigned number) {
    vmsnap_throttle_read(throttle, &fixture->disk, fixture->buffer, READ_BYTES, number * READ_BYTES, read_done,
                         &fixture->done);
}

static void start_reads(Fixture *fixture, VmsnapThrottle *throttle, unsigned first, unsigned n) {
    for (unsigned i = first; i < first + n; i++)
        start_read(fixture, throttle, i);
}

/* Over no while have more bytes been read than the limit allows, but for one read and a little that was saved up. */
static void check_limit(const Fixture *fixture, uint64_t bytes_per_s) {
    uint64_t slack = 2 * READ_BYTES + bytes_per_s / 10;
    for (guint i = 0; i < fixture->begun->len; i++) {
        const Begun *first = &g_array_index(fixture->begun, Begun, i);
        uint64_t bytes = 0;
        for (guint k = i; k < fixture->begun->len; k++) {
            const Begun *last = &g_array_index(fixture->begun, Begun, k);
            uint64_t elapsed_us = (uint64_t)(last->begun_us - first->begun_us);
            bytes += last->length;
            g_assert_cmpuint(bytes, <=, slack + elapsed_us * bytes_per_s / G_USEC_PER_SEC);
        }
    }
}

static void check_order(const Fixture *fixture) {
    for (guint i = 0; i < fixture->begun->len; i++)
        g_assert_cmpuint(g_array_index(fixture->begun, Begun, i).offset, ==, i * READ_BYTES);
}

static void test_no_throttle_is_no_limit(void) {
    Fixture *fixture = fixture_new();
    g_assert_cmpuint(vmsnap_throttle_get_rate(NULL), ==, 0);
    start_reads(fixture, NULL, 0, 100);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 100);
    vmsnap_throttle_free(NULL);
    fixture_free(fixture);
}

static void test_a_rate_of_0_is_no_limit(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(0);
    g_assert_cmpuint(vmsnap_throttle_get_rate(throttle), ==, 0);
    start_reads(fixture, throttle, 0, 100);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 100);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static void test_the_limit_is_kept_in_order(void) {
    enum { N = 40 };
    uint64_t bytes_per_s = N * READ_BYTES * 2;
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(bytes_per_s);
    gint64 begin_us = g_get_monotonic_time();
    start_reads(fixture, throttle, 0, N);
    latch_wait(&fixture->done, N);
    g_assert_cmpint(g_get_monotonic_time() - begin_us, >=, INT64_C(400000));
    check_limit(fixture, bytes_per_s);
    check_order(fixture);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

/* What nobody has read for a while cannot be read at once later. */
static void test_idleness_saves_little(void) {
    enum { N = 20 };
    uint64_t bytes_per_s = N * READ_BYTES * 4;
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(bytes_per_s);
    g_usleep(G_USEC_PER_SEC / 2);
    start_reads(fixture, throttle, 0, N);
    latch_wait(&fixture->done, N);
    check_limit(fixture, bytes_per_s);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static void test_no_limit_frees_who_waits(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
    start_reads(fixture, throttle, 0, 30);
    g_assert_cmpuint(latch_get(&fixture->done), <=, 1);
    vmsnap_throttle_set_rate(throttle, 0);
    latch_wait(&fixture->done, 30);
    check_order(fixture);
    start_reads(fixture, throttle, 30, 10);
    latch_wait(&fixture->done, 40);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

/* Neither what waits nor what is owed by what was read keeps to the old limit. */
static void test_a_raised_limit_counts_for_who_waits(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
    start_reads(fixture, throttle, 0, 30);
    latch_wait(&fixture->done, 1);
    vmsnap_throttle_set_rate(throttle, UINT64_C(1) << 30);
    g_assert_cmpuint(vmsnap_throttle_get_rate(throttle), ==, UINT64_C(1) << 30);
    latch_wait(&fixture->done, 30);
    check_order(fixture);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static void test_a_lowered_limit_counts_from_then_on(void) {
    enum { N = 20 };
    uint64_t bytes_per_s = N * READ_BYTES * 2;
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(UINT64_C(1) << 40);
    start_reads(fixture, throttle, 0, 100);
    latch_wait(&fixture->done, 100);
    g_array_set_size(fixture->begun, 0);
    vmsnap_throttle_set_rate(throttle, bytes_per_s);
    start_reads(fixture, throttle, 100, N);
    latch_wait(&fixture->done, 100 + N);
    check_limit(fixture, bytes_per_s);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

/* What is owed for a moment at the old limit must not become minutes at the new one. */
static void test_a_lowered_limit_does_not_punish_what_was_read(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(READ_BYTES * 1000);
    start_read(fixture, throttle, 0);
    latch_wait(&fixture->done, 1);
    vmsnap_throttle_set_rate(throttle, CRAWL);
    start_read(fixture, throttle, 1);
    latch_wait(&fixture->done, 2);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

/* From no limit to one: nothing was owed, and nothing saved up. */
static void test_a_limit_may_begin_later(void) {
    enum { N = 20 };
    uint64_t bytes_per_s = N * READ_BYTES * 4;
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(0);
    start_reads(fixture, throttle, 0, 50);
    g_array_set_size(fixture->begun, 0);
    g_usleep(G_USEC_PER_SEC / 4);
    vmsnap_throttle_set_rate(throttle, bytes_per_s);
    start_reads(fixture, throttle, 50, N);
    latch_wait(&fixture->done, 50 + N);
    check_limit(fixture, bytes_per_s);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static void test_stop_answers_all_and_holds_back_nothing_any_more(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
    start_reads(fixture, throttle, 0, 100);
    vmsnap_throttle_stop(throttle);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 100);
    check_order(fixture);
    start_reads(fixture, throttle, 100, 10);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 110);
    vmsnap_throttle_stop(throttle);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static void read_failed(int error, gpointer user_data) {
    g_assert_cmpint(error, ==, -EIO);
    latch_count(user_data);
}

/* Who waits for a turn learns soon that there is nothing to wait for; and who comes later, at once. */
static void test_a_broken_snapshot_keeps_nobody_waiting(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
    /* What was saved up pays for one. */
    g_usleep(1000);
    start_read(fixture, throttle, 0);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 1);
    for (unsigned i = 1; i < 30; i++)
        vmsnap_throttle_read(throttle, &fixture->disk, fixture->buffer, READ_BYTES, 0, read_failed, &fixture->done);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 1);
    vmsnap_snapshot_break(&fixture->snapshot, "a test breaks it");
    latch_wait(&fixture->done, 30);
    vmsnap_throttle_read(throttle, &fixture->disk, fixture->buffer, READ_BYTES, 0, read_failed, &fixture->done);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 31);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static unsigned count_threads(void) {
    g_autoptr(GDir) tasks = g_dir_open("/proc/self/task", 0, NULL);
    unsigned count = 0;
    const char *name;
    g_assert_nonnull(tasks);
    while ((name = g_dir_read_name(tasks))) {
        g_autofree char *path = g_build_filename("/proc/self/task", name, "comm", NULL), *comm = NULL;
        if (g_file_get_contents(path, &comm, NULL, NULL) && g_str_equal(g_strchomp(comm), "vmsnap-throttle"))
            count++;
    }
    return count;
}

/* A thread that was joined may be listed for a moment still; and one that was made, not yet by its name. */
static void check_threads(unsigned expected) {
    gint64 deadline_us = g_get_monotonic_time() + LATCH_TIMEOUT_S * G_USEC_PER_SEC;
    while (count_threads() != expected && g_get_monotonic_time() < deadline_us)
        g_usleep(1000);
    g_assert_cmpuint(count_threads(), ==, expected);
}

static void test_the_first_that_waits_makes_the_thread(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
    /* What was saved up pays for one. */
    g_usleep(1000);
    start_read(fixture, throttle, 0);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 1);
    g_assert_cmpuint(count_threads(), ==, 0);
    start_read(fixture, throttle, 1);
    check_threads(1);
    start_reads(fixture, throttle, 2, 10);
    g_assert_cmpuint(count_threads(), ==, 1);
    vmsnap_throttle_stop(throttle);
    check_threads(0);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 12);
    check_order(fixture);
    /* Nothing waits any more, so no other is made. */
    start_reads(fixture, throttle, 12, 10);
    g_assert_cmpuint(latch_get(&fixture->done), ==, 22);
    g_assert_cmpuint(count_threads(), ==, 0);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static void test_what_never_waits_needs_no_thread(void) {
    static const uint64_t rates[] = {0, UINT64_C(1) << 50};
    for (size_t i = 0; i < G_N_ELEMENTS(rates); i++) {
        Fixture *fixture = fixture_new();
        VmsnapThrottle *throttle = vmsnap_throttle_new(rates[i]);
        g_usleep(1000);
        start_reads(fixture, throttle, 0, 100);
        vmsnap_throttle_set_rate(throttle, UINT64_C(1) << 49);
        g_assert_cmpuint(latch_get(&fixture->done), ==, 100);
        g_assert_cmpuint(count_threads(), ==, 0);
        vmsnap_throttle_stop(throttle);
        vmsnap_throttle_stop(throttle);
        vmsnap_throttle_free(throttle);
        fixture_free(fixture);
    }
}

static void test_a_throttle_that_nobody_used_ends(void) {
    VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
    vmsnap_throttle_free(throttle);
    throttle = vmsnap_throttle_new(CRAWL);
    vmsnap_throttle_stop(throttle);
    g_assert_cmpuint(count_threads(), ==, 0);
    vmsnap_throttle_free(throttle);
}

/* The queue becomes empty while nobody stops it: the thread waits for the next, and is not made anew. */
static void test_the_thread_serves_who_waits_later(void) {
    Fixture *fixture = fixture_new();
    VmsnapThrottle *throttle = vmsnap_throttle_new(READ_BYTES * 100);
    for (unsigned i = 0; i < 5; i++) {
        start_reads(fixture, throttle, i * 4, 4);
        latch_wait(&fixture->done, i * 4 + 4);
        g_assert_cmpuint(count_threads(), <=, 1);
    }
    check_threads(1);
    check_order(fixture);
    vmsnap_throttle_free(throttle);
    fixture_free(fixture);
}

static gpointer stop_it(gpointer data) {
    vmsnap_throttle_stop(data);
    return NULL;
}

/* Several end it at once, as others make the first read wait. */
static void test_stop_and_first_wait_may_meet(void) {
    for (unsigned run = 0; run < 100; run++) {
        Fixture *fixture = fixture_new();
        VmsnapThrottle *throttle = vmsnap_throttle_new(CRAWL);
        GThread *threads[2];
        for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
            threads[i] = g_thread_new("stopper", stop_it, throttle);
        start_reads(fixture, throttle, 0, 5);
        for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
            (void)g_thread_join(threads[i]);
        vmsnap_throttle_stop(throttle);
        g_assert_cmpuint(latch_get(&fixture->done), ==, 5);
        vmsnap_throttle_free(throttle);
        fixture_free(fixture);
    }
    check_threads(0);
}

static void test_reads_may_be_as_long_as_the_limit_is_high(void) {
    g_assert_cmpuint(vmsnap_throttle_get_max_read_bytes(NULL), ==, SIZE_MAX);
    VmsnapThrottle *throttle = vmsnap_throttle_new(0);
    g_assert_cmpuint(vmsnap_throttle_get_max_read_bytes(throttle), ==, SIZE_MAX);
    size_t before = 1;
    for (unsigned bits = 0; bits < 64; bits++) {
        vmsnap_throttle_set_rate(throttle, UINT64_C(1) << bits);
        size_t bytes = vmsnap_throttle_get_max_read_bytes(throttle);
        g_assert_cmpuint(bytes, >=, before);
        g_assert_cmpuint(bytes % 4096, ==, 0);
        if (bits >= 16)
            g_assert_cmpuint(bytes, <=, UINT64_C(1) << (bits - 1));
        before = bytes;
    }
    vmsnap_throttle_free(throttle);
}

#define N_THREADS 6
#define N_READS 10

typedef struct {
    Fixture *fixture;
    VmsnapThrottle *throttle;
} Crowd;

static gpointer crowd_read(gpointer data) {
    const Crowd *crowd = data;
    start_reads(crowd->fixture, crowd->throttle, 0, N_READS);
    return NULL;
}

static void crowd_join(GThread **threads) {
    for (unsigned i = 0; i < N_THREADS; i++)
        (void)g_thread_join(threads[i]);
}

static void test_threads_keep_one_limit(void) {
    uint64_t bytes_per_s = (uint64_t)N_THREADS * N_READS * READ_BYTES * 2;
    Fixture *fixture = fixture_new();
    Crowd crowd = {.fixture = fixture, .throttle = vmsnap_throttle_new(bytes_per_s)};
    GThread *threads[N_THREADS];
    for (unsigned i = 0; i < N_THREADS; i++)
        threads[i] = g_thread_new("crowd", crowd_read, &crowd);
    crowd_join(threads);
    latch_wait(&fixture->done, N_THREADS * N_READS);
    check_limit(fixture, bytes_per_s);
    vmsnap_throttle_free(crowd.throttle);
    g_assert_cmpuint(latch_get(&fixture->done), ==, N_THREADS * N_READS);
    fixture_free(fixture);
}

/* Whatever the limit does meanwhile, each read is done once. */
static void test_threads_may_read_while_the_limit_changes(void) {
    static const uint64_t rates[] = {CRAWL, 0, UINT64_C(1) << 20, UINT64_C(1) << 40, 4096};
    Fixture *fixture = fixture_new();
    Crowd crowd = {.fixture = fixture, .throttle = vmsnap_throttle_new(CRAWL)};
    GThread *threads[N_THREADS];
    for (unsigned i = 0; i < N_THREADS; i++)
        threads[i] = g_thread_new("crowd", crowd_read, &crowd);
    for (unsigned i = 0; i < 100; i++)
        vmsnap_throttle_set_rate(crowd.throttle, rates[i % G_N_ELEMENTS(rates)]);
    crowd_join(threads);
    vmsnap_throttle_stop(crowd.throttle);
    g_assert_cmpuint(latch_get(&fixture->done), ==, N_THREADS * N_READS);
    vmsnap_throttle_free(crowd.throttle);
    fixture_free(fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/throttle/no-throttle-is-no-limit", test_no_throttle_is_no_limit);
    g_test_add_func("/throttle/a-rate-of-0-is-no-limit", test_a_rate_of_0_is_no_limit);
    g_test_add_func("/throttle/the-limit-is-kept-in-order", test_the_limit_is_kept_in_order);
    g_test_add_func("/throttle/idleness-saves-little", test_idleness_saves_little);
    g_test_add_func("/throttle/no-limit-frees-who-waits", test_no_limit_frees_who_waits);
    g_test_add_func("/throttle/a-raised-limit-counts-for-who-waits", test_a_raised_limit_counts_for_who_waits);
    g_test_add_func("/throttle/a-lowered-limit-counts-from-then-on", test_a_lowered_limit_counts_from_then_on);
    g_test_add_func("/throttle/a-lowered-limit-does-not-punish-what-was-read",
                    test_a_lowered_limit_does_not_punish_what_was_read);
    g_test_add_func("/throttle/a-limit-may-begin-later", test_a_limit_may_begin_later);
    g_test_add_func("/throttle/stop-answers-all-and-holds-back-nothing-any-more",
                    test_stop_answers_all_and_holds_back_nothing_any_more);
    g_test_add_func("/throttle/a-broken-snapshot-keeps-nobody-waiting", test_a_broken_snapshot_keeps_nobody_waiting);
    g_test_add_func("/throttle/the-first-that-waits-makes-the-thread", test_the_first_that_waits_makes_the_thread);
    g_test_add_func("/throttle/what-never-waits-needs-no-thread", test_what_never_waits_needs_no_thread);
    g_test_add_func("/throttle/a-throttle-that-nobody-used-ends", test_a_throttle_that_nobody_used_ends);
    g_test_add_func("/throttle/the-thread-serves-who-waits-later", test_the_thread_serves_who_waits_later);
    g_test_add_func("/throttle/stop-and-first-wait-may-meet", test_stop_and_first_wait_may_meet);
    g_test_add_func("/throttle/reads-may-be-as-long-as-the-limit-is-high",
                    test_reads_may_be_as_long_as_the_limit_is_high);
    g_test_add_func("/throttle/threads-keep-one-limit", test_threads_keep_one_limit);
    g_test_add_func("/throttle/threads-may-read-while-the-limit-changes",
                    test_threads_may_read_while_the_limit_changes);
    return g_test_run();
}
