/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The errors of vmsnap: one domain, and codes that say who has to act, because that is what an exit code tells.
 */
#pragma once

#include <glib.h>

#define VMSNAP_ERROR (vmsnap_error_quark())

/**
 * VmsnapError:
 * @VMSNAP_ERROR_USAGE: the caller asked for something that makes no sense; nothing was begun
 * @VMSNAP_ERROR_SYSTEM: the system lacks a resource (a process, memory, a descriptor)
 * @VMSNAP_ERROR_FAILED: the source, the scratch directory or the mount point cannot be used
 * @VMSNAP_ERROR_BROKEN: the snapshot was lost while it was mounted
 *
 * Messages read "failed to <verb> '<object>': <reason>; <remedy>", one line, without a full stop.
 */
typedef enum {
    VMSNAP_ERROR_USAGE,
    VMSNAP_ERROR_SYSTEM,
    VMSNAP_ERROR_FAILED,
    VMSNAP_ERROR_BROKEN,
} VmsnapError;

static inline GQuark vmsnap_error_quark(void) {
    return g_quark_from_static_string("vmsnap-error");
}

/** Adds to what @error says, if somebody wants to know, what went wrong after it. */
static inline void vmsnap_error_append(GError **error, const GError *more) {
    if (!error || !*error)
        return;
    GError *first = *error;
    *error = g_error_new(first->domain, first->code, "%s; %s", first->message, more->message);
    g_error_free(first);
}
