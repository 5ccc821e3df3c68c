/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Threads with a GMainLoop each. The caller has blocked the signals that are not for them. */
#include "io_threads.h"

#include "vmsnap/thread.h"

typedef struct {
    GMainContext *context;
    GMainLoop *loop;
    GThread *thread; /* NULL before it is started, and once stopped */
} IoThread;

struct VmsnapIoThreads {
    guint n_threads;
    guint next;       /* used by the one thread that attaches */
    gboolean started; /* used by the one thread that starts and stops, and so as not to start again after a stop */
    IoThread threads[];
};

static gpointer io_thread_run(gpointer data) {
    IoThread *thread = data;
    g_main_context_push_thread_default(thread->context);
    g_main_loop_run(thread->loop);
    g_main_context_pop_thread_default(thread->context);
    return NULL;
}

VmsnapIoThreads *vmsnap_io_threads_new(guint n_threads) {
    VmsnapIoThreads *threads = g_malloc0(sizeof *threads + n_threads * sizeof threads->threads[0]);
    threads->n_threads = n_threads;
    for (guint i = 0; i < n_threads; i++) {
        IoThread *thread = &threads->threads[i];
        thread->context = g_main_context_new();
        thread->loop = g_main_loop_new(thread->context, FALSE);
    }
    return threads;
}

gboolean vmsnap_io_threads_start(VmsnapIoThreads *threads, GError **error) {
    if (threads->started)
        return TRUE;
    threads->started = TRUE;
    for (guint i = 0; i < threads->n_threads; i++) {
        IoThread *thread = &threads->threads[i];
        thread->thread = vmsnap_thread_try_new("vmsnap-io", io_thread_run, thread, error);
        if (!thread->thread)
            return FALSE;
    }
    return TRUE;
}

GMainContext *vmsnap_io_threads_attach(VmsnapIoThreads *threads, GSource *source) {
    GMainContext *context = threads->threads[threads->next].context;
    (void)g_source_attach(source, context);
    threads->next = (threads->next + 1) % threads->n_threads;
    return context;
}

static gboolean loop_quit(gpointer data) {
    g_main_loop_quit(data);
    return G_SOURCE_REMOVE;
}

/* g_main_loop_quit() is lost on a loop that does not run yet; a source in its context is not. */
static void io_thread_stop(IoThread *thread) {
    g_autoptr(GSource) source = g_idle_source_new();
    g_source_set_priority(source, G_PRIORITY_HIGH);
    g_source_set_callback(source, loop_quit, thread->loop, NULL);
    (void)g_source_attach(source, thread->context);
    (void)g_thread_join(g_steal_pointer(&thread->thread));
}

void vmsnap_io_threads_stop(VmsnapIoThreads *threads) {
    threads->started = TRUE;
    for (guint i = 0; i < threads->n_threads; i++)
        if (threads->threads[i].thread)
            io_thread_stop(&threads->threads[i]);
}

void vmsnap_io_threads_free(VmsnapIoThreads *threads) {
    if (!threads)
        return;
    vmsnap_io_threads_stop(threads);
    for (guint i = 0; i < threads->n_threads; i++) {
        g_main_loop_unref(threads->threads[i].loop);
        g_main_context_unref(threads->threads[i].context);
    }
    g_free(threads);
}
