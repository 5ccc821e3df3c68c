/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Threads that the system may refuse: g_thread_new() ends the process then, and who began a snapshot must not. */
#pragma once

#include "vmsnap/error.h"

/** Returns: (transfer full): the thread, or NULL with @error set. */
static inline GThread *vmsnap_thread_try_new(const char *name, GThreadFunc run, gpointer data, GError **error) {
    g_autoptr(GError) thread_error = NULL;
    GThread *thread = g_thread_try_new(name, run, data, &thread_error);
    if (!thread)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to start the thread '%s': %s; see 'ulimit -u'",
                    name, thread_error->message);
    return thread;
}
