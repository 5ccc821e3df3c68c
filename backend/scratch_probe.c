/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "scratch_probe.h"

#include <fcntl.h>
#include <unistd.h>

#define NAME "probe"
#define LENGTH 4096

/* Whoever waits for it holds it. */
typedef struct {
    char *path;
    gboolean done; /* guarded by probe_lock */
} Probe;

/* Those that are under way in this process: while a filesystem hangs, one thread that waits for it is enough. */
static GMutex probe_lock;
static GCond probe_changed;
static GHashTable *probes; /* of path to Probe, their threads'; guarded by probe_lock, as are references to them */

static void probe_clear(gpointer data) {
    g_free(((Probe *)data)->path);
}

static void probe_unref_locked(Probe *held) {
    g_rc_box_release_full(held, probe_clear);
}

static gpointer probe_run(gpointer data) {
    static const char content[LENGTH];
    Probe *own = data;
    int fd = open(own->path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0) {
        (void)!pwrite(fd, content, sizeof content, 0);
        (void)close(fd);
        (void)unlink(own->path);
    }
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&probe_lock);
    own->done = TRUE;
    (void)g_hash_table_remove(probes, own->path);
    g_cond_broadcast(&probe_changed);
    probe_unref_locked(own);
    return NULL;
}

/* Without a thread nothing is known, and to wait helps nobody. Returns: one that can be waited for, or NULL. */
static Probe *probe_ref_or_begin_locked(const char *directory) {
    g_autofree char *path = g_build_filename(directory, NAME, NULL);
    if (!probes)
        probes = g_hash_table_new(g_str_hash, g_str_equal);
    Probe *same = g_hash_table_lookup(probes, path);
    if (same)
        return g_rc_box_acquire(same);
    Probe *begun = g_rc_box_new0(Probe);
    begun->path = g_steal_pointer(&path);
    GThread *thread = g_thread_try_new("vmsnap-probe", probe_run, begun, NULL);
    if (!thread) {
        probe_unref_locked(begun);
        return NULL;
    }
    g_thread_unref(thread);
    (void)g_hash_table_insert(probes, begun->path, begun);
    return g_rc_box_acquire(begun);
}

gboolean vmsnap_scratch_answers(const char *directory, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&probe_lock);
    Probe *waited_for = probe_ref_or_begin_locked(directory);
    if (!waited_for)
        return TRUE;
    while (!waited_for->done)
        if (!g_cond_wait_until(&probe_changed, &probe_lock, deadline_us))
            break;
    gboolean answered = waited_for->done;
    probe_unref_locked(waited_for);
    return answered;
}
