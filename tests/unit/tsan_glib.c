/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * GLib is not built with the thread sanitizer, and its mutexes are atomics and futexes of its own: the sanitizer sees
 * no order between two threads that lock one, and takes everything that they guard for a race. These functions stand
 * between a test program and GLib and tell it what is true and no more: a lock comes after the unlock before it, what
 * touches a main context or a source locks the context, and the last reference is given up after the others. So races
 * of vmsnap are found, and nothing has to be suppressed.
 *
 * In other builds this file is empty.
 */
#include <glib.h>

#ifdef __SANITIZE_THREAD__

#include <dlfcn.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

/* The function of that name in GLib. */
#define GLIB(name)                                                                                                     \
    ({                                                                                                                 \
        static void *found;                                                                                            \
        if (!__atomic_load_n(&found, __ATOMIC_RELAXED))                                                                \
            __atomic_store_n(&found, dlsym(RTLD_NEXT, #name), __ATOMIC_RELAXED);                                       \
        (__typeof__(&name))__atomic_load_n(&found, __ATOMIC_RELAXED);                                                  \
    })

void g_mutex_lock(GMutex *mutex) {
    GLIB(g_mutex_lock)(mutex);
    __tsan_acquire(mutex);
}

void g_mutex_unlock(GMutex *mutex) {
    __tsan_release(mutex);
    GLIB(g_mutex_unlock)(mutex);
}

void g_cond_wait(GCond *condition, GMutex *mutex) {
    __tsan_release(mutex);
    GLIB(g_cond_wait)(condition, mutex);
    __tsan_acquire(mutex);
}

gboolean g_cond_wait_until(GCond *condition, GMutex *mutex, gint64 end_time) {
    __tsan_release(mutex);
    gboolean signalled = GLIB(g_cond_wait_until)(condition, mutex, end_time);
    __tsan_acquire(mutex);
    return signalled;
}

guint g_source_attach(GSource *source, GMainContext *context) {
    __tsan_release(source);
    __tsan_release(context);
    return GLIB(g_source_attach)(source, context);
}

void g_main_loop_quit(GMainLoop *loop) {
    __tsan_acquire(g_main_loop_get_context(loop));
    GLIB(g_main_loop_quit)(loop);
}

void g_source_set_ready_time(GSource *source, gint64 ready_time) {
    __tsan_release(source);
    GLIB(g_source_set_ready_time)(source, ready_time);
    __tsan_acquire(source);
}

static __thread GDestroyNotify box_clear; /* of the box that this thread is giving up */

static void acquire_and_clear(gpointer box) {
    GDestroyNotify clear = box_clear;
    __tsan_acquire(box);
    clear(box);
}

void g_atomic_rc_box_release_full(gpointer box, GDestroyNotify clear) {
    __tsan_release(box);
    box_clear = clear;
    GLIB(g_atomic_rc_box_release_full)(box, acquire_and_clear);
}

#endif
