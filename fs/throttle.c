/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A token bucket. Tokens are bytes; they come at the rate of the limit, and a little more than none may be saved up. A
 * read may begin as soon as there is any token, and takes all that it needs: so the bucket may owe some, and who comes
 * next waits until that is paid. Reads that must wait stand in a queue, which one thread serves; the first of them
 * makes it.
 *
 * A broken snapshot answers no read any more: it says so at once, also to those that wait.
 *
 * The lock is not held while a disk is read.
 */
#include "throttle.h"

/* What may be saved up: this much of a second. */
#define MAX_SAVED_US (G_USEC_PER_SEC / 20)
/* One read may need the tokens of this much of a second. */
#define MAX_READ_US (G_USEC_PER_SEC / 8)
#define READ_ALIGNMENT_BYTES 4096
/* How often the thread looks, at least, whether the snapshot broke. */
#define LOOK_US (G_USEC_PER_SEC / 2)

typedef struct {
    GList link; /* its data is the read */
    VmsnapDisk *disk;
    void *buffer;
    size_t length;
    uint64_t offset;
    VmsnapDoneFunc done;
    gpointer user_data;
} Read;

struct VmsnapThrottle {
    _Atomic uint64_t bytes_per_s; /* written with the lock held */
    GMutex lock;
    GCond changed;
    GThread *thread;       /* NULL before anything had to wait; guarded by lock, as all below */
    GQueue waiting;        /* of Read, owned */
    double tokens;         /* below 0: owed */
    gint64 last_refill_us; /* tokens are as of then */
    gboolean stopped;
};

static void refill_locked(VmsnapThrottle *throttle) {
    double bytes_per_us = (double)throttle->bytes_per_s / G_USEC_PER_SEC;
    gint64 now_us = g_get_monotonic_time();
    double tokens = throttle->tokens + (double)(now_us - throttle->last_refill_us) * bytes_per_us;
    throttle->tokens = MIN(tokens, MAX_SAVED_US * bytes_per_us);
    throttle->last_refill_us = now_us;
}

/* Returns: whether a read may begin, which is then paid for; or else when to try again. */
static gboolean pay_locked(VmsnapThrottle *throttle, const Read *read, gint64 *ret_next_us) {
    if (throttle->bytes_per_s == 0 || throttle->stopped || vmsnap_snapshot_is_broken(read->disk->snapshot))
        return TRUE;
    refill_locked(throttle);
    gboolean allowed = throttle->tokens > 0;
    if (allowed) {
        throttle->tokens -= (double)read->length;
    } else {
        double owed_us = -throttle->tokens * G_USEC_PER_SEC / (double)throttle->bytes_per_s;
        *ret_next_us = throttle->last_refill_us + 1 + (gint64)MIN(owed_us, LOOK_US);
    }
    return allowed;
}

static void read_begin(Read *read) {
    vmsnap_disk_read(read->disk, read->buffer, read->length, read->offset, read->done, read->user_data);
    g_free(read);
}

static gpointer throttle_run(gpointer data) {
    VmsnapThrottle *throttle = data;
    gint64 next_us = 0;
    g_mutex_lock(&throttle->lock);
    while (!throttle->stopped || !g_queue_is_empty(&throttle->waiting)) {
        Read *read = g_queue_peek_head(&throttle->waiting);
        if (!read) {
            g_cond_wait(&throttle->changed, &throttle->lock);
        } else if (!pay_locked(throttle, read, &next_us)) {
            (void)g_cond_wait_until(&throttle->changed, &throttle->lock, next_us);
        } else {
            g_queue_unlink(&throttle->waiting, &read->link);
            g_mutex_unlock(&throttle->lock);
            read_begin(read);
            g_mutex_lock(&throttle->lock);
        }
    }
    g_mutex_unlock(&throttle->lock);
    return NULL;
}

VmsnapThrottle *vmsnap_throttle_new(uint64_t bytes_per_s) {
    VmsnapThrottle *throttle = g_new0(VmsnapThrottle, 1);
    throttle->bytes_per_s = bytes_per_s;
    throttle->last_refill_us = g_get_monotonic_time();
    g_mutex_init(&throttle->lock);
    g_cond_init(&throttle->changed);
    g_queue_init(&throttle->waiting);
    return throttle;
}

void vmsnap_throttle_stop(VmsnapThrottle *throttle) {
    g_mutex_lock(&throttle->lock);
    throttle->stopped = TRUE;
    GThread *thread = g_steal_pointer(&throttle->thread);
    g_cond_signal(&throttle->changed);
    g_mutex_unlock(&throttle->lock);
    if (thread)
        (void)g_thread_join(thread);
}

void vmsnap_throttle_free(VmsnapThrottle *throttle) {
    if (!throttle)
        return;
    vmsnap_throttle_stop(throttle);
    g_cond_clear(&throttle->changed);
    g_mutex_clear(&throttle->lock);
    g_free(throttle);
}

void vmsnap_throttle_set_rate(VmsnapThrottle *throttle, uint64_t bytes_per_s) {
    g_mutex_lock(&throttle->lock);
    refill_locked(throttle);
    /* What is owed was owed at the old limit: at a lower one, it must not take longer to pay. */
    if (bytes_per_s < throttle->bytes_per_s)
        throttle->tokens *= (double)bytes_per_s / (double)throttle->bytes_per_s;
    throttle->bytes_per_s = bytes_per_s;
    g_cond_signal(&throttle->changed);
    g_mutex_unlock(&throttle->lock);
}

uint64_t vmsnap_throttle_get_rate(const VmsnapThrottle *throttle) {
    return throttle ? throttle->bytes_per_s : 0;
}

size_t vmsnap_throttle_get_max_read_bytes(const VmsnapThrottle *throttle) {
    uint64_t bytes_per_s = vmsnap_throttle_get_rate(throttle);
    if (bytes_per_s == 0)
        return SIZE_MAX;
    uint64_t bytes = bytes_per_s / (G_USEC_PER_SEC / MAX_READ_US) / READ_ALIGNMENT_BYTES * READ_ALIGNMENT_BYTES;
    return MAX(bytes, READ_ALIGNMENT_BYTES);
}

void vmsnap_throttle_read(VmsnapThrottle *throttle, VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset,
                          VmsnapDoneFunc done, gpointer user_data) {
    if (vmsnap_throttle_get_rate(throttle) == 0) {
        vmsnap_disk_read(disk, buffer, length, offset, done, user_data);
        return;
    }
    Read *read = g_new(Read, 1);
    *read = (Read){.disk = disk, .buffer = buffer, .length = length, .offset = offset, .done = done};
    read->user_data = user_data;
    read->link.data = read;

    gint64 next_us;
    g_mutex_lock(&throttle->lock);
    gboolean at_once =
        throttle->stopped || (g_queue_is_empty(&throttle->waiting) && pay_locked(throttle, read, &next_us));
    /* Too fast is better than not at all, should the system have no thread to give. */
    if (!at_once && !throttle->thread)
        throttle->thread = g_thread_try_new("vmsnap-throttle", throttle_run, throttle, NULL);
    at_once = at_once || !throttle->thread;
    if (!at_once) {
        g_queue_push_tail_link(&throttle->waiting, &read->link);
        g_cond_signal(&throttle->changed);
    }
    g_mutex_unlock(&throttle->lock);
    if (at_once)
        read_begin(read);
}
