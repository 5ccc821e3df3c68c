/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Counts callbacks, and waits for them for a while that no healthy test needs. */
#pragma once

#include <glib.h>

#define LATCH_TIMEOUT_S 60

typedef struct {
    GMutex lock;
    GCond changed;
    unsigned count; /* guarded by lock */
} Latch;

static inline void latch_init(Latch *latch) {
    g_mutex_init(&latch->lock);
    g_cond_init(&latch->changed);
    latch->count = 0;
}

static inline void latch_clear(Latch *latch) {
    g_cond_clear(&latch->changed);
    g_mutex_clear(&latch->lock);
}

/** Has the signature of a VmsnapScanFunc. */
static inline void latch_count(gpointer latch_pointer) {
    Latch *latch = latch_pointer;
    g_mutex_lock(&latch->lock);
    latch->count++;
    g_cond_broadcast(&latch->changed);
    g_mutex_unlock(&latch->lock);
}

static inline unsigned latch_get(Latch *latch) {
    g_mutex_lock(&latch->lock);
    unsigned count = latch->count;
    g_mutex_unlock(&latch->lock);
    return count;
}

/** Waits until at least @count have been counted. */
static inline void latch_wait(Latch *latch, unsigned count) {
    gint64 deadline_us = g_get_monotonic_time() + LATCH_TIMEOUT_S * G_USEC_PER_SEC;
    g_mutex_lock(&latch->lock);
    while (latch->count < count)
        if (!g_cond_wait_until(&latch->changed, &latch->lock, deadline_us))
            g_error("only %u of %u callbacks came within %d s", latch->count, count, LATCH_TIMEOUT_S);
    g_mutex_unlock(&latch->lock);
}
