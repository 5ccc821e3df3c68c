/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A few threads that each run a main loop, for sources that do a snapshot's input and output. */
#pragma once

#include <glib.h>

typedef struct VmsnapIoThreads VmsnapIoThreads;

/** Makes what sources can be attached to. No thread runs before vmsnap_io_threads_start(). */
VmsnapIoThreads *vmsnap_io_threads_new(guint n_threads);

/**
 * vmsnap_io_threads_start:
 *
 * Starts the threads, unless they have been started, or stopped. Called by one thread at a time, as stop. Returns:
 * FALSE with @error set if the system has none left; some may run then.
 */
gboolean vmsnap_io_threads_start(VmsnapIoThreads *threads, GError **error);

/**
 * vmsnap_io_threads_attach:
 *
 * Attaches @source to the next thread in turn; the thread takes a reference of its own.
 * Returns: (transfer none): that thread's context, which lives as long as @threads.
 */
GMainContext *vmsnap_io_threads_attach(VmsnapIoThreads *threads, GSource *source);

/** Stops and joins the threads: when this returns, none of the sources runs any more. Idempotent, and
 * possible without a start. */
void vmsnap_io_threads_stop(VmsnapIoThreads *threads);

/** Stops the threads and frees them; NULL-safe. */
void vmsnap_io_threads_free(VmsnapIoThreads *threads);
