/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The owner record: a file that says of one snapshot who holds it and what was made for it. It stands beside, not in,
 * the directory of QEMU's user, is written before anything is begun, and goes last.
 *
 * The holder keeps the file locked (flock) for as long as it lives, so whether a record is alive is asked of the kernel
 * and never guessed from a process id. Whoever opened a record before the end reads the outcome from it afterwards,
 * although its name is gone by then.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

/** What a record says. Owned strings; NULL where unknown. */
typedef struct {
    char *uuid; /* of the snapshot */
    char *machine;
    char *machine_uuid;
    char *connect_uri; /* libvirt's URI for the machine */
    char *mount_point;
    char *socket;      /* the job's NBD socket */
    char *runtime_dir; /* private directory of the socket */
    char *scratch_dir; /* private directory of the scratch files */
    pid_t pid;         /* for people, and to wait for */
    int timeout_ms;    /* for libvirt to end the job */
    char *outcome;     /* NULL while alive */
    char *reason;      /* of an outcome that is not well */
} VmsnapRecord;

#define VMSNAP_OUTCOME_COMPLETE "complete"
#define VMSNAP_OUTCOME_ABORTED "aborted"
#define VMSNAP_OUTCOME_BROKEN "broken"     /* the snapshot was lost */
#define VMSNAP_OUTCOME_LEFTOVER "leftover" /* the snapshot was whole, but something could not be removed */

VmsnapRecord *vmsnap_record_new(void);
void vmsnap_record_free(VmsnapRecord *record);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapRecord, vmsnap_record_free)

/**
 * vmsnap_record_write:
 * @record: with at least its uuid
 *
 * Makes the record's file and locks it. Fails if there is a living record of the same machine: of those who begin at
 * the same time, one comes further, and the others need not wait for libvirt to refuse them.
 * Returns: its descriptor, which holds the lock and belongs to the caller; or -1.
 */
int vmsnap_record_write(const VmsnapRecord *record, GError **error);

/**
 * vmsnap_record_end:
 * @fd: from vmsnap_record_write(), is consumed
 * @record: with its outcome
 * @keep: whether something is left that the record must go on to describe
 *
 * Notes the outcome for those who have the file open, removes its name unless @keep, and lets go of the lock, in this
 * order.
 */
void vmsnap_record_end(int fd, const VmsnapRecord *record, gboolean keep);

/** Returns: FALSE with @error set if there is a living record of the machine, which is named @machine to people. */
gboolean vmsnap_record_machine_is_free(const char *machine, const char *machine_uuid, GError **error);

/**
 * vmsnap_record_find_by_mount_point:
 * @ret_fd: a descriptor of the record, belongs to the caller; -1 if there is none
 *
 * Returns: (transfer full): the living record of a mount point, or NULL.
 */
VmsnapRecord *vmsnap_record_find_by_mount_point(const char *mount_point, int *ret_fd);

/**
 * vmsnap_record_find_by_socket:
 * @ret_alive: whether its holder lives
 *
 * Returns: (transfer full): the record whose job uses @socket, or NULL.
 */
VmsnapRecord *vmsnap_record_find_by_socket(const char *socket, gboolean *ret_alive);

/**
 * vmsnap_record_wait:
 * @fd: from vmsnap_record_find_by_mount_point(); stays the caller's
 *
 * Waits until the holder has ended. Returns: (transfer full): the record with its outcome, which is NULL if the holder
 * died before it could note one; or NULL with @error set.
 */
VmsnapRecord *vmsnap_record_wait(int fd, GError **error);
