/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "image_sync.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of an image that the guest writes to as fast as it can, each pass leaves a fourth of what the one before has left. */
#define PASSES 4
#define SETTLED_US 10000

/* Belongs to both who wait and the thread, and to the last one of them. */
typedef struct {
    GPtrArray *paths;
    GMutex lock;
    GCond changed;
    unsigned references; /* guarded by lock, also done */
    gboolean done;
} Sync;

/* Called with the lock, which it gives back. */
static void sync_unref(Sync *sync) {
    gboolean last = --sync->references == 0;
    g_mutex_unlock(&sync->lock);
    if (!last)
        return;
    g_ptr_array_unref(sync->paths);
    g_cond_clear(&sync->changed);
    g_mutex_clear(&sync->lock);
    g_free(sync);
}

/* QEMU names the path: what it leads to is looked at before it is opened, which may have an effect on a device. */
static int image_open(const char *path) {
    struct stat status;
    int path_fd = open(path, O_PATH | O_CLOEXEC);
    if (path_fd < 0)
        return -1;
    g_autofree char *name = g_strdup_printf("/proc/self/fd/%d", path_fd);
    gboolean usable = fstat(path_fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode));
    int fd = usable ? open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
    (void)close(path_fd);
    return fd;
}

static void images_sync_once(gpointer path, gpointer user_data) {
    (void)user_data;
    int fd = image_open(path);
    if (fd < 0)
        return;
    (void)fdatasync(fd);
    (void)close(fd);
}

/* A pass that takes not much less than the one before it has met a slow disk, and not what was written meanwhile. */
static gpointer sync_run(gpointer data) {
    Sync *sync = data;
    gint64 before_us = G_MAXINT64, took_us = 0;
    for (unsigned i = 0; i < PASSES && took_us < before_us / 2; i++) {
        before_us = took_us > 0 ? took_us : before_us;
        gint64 begin_us = g_get_monotonic_time();
        g_ptr_array_foreach(sync->paths, images_sync_once, NULL);
        took_us = g_get_monotonic_time() - begin_us;
        if (took_us <= SETTLED_US)
            break;
    }
    g_mutex_lock(&sync->lock);
    sync->done = TRUE;
    g_cond_signal(&sync->changed);
    sync_unref(sync);
    return NULL;
}

void vmsnap_images_sync(const GPtrArray *paths, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    Sync *sync = g_new0(Sync, 1);
    sync->paths = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < paths->len; i++)
        g_ptr_array_add(sync->paths, g_strdup(g_ptr_array_index(paths, i)));
    sync->references = 2;
    g_mutex_init(&sync->lock);
    g_cond_init(&sync->changed);
    GThread *thread = g_thread_try_new("vmsnap-sync", sync_run, sync, NULL);
    g_mutex_lock(&sync->lock);
    if (thread)
        g_thread_unref(thread);
    else
        sync->references--;
    while (thread && !sync->done)
        if (!g_cond_wait_until(&sync->changed, &sync->lock, deadline_us))
            break;
    sync_unref(sync);
}
