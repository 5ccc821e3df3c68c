/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A snapshot of a QEMU without libvirt: block nodes that are put into it and taken out again (qmp_graph.h), over its
 * monitor. If old data cannot be kept, QEMU gives the snapshot up and not the guest's write.
 *
 * States, and what exists in each:
 *
 * - prepared: record, private runtime and scratch directories
 * - begun: and the nodes, the NBD server and its exports; the guest was frozen for the instant, if asked for
 * - open: and connections; only this state is seen by others. The monitor is free for others again
 * - started: and I/O threads, and the watch
 * - ended: record and directories, whose removal needs rights that the process may have given up
 *
 * A begin that fails goes back through the same release as an end. The record says before anything is put into QEMU
 * where that is, so that somebody else can take it out (vmsnap_qmp_recover).
 */
#pragma once

#include "nbd_pool.h"
#include "qmp_graph.h"
#include "vmsnap/record.h"

typedef struct VmsnapQmpWatch VmsnapQmpWatch;

typedef struct {
    VmsnapDisk base;
    VmsnapNbdPool *pool;    /* owned */
    VmsnapNbdPool *scratch; /* owned; tells what old data are in scratch */
    char *scratch_name;     /* owned; of the file in the scratch directory */
} VmsnapQmpDisk;

typedef struct {
    VmsnapSnapshot base;
    VmsnapQmpGraph *graph;
    VmsnapNbdServer *server;
    VmsnapIoThreads *threads;
    VmsnapQmpWatch *watch;
    VmsnapRecord *record;
    int record_fd;      /* not owned */
    gboolean published; /* others see the record */
    int scratch_fd;     /* owned; -1 before it is prepared */
    uint64_t scratch_reserve_bytes;
    uint64_t scratch_max_bytes;
    unsigned timeout_ms;
    VmsnapClearFunc clear; /* or NULL; the watch's */
    gpointer clear_data;
} VmsnapQmpSnapshot;

/* qmp_begin.c */

/** See vmsnap_snapshot_begin(). */
VmsnapSnapshot *vmsnap_qmp_begin(const VmsnapBeginOptions *options, GError **error);

/* qmp_end.c */

/**
 * vmsnap_qmp_snapshot_release:
 * @aborted: as for vmsnap_snapshot_end()
 *
 * Goes back from any state to one where only the record and the directories are left. Returns: FALSE with @error set if
 * more is left, and nobody is known to clear it soon.
 */
gboolean vmsnap_qmp_snapshot_release(VmsnapQmpSnapshot *snapshot, gboolean aborted, GError **error);

/** As VmsnapBackend.recover. */
gboolean vmsnap_qmp_recover(VmsnapRecord *record, GError **error);

/** What became of an attempt to take everything out of QEMU. */
typedef enum {
    VMSNAP_QMP_CLEARED,
    VMSNAP_QMP_GONE,   /* with QEMU */
    VMSNAP_QMP_DENIED, /* this process may not connect; its guardian may */
    VMSNAP_QMP_FAILED,
} VmsnapQmpClearing;

/**
 * vmsnap_qmp_clear:
 *
 * Takes out of QEMU what the record tells of. Blocks. Returns: FAILED or DENIED with @error set, or what has become of
 * it.
 */
VmsnapQmpClearing vmsnap_qmp_clear(const VmsnapRecord *record, unsigned timeout_ms, GError **error);

/* qmp_watch.c */

/**
 * vmsnap_qmp_watch_new:
 * @snapshot: open, with I/O threads that run; must outlive the watch
 *
 * Watches on a thread of its own whether QEMU still keeps the snapshot, and that scratch has room; ends what is lost,
 * for the guest's sake. Returns: NULL with @error set if there is no thread to be had.
 */
VmsnapQmpWatch *vmsnap_qmp_watch_new(VmsnapQmpSnapshot *snapshot, GError **error);

/** Stops, and waits for it; NULL-safe. */
void vmsnap_qmp_watch_free(VmsnapQmpWatch *watch);

/** Breaks the snapshot if QEMU has given it up. Blocks until QEMU has answered, or the connection's time is up. */
void vmsnap_qmp_check_kept(VmsnapQmpSnapshot *snapshot);

/* qmp_backend.c */

/** Gives the room of scratch files back that QEMU does not use any more. */
void vmsnap_qmp_remove_scratch(VmsnapQmpSnapshot *snapshot);

/** Frees a snapshot in any state but started. */
void vmsnap_qmp_snapshot_free(VmsnapSnapshot *base);
