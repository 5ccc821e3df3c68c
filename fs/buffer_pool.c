/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Large buffers that are allocated for each read would be new memory each time, and the kernel would have to clear
 * every page of it. So they are kept; and the one that was given back last is used first, since it may still be in the
 * processor's cache.
 *
 * They are cut from slabs of the size of a huge page: the kernel looks up each page that it copies to a reader, which
 * is a good part of what a read costs, and finds those of a huge page faster.
 *
 * The lock is not held while a waiter is called. A waiter may give its buffer back at once, and so may the next one: so
 * waiters are called in a loop by one thread, and not one by the other, which would nest.
 */
#include "buffer_pool.h"

#include <sys/mman.h>

#define SLAB_BYTES ((size_t)2 << 20)

typedef struct {
    VmsnapBufferFunc func;
    gpointer user_data;
} Waiter;

struct VmsnapBufferPool {
    size_t buffer_bytes;
    guint max_buffers;
    GMutex lock;
    guint n_taken;    /* guarded by lock */
    GPtrArray *slabs; /* owned; guarded by lock */
    GPtrArray *idle;  /* of buffers; guarded by lock */
    GQueue waiters;   /* of Waiter, owned, in their order; guarded by lock */
    gboolean serving; /* a thread is calling waiters; guarded by lock */
};

static void slab_free(gpointer slab) {
    (void)munmap(slab, SLAB_BYTES);
}

VmsnapBufferPool *vmsnap_buffer_pool_new(size_t buffer_bytes, guint max_buffers) {
    g_assert(buffer_bytes <= SLAB_BYTES);
    VmsnapBufferPool *pool = g_new0(VmsnapBufferPool, 1);
    pool->buffer_bytes = buffer_bytes;
    pool->max_buffers = max_buffers;
    g_mutex_init(&pool->lock);
    pool->slabs = g_ptr_array_new_with_free_func(slab_free);
    pool->idle = g_ptr_array_new();
    return pool;
}

void vmsnap_buffer_pool_free(VmsnapBufferPool *pool) {
    if (!pool)
        return;
    g_assert(pool->n_taken == 0 && g_queue_is_empty(&pool->waiters));
    g_ptr_array_unref(pool->idle);
    g_ptr_array_unref(pool->slabs);
    g_mutex_clear(&pool->lock);
    g_free(pool);
}

size_t vmsnap_buffer_pool_get_buffer_bytes(const VmsnapBufferPool *pool) {
    return pool->buffer_bytes;
}

/* Not by malloc(), which would take twice as much to align it. The kernel aligns it as a huge page by itself. */
static void add_slab_locked(VmsnapBufferPool *pool) {
    uint8_t *slab = mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slab == MAP_FAILED)
        g_error("failed to allocate %zu bytes", SLAB_BYTES);
    (void)madvise(slab, SLAB_BYTES, MADV_HUGEPAGE);
    g_ptr_array_add(pool->slabs, slab);
    for (size_t offset = 0; offset + pool->buffer_bytes <= SLAB_BYTES; offset += pool->buffer_bytes)
        g_ptr_array_add(pool->idle, slab + offset);
}

static uint8_t *take_locked(VmsnapBufferPool *pool) {
    pool->n_taken++;
    if (pool->idle->len == 0)
        add_slab_locked(pool);
    return g_ptr_array_steal_index_fast(pool->idle, pool->idle->len - 1);
}

uint8_t *vmsnap_buffer_pool_try_take(VmsnapBufferPool *pool, guint n_held) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&pool->lock);
    return pool->max_buffers - pool->n_taken > n_held ? take_locked(pool) : NULL;
}

void vmsnap_buffer_pool_take(VmsnapBufferPool *pool, VmsnapBufferFunc func, gpointer user_data) {
    uint8_t *buffer = NULL;
    g_mutex_lock(&pool->lock);
    if (pool->n_taken < pool->max_buffers && g_queue_is_empty(&pool->waiters)) {
        buffer = take_locked(pool);
    } else {
        Waiter *waiter = g_new(Waiter, 1);
        *waiter = (Waiter){.func = func, .user_data = user_data};
        g_queue_push_tail(&pool->waiters, waiter);
    }
    g_mutex_unlock(&pool->lock);
    if (buffer)
        func(buffer, user_data);
}

static void serve_locked(VmsnapBufferPool *pool) {
    pool->serving = TRUE;
    while (pool->n_taken < pool->max_buffers && !g_queue_is_empty(&pool->waiters)) {
        g_autofree Waiter *waiter = g_queue_pop_head(&pool->waiters);
        uint8_t *buffer = take_locked(pool);
        g_mutex_unlock(&pool->lock);
        waiter->func(buffer, waiter->user_data);
        g_mutex_lock(&pool->lock);
    }
    pool->serving = FALSE;
}

void vmsnap_buffer_pool_give(VmsnapBufferPool *pool, uint8_t *buffer) {
    if (!buffer)
        return;
    g_mutex_lock(&pool->lock);
    pool->n_taken--;
    g_ptr_array_add(pool->idle, buffer);
    if (!pool->serving)
        serve_locked(pool);
    g_mutex_unlock(&pool->lock);
}
