/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Watches over a running backup job, for the guest's sake: libvirt's jobs let the guest's write fail when there is no
 * room for old data. So the job is ended before that, and if the guest has been paused nevertheless, it is resumed.
 */
#pragma once

#include "libvirt_domain.h"
#include "vmsnap/backend.h"

typedef struct VmsnapLibvirtWatch VmsnapLibvirtWatch;

typedef struct {
    VmsnapJob job;                      /* its strings must outlive the watch; its connection is not used */
    uint64_t reserve_bytes;             /* what scratch must leave free */
    uint64_t max_bytes;                 /* what scratch may use, or 0 for no limit */
    void (*settle)(gpointer user_data); /* called at each look, on the watch's thread */
    void (*ended)(gpointer user_data);  /* called when it has ended the job, on the same thread */
    gpointer user_data;
} VmsnapLibvirtWatchOptions;

/**
 * vmsnap_libvirt_watch_new:
 * @snapshot: must outlive the watch
 *
 * Starts to watch, on a thread and a connection of its own. Returns: NULL with @error set if there is no thread to be
 * had.
 */
VmsnapLibvirtWatch *vmsnap_libvirt_watch_new(VmsnapSnapshot *snapshot, const VmsnapLibvirtWatchOptions *options,
                                             GError **error);

/** Stops, and waits for it; NULL-safe. */
void vmsnap_libvirt_watch_free(VmsnapLibvirtWatch *watch);
