/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "scratch_probe.h"

#include <fcntl.h>
#include <unistd.h>

#define NAME "probe"
#define LENGTH 4096

typedef struct {
    char *path;
    gboolean done; /* guarded by probe_lock */
} Probe;

/* The one that is under way in this process: while a filesystem hangs, one thread that waits for it is enough. */
static GMutex probe_lock;
static GCond probe_changed;
static Probe *probe; /* guarded by probe_lock; owned */

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
    g_cond_broadcast(&probe_changed);
    return NULL;
}

static void probe_free_locked(void) {
    g_free(probe->path);
    g_clear_pointer(&probe, g_free);
}

/* Without a thread nothing is known, and to wait helps nobody. Returns: whether there is one that can be waited for. */
static gboolean probe_begin_locked(const char *directory) {
    if (probe && probe->done)
        probe_free_locked();
    if (probe)
        return TRUE;
    probe = g_new0(Probe, 1);
    probe->path = g_build_filename(directory, NAME, NULL);
    GThread *thread = g_thread_try_new("vmsnap-probe", probe_run, probe, NULL);
    if (thread) {
        g_thread_unref(thread);
        return TRUE;
    }
    probe_free_locked();
    return FALSE;
}

gboolean vmsnap_scratch_answers(const char *directory, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&probe_lock);
    if (!probe_begin_locked(directory))
        return TRUE;
    while (!probe->done)
        if (!g_cond_wait_until(&probe_changed, &probe_lock, deadline_us))
            break;
    gboolean answered = probe->done;
    if (answered)
        probe_free_locked();
    return answered;
}
