/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A snapshot of a libvirt domain is a pull-mode backup job: QEMU exports the instant over NBD and copies old data to
 * scratch files before the guest overwrites it.
 *
 * States, and what exists in each:
 *
 * - prepared: record, private runtime and scratch directories
 * - begun: and the job, its socket and its scratch files, and the checkpoint; the guest was frozen for that moment, if
 *   asked for
 * - open: and connections, configuration files; only this state is seen by others
 * - started: and I/O threads, and the watch
 * - ended: record and directories, whose removal needs rights that the process may have given up
 *
 * A begin that fails goes back through the same release as an end. A NULL field or an unset flag is a step that was
 * never tried; what was tried is undone even if it failed, since libvirt may fail to tell that it has begun. The record
 * says before each step what may have to be undone, so that somebody else can do it after a crash
 * (vmsnap_libvirt_recover).
 */
#pragma once

#include "domain.h"
#include "libvirt_domain.h"
#include "libvirt_quiesce.h"
#include "libvirt_watch.h"
#include "nbd_pool.h"

typedef struct {
    VmsnapDisk base;
    VmsnapNbdPool *pool; /* owned */
    char *scratch_name;  /* owned; of the file in the scratch directory */
} VmsnapLibvirtDisk;

typedef struct {
    VmsnapSnapshot base;
    virConnectPtr connection;
    virDomainPtr domain;
    VmsnapDomain *facts;
    VmsnapIoThreads *threads;
    VmsnapNbdServer *server;
    VmsnapQuiesce *quiesce;
    VmsnapLibvirtWatch *watch;
    VmsnapRecord *record;
    int record_fd;      /* not owned */
    gboolean published; /* others see the record */
    int scratch_fd;     /* owned; -1 before it is prepared */
    uint64_t scratch_reserve_bytes;
    uint64_t scratch_max_bytes;
    unsigned keep_checkpoints;
    unsigned timeout_ms;
} VmsnapLibvirtSnapshot;

/* libvirt_begin.c */

/** See vmsnap_snapshot_begin(). */
VmsnapSnapshot *vmsnap_libvirt_begin(const VmsnapBeginOptions *options, GError **error);

/* libvirt_end.c */

/**
 * vmsnap_libvirt_release:
 * @aborted: as for vmsnap_snapshot_end(), also @commit
 *
 * Goes back from any state to one where only the record and the directories are left, which need rights to remove that
 * this process may have given up. Returns: FALSE with @error set if more is left.
 */
gboolean vmsnap_libvirt_release(VmsnapLibvirtSnapshot *snapshot, gboolean aborted, gboolean commit, GError **error);

/** As VmsnapBackend.recover. */
gboolean vmsnap_libvirt_recover(VmsnapRecord *record, GError **error);

/** Returns: the job that @record tells of. Strings stay the record's. */
VmsnapJob vmsnap_libvirt_job_of(const VmsnapRecord *record, virConnectPtr connection, unsigned timeout_ms);

/** Notes in the record that the guest is not frozen any more. */
void vmsnap_libvirt_clear_frozen(VmsnapLibvirtSnapshot *snapshot);

/* libvirt_backend.c */

/** Gives the room of scratch files back whose job has ended. */
void vmsnap_libvirt_remove_scratch(VmsnapLibvirtSnapshot *snapshot);

/** Frees a snapshot in any state but started. */
void vmsnap_libvirt_free(VmsnapSnapshot *base);
