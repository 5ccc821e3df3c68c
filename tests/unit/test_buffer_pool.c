/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pool of buffers: its bound, who waits, who gets what is left, and that buffers are used again. */
#include "fs/buffer_pool.h"

#include "latch.h"

#include <string.h>

#define BUFFER_BYTES ((size_t)10000)
#define N_BUFFERS 8

/* Somebody who waits for a buffer, and the place in the order in which he got it. */
typedef struct {
    VmsnapBufferPool *pool;
    Latch *served;
    unsigned place; /* 0: not yet; the first is 1 */
    uint8_t *buffer;
} Taker;

static void taker_served(uint8_t *buffer, gpointer user_data) {
    Taker *taker = user_data;
    g_assert_nonnull(buffer);
    g_assert_null(taker->buffer);
    taker->buffer = buffer;
    taker->place = latch_get(taker->served) + 1;
    latch_count(taker->served);
}

static void taker_take(Taker *taker, VmsnapBufferPool *pool, Latch *served) {
    *taker = (Taker){.pool = pool, .served = served};
    vmsnap_buffer_pool_take(pool, taker_served, taker);
}

static void test_a_pool_has_so_many_buffers_and_no_more(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, N_BUFFERS);
    uint8_t *buffers[N_BUFFERS];
    g_assert_cmpuint(vmsnap_buffer_pool_get_buffer_bytes(pool), ==, BUFFER_BYTES);
    for (unsigned i = 0; i < N_BUFFERS; i++) {
        buffers[i] = vmsnap_buffer_pool_try_take(pool, 0);
        g_assert_nonnull(buffers[i]);
        memset(buffers[i], (int)i, BUFFER_BYTES);
    }
    g_assert_null(vmsnap_buffer_pool_try_take(pool, 0));
    for (unsigned i = 0; i < N_BUFFERS; i++) {
        g_assert_cmpuint(buffers[i][0], ==, i);
        g_assert_cmpuint(buffers[i][BUFFER_BYTES - 1], ==, i);
        vmsnap_buffer_pool_give(pool, buffers[i]);
    }
    vmsnap_buffer_pool_free(pool);
}

static void test_the_last_one_given_back_is_used_first(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, N_BUFFERS);
    uint8_t *one = vmsnap_buffer_pool_try_take(pool, 0), *other = vmsnap_buffer_pool_try_take(pool, 1);
    vmsnap_buffer_pool_give(pool, one);
    vmsnap_buffer_pool_give(pool, other);
    g_assert_true(vmsnap_buffer_pool_try_take(pool, 0) == other);
    g_assert_true(vmsnap_buffer_pool_try_take(pool, 0) == one);
    vmsnap_buffer_pool_give(pool, one);
    vmsnap_buffer_pool_give(pool, other);
    vmsnap_buffer_pool_free(pool);
}

static void test_a_pool_may_have_none(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, 0);
    g_assert_null(vmsnap_buffer_pool_try_take(pool, 0));
    g_assert_null(vmsnap_buffer_pool_try_take(pool, 1));
    vmsnap_buffer_pool_free(pool);
}

static void test_nothing_can_be_given_and_freed(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, 1);
    vmsnap_buffer_pool_give(pool, NULL);
    vmsnap_buffer_pool_free(pool);
    vmsnap_buffer_pool_free(NULL);
}

static void test_a_buffer_that_was_not_given_back_is_noticed(void) {
    if (g_test_subprocess()) {
        VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, N_BUFFERS);
        (void)vmsnap_buffer_pool_try_take(pool, 0);
        vmsnap_buffer_pool_free(pool);
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
}

/* More must be left than the caller has already. */
static void test_try_take_leaves_some_for_who_comes_late(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, N_BUFFERS);
    for (guint n_taken = 0; n_taken <= N_BUFFERS; n_taken++) {
        g_autoptr(GPtrArray) taken = g_ptr_array_new();
        while (taken->len < n_taken)
            g_ptr_array_add(taken, vmsnap_buffer_pool_try_take(pool, 0));
        for (guint n_held = 0; n_held <= N_BUFFERS + 1; n_held++) {
            uint8_t *buffer = vmsnap_buffer_pool_try_take(pool, n_held);
            g_assert_cmpint(buffer != NULL, ==, N_BUFFERS - n_taken > n_held);
            vmsnap_buffer_pool_give(pool, buffer);
        }
        for (guint i = 0; i < taken->len; i++)
            vmsnap_buffer_pool_give(pool, g_ptr_array_index(taken, i));
    }
    vmsnap_buffer_pool_free(pool);
}

#define N_HOLDERS 5
#define N_SHARED 60

/* All take what they can, and give back one at a time: none may stay without. */
static void test_who_takes_as_many_as_he_can_ends_up_with_as_many_as_others(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, N_SHARED);
    GPtrArray *held[N_HOLDERS];
    for (unsigned i = 0; i < N_HOLDERS; i++)
        held[i] = g_ptr_array_new();
    for (unsigned turn = 0; turn < 1000; turn++) {
        GPtrArray *holder = held[turn % N_HOLDERS];
        if (holder->len > 0)
            vmsnap_buffer_pool_give(pool, g_ptr_array_steal_index_fast(holder, 0));
        for (uint8_t *buffer; (buffer = vmsnap_buffer_pool_try_take(pool, holder->len));)
            g_ptr_array_add(holder, buffer);
    }
    for (unsigned i = 0; i < N_HOLDERS; i++) {
        g_assert_cmpuint(held[i]->len, >=, N_SHARED / (2 * N_HOLDERS));
        g_assert_cmpuint(held[i]->len, <=, 2 * N_SHARED / N_HOLDERS);
        for (guint n = 0; n < held[i]->len; n++)
            vmsnap_buffer_pool_give(pool, g_ptr_array_index(held[i], n));
        g_ptr_array_unref(held[i]);
    }
    vmsnap_buffer_pool_free(pool);
}

