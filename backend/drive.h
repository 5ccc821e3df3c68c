/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a machine or server has that may become a disk of a snapshot, and which of it does. Pure: no source is asked. */
#pragma once

#include "vmsnap/backend.h"

typedef enum {
    VMSNAP_MEDIA_WRITABLE, /* can be backed up */
    VMSNAP_MEDIA_LEFT_OUT, /* not worth it or not possible, and harmless to leave out: reason says why */
    VMSNAP_MEDIA_REFUSED,  /* holds data that vmsnap cannot back up: reason says why */
} VmsnapMedia;

/**
 * Debian 12's QEMU fails an assertion and ends, guest and all, when a connection to an export is closed by the client
 * and the disk is served by an iothread (nbd_blockdev_client_closed). From 9.0 on, clients are closed by the main
 * thread.
 */
#define VMSNAP_QEMU_IOTHREAD_MAJOR 9
#define VMSNAP_DRIVE_IOTHREAD_REASON                                                                                   \
    "has an iothread, so that QEMU before 9.0 may end, and the guest with it, when a connection to the disk is cut"

/** One drive. A backend that knows more embeds it at the beginning of its own. */
typedef struct {
    char *name;   /* by which people choose it, and its file is called: "vda" */
    char *source; /* path, device or URI-like text, for people; NULL where there is none */
    VmsnapMedia media;
    const char *reason; /* static, goes on after the name: "is a CD-ROM"; NULL for writable media */
} VmsnapDrive;

/** Frees what @drive points to, not itself. */
void vmsnap_drive_clear(VmsnapDrive *drive);

/** Returns: whether @name, which may be NULL, can be that of a drive: it becomes the name of a file. */
gboolean vmsnap_drive_name_is_safe(const char *name);

/**
 * vmsnap_drives_select:
 * @drives: (element-type VmsnapDrive): all that there are
 * @owner: whose they are, as errors name it: "domain 'vm1'"
 * @only: names of the drives that are wanted, or NULL for all that can be backed up
 * @exclude: names that are not wanted, or NULL
 * @ret_left_out: gets every drive that is not selected, with the reason
 *
 * Chooses what to back up. Returns: (transfer container): of drives that @drives owns, in their order, at least one; or
 * NULL with @error set, which names the drive that stands in the way.
 */
GPtrArray *vmsnap_drives_select(const GPtrArray *drives, const char *owner, const char *const *only,
                                const char *const *exclude, VmsnapSnapshot *ret_left_out, GError **error);
