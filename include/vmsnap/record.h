/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The owner record: a file that says of one snapshot who holds it and what was made for it. It stands beside, not in,
 * the directory of QEMU's user, is written before anything is begun, and goes last.
 *
 * Its holders, the daemon and its guardian, share one lock on the file (flock), so whether a record is alive is asked
 * of the kernel and never guessed from a process id. A record that nobody holds is dead: what it describes may be
 * cleared by whoever takes the lock. Whoever opened a record before the end reads the outcome from it afterwards,
 * although its name is gone by then.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

/** What a record says. Owned strings; NULL where unknown. */
typedef struct {
    char *uuid;    /* of the snapshot */
    char *backend; /* name of the backend that knows how to end it */
    char *machine;
    char *machine_uuid;
    char *source;      /* as it may be named again, where that is not the machine */
    char *connect_uri; /* how to reach the machine: libvirt's URI, or the path of QEMU's monitor */
    char *agent;       /* path of the guest agent's socket, where libvirt does not know that */
    char *graph;       /* the backend's: where in QEMU the snapshot is */
    char *mount_point;
    char *socket;      /* the job's NBD socket */
    char *runtime_dir; /* private directory of the socket */
    char *scratch_dir; /* private directory of the scratch files */
    pid_t pid;         /* the daemon; for people, and to wait for */
    int timeout_ms;    /* for libvirt to end the job */
    gboolean job;      /* it may run: TRUE from just before begin until it is known to be gone */
    gboolean frozen;   /* filesystems in the guest may be frozen by us */
    gboolean resume;   /* the guest was not paused by an I/O error before, so that it may be resumed if it is */
    char *checkpoint;  /* that may exist and is not settled: neither committed nor deleted */
    char *commit;      /* the description that commits it; NULL: it is to be deleted */
    char *outcome;     /* NULL until the end */
    char *reason;      /* of an outcome that is not well */
} VmsnapRecord;

#define VMSNAP_OUTCOME_COMPLETE "complete"
#define VMSNAP_OUTCOME_ABORTED "aborted"
#define VMSNAP_OUTCOME_BROKEN "broken"           /* the snapshot was lost */
#define VMSNAP_OUTCOME_UNCOMMITTED "uncommitted" /* the snapshot was whole, but its checkpoint could not be kept */
#define VMSNAP_OUTCOME_LEFTOVER "leftover"       /* the snapshot was whole, but something could not be removed */

/** Returns: whether there is something in the machine, or may be, that has to be undone or settled. */
static inline gboolean vmsnap_record_has_left(const VmsnapRecord *record) {
    return record->job || record->frozen || record->checkpoint;
}

VmsnapRecord *vmsnap_record_new(void);
void vmsnap_record_free(VmsnapRecord *record);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapRecord, vmsnap_record_free)

/**
 * vmsnap_record_open:
 * @uuid: of a snapshot that is to begin
 *
 * Makes the file of a record and locks it. It has no content, and nobody finds it before vmsnap_record_publish().
 * Returns: its descriptor, which holds the lock, as do copies of it in other processes; or -1 with @error set.
 */
int vmsnap_record_open(const char *uuid, GError **error);

/**
 * vmsnap_record_publish:
 * @fd: from vmsnap_record_open()
 * @record: with at least its uuid, the same
 *
 * Writes the record where others find it. Fails if there is a living record of the same machine: of those who begin at
 * the same time, one comes further, and the others need not wait for libvirt to refuse them.
 */
gboolean vmsnap_record_publish(int fd, const VmsnapRecord *record, GError **error);

/** Writes what has changed. Returns: FALSE, after a warning, if it cannot. */
gboolean vmsnap_record_update(int fd, const VmsnapRecord *record);

/** Returns: (transfer full): what a record's file says, or NULL with @error set. */
VmsnapRecord *vmsnap_record_read(int fd, GError **error);

/** Takes away the file of a record, published or not. The descriptor stays, and the lock with it. */
void vmsnap_record_remove(const char *uuid);

/** Returns: whether there is a record of a snapshot, published or not. What belongs to none is nobody's any more. */
gboolean vmsnap_record_is_known(const char *uuid);

/** Returns: whether a record has been published, so that it says something. */
gboolean vmsnap_record_is_published(int fd);

/** Returns: whether the file of a record is still there. */
gboolean vmsnap_record_exists(int fd);

/**
 * vmsnap_record_machine_is_free:
 * @verb: what cannot be done otherwise, for the error
 * @machine: how people name it
 *
 * Returns: FALSE with @error set if there is a living record of the machine.
 */
gboolean vmsnap_record_machine_is_free(const char *verb, const char *machine, const char *machine_uuid, GError **error);

/**
 * vmsnap_record_find_by_mount_point:
 * @uuid: of the snapshot that is mounted there now, or NULL: after a lazy unmount, there may be several
 * @ret_fd: a descriptor of the record, belongs to the caller; -1 if there is none
 *
 * Returns: (transfer full): the record of a mount point, a living one rather than a dead one, or NULL.
 */
VmsnapRecord *vmsnap_record_find_by_mount_point(const char *mount_point, const char *uuid, int *ret_fd);

/** Returns: how many living records there are of a mount point: more than one after a lazy unmount. */
guint vmsnap_record_count_by_mount_point(const char *mount_point);

/**
 * vmsnap_record_find_by_socket:
 * @ret_alive: whether its holder lives
 *
 * Returns: (transfer full): the record whose job uses @socket, or NULL.
 */
VmsnapRecord *vmsnap_record_find_by_socket(const char *socket, gboolean *ret_alive);

/** Returns: whether somebody holds the record of @fd, a descriptor that does not hold it itself. */
gboolean vmsnap_record_is_held(int fd);

/**
 * VmsnapRecordFunc:
 * @fd: holds the record's lock for the time of the call
 *
 * Returns: FALSE with @error set if it failed; the others are visited nevertheless.
 */
typedef gboolean (*VmsnapRecordFunc)(int fd, VmsnapRecord *record, gpointer user_data, GError **error);

/**
 * vmsnap_record_visit_dead:
 * @machine: only records of this machine, by name or UUID; or NULL for all
 * @mount_point: and records of this mount point, too; or NULL
 *
 * Takes each record that nobody holds, calls @visit, and lets go of it. Returns: FALSE with the first error set if
 * one failed.
 */
gboolean vmsnap_record_visit_dead(const char *machine, const char *mount_point, VmsnapRecordFunc visit,
                                  gpointer user_data, GError **error);