static void test_who_waits_is_served_in_order(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, 2);
    Taker takers[N_BUFFERS];
    Latch served;
    latch_init(&served);
    for (unsigned i = 0; i < N_BUFFERS; i++)
        taker_take(&takers[i], pool, &served);
    g_assert_cmpuint(latch_get(&served), ==, 2);
    g_assert_null(vmsnap_buffer_pool_try_take(pool, 0));
    for (unsigned i = 0; i < N_BUFFERS; i++) {
        /* What is given back goes on to the one who waits longest, and is not there for others in between. */
        g_assert_cmpuint(takers[i].place, ==, i + 1);
        vmsnap_buffer_pool_give(pool, takers[i].buffer);
    }
    g_assert_cmpuint(latch_get(&served), ==, N_BUFFERS);
    vmsnap_buffer_pool_free(pool);
    latch_clear(&served);
}

static void taker_give_at_once(uint8_t *buffer, gpointer user_data) {
    Taker *taker = user_data;
    taker->buffer = buffer;
    latch_count(taker->served);
    vmsnap_buffer_pool_give(taker->pool, buffer);
}

#define N_IMPATIENT ((size_t)100000)

/* As when a snapshot ends: each read fails at once, and gives its buffer to the next. However many do, none nests. */
static void test_who_is_served_may_give_back_at_once(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, 1);
    g_autofree Taker *takers = g_new(Taker, N_IMPATIENT);
    Latch served;
    latch_init(&served);
    uint8_t *buffer = vmsnap_buffer_pool_try_take(pool, 0);
    for (size_t i = 0; i < N_IMPATIENT; i++) {
        takers[i] = (Taker){.pool = pool, .served = &served};
        vmsnap_buffer_pool_take(pool, taker_give_at_once, &takers[i]);
    }
    g_assert_cmpuint(latch_get(&served), ==, 0);
    vmsnap_buffer_pool_give(pool, buffer);
    g_assert_cmpuint(latch_get(&served), ==, N_IMPATIENT);
    for (size_t i = 0; i < N_IMPATIENT; i++)
        g_assert_true(takers[i].buffer == buffer);
    vmsnap_buffer_pool_free(pool);
    latch_clear(&served);
}

#define N_THREADS 6
#define N_TURNS 300

/* Fills its buffer and looks at it again: nobody else may have it. */
static gpointer take_and_give(gpointer data) {
    VmsnapBufferPool *pool = data;
    for (unsigned turn = 0; turn < N_TURNS; turn++) {
        Latch served;
        Taker taker = {0};
        latch_init(&served);
        if (turn % 3 == 0)
            taker.buffer = vmsnap_buffer_pool_try_take(pool, 0);
        if (!taker.buffer) {
            taker_take(&taker, pool, &served);
            latch_wait(&served, 1);
        }
        memset(taker.buffer, (int)turn, BUFFER_BYTES);
        g_assert_cmpuint(taker.buffer[BUFFER_BYTES / 2], ==, turn % 256);
        vmsnap_buffer_pool_give(pool, taker.buffer);
        latch_clear(&served);
    }
    return NULL;
}

static void test_threads_may_share_a_pool(void) {
    VmsnapBufferPool *pool = vmsnap_buffer_pool_new(BUFFER_BYTES, 2);
    GThread *threads[N_THREADS];
    for (unsigned i = 0; i < N_THREADS; i++)
        threads[i] = g_thread_new("taker", take_and_give, pool);
    for (unsigned i = 0; i < N_THREADS; i++)
        (void)g_thread_join(threads[i]);
    vmsnap_buffer_pool_free(pool);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/buffer-pool/a-pool-has-so-many-buffers-and-no-more", test_a_pool_has_so_many_buffers_and_no_more);
    g_test_add_func("/buffer-pool/the-last-one-given-back-is-used-first", test_the_last_one_given_back_is_used_first);
    g_test_add_func("/buffer-pool/a-pool-may-have-none", test_a_pool_may_have_none);
    g_test_add_func("/buffer-pool/nothing-can-be-given-and-freed", test_nothing_can_be_given_and_freed);
    g_test_add_func("/buffer-pool/a-buffer-that-was-not-given-back-is-noticed",
                    test_a_buffer_that_was_not_given_back_is_noticed);
    g_test_add_func("/buffer-pool/try-take-leaves-some-for-who-comes-late",
                    test_try_take_leaves_some_for_who_comes_late);
    g_test_add_func("/buffer-pool/who-takes-as-many-as-he-can-ends-up-with-as-many-as-others",
                    test_who_takes_as_many_as_he_can_ends_up_with_as_many_as_others);
    g_test_add_func("/buffer-pool/who-waits-is-served-in-order", test_who_waits_is_served_in_order);
    g_test_add_func("/buffer-pool/who-is-served-may-give-back-at-once", test_who_is_served_may_give_back_at_once);
    g_test_add_func("/buffer-pool/threads-may-share-a-pool", test_threads_may_share_a_pool);
    return g_test_run();
}
