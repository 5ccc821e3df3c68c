/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A snapshot as files: its disks with their maps, and the tree that shows them. Knows nothing of FUSE. */
#pragma once

#include "format.h"
#include "map_wait.h"
#include "reader.h"
#include "tree.h"

typedef struct {
    uint64_t readahead_bytes;   /* memory for read-ahead, all readers together; 0 for no read-ahead */
    uint64_t speed_bytes_per_s; /* limit of disk reads, all together; 0 for none */
    VmsnapFormatOptions format;
    gboolean takes_commit; /* .vmsnap/commit takes the order to commit the checkpoint */
    gboolean release;      /* release what was handed out, of all disks that can be */
} VmsnapViewOptions;

/** Immutable once started, but for what is atomic; what it points to takes care of itself. */
typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapFormatOptions format;
    int has_read_error;   /* atomic; some reader was told that a read failed */
    int has_commit;       /* atomic; the order to commit the checkpoint was given */
    GPtrArray *disks;     /* of VmsnapDiskView, owned; in the order of the snapshot */
    GPtrArray *map_files; /* of VmsnapMapFile, owned */
    VmsnapTree *tree;
    VmsnapThrottle *throttle;        /* of all disks; owned */
    VmsnapReaderResources resources; /* for readers of the files; owned */
} VmsnapView;

/**
 * vmsnap_view_check:
 * @snapshot: as in vmsnap_format_check()
 *
 * Returns: FALSE with @error set if there can be no view of @snapshot.
 */
gboolean vmsnap_view_check(const VmsnapViewOptions *options, const VmsnapSnapshot *snapshot, GError **error);

/**
 * vmsnap_view_new:
 * @snapshot: must outlive the view
 *
 * Builds all files but those of the disks and the manifest, without a question to the backend.
 */
VmsnapView *vmsnap_view_new(VmsnapSnapshot *snapshot, const VmsnapViewOptions *options);

/** Frees the view of a snapshot that has ended; NULL-safe. */
void vmsnap_view_free(VmsnapView *view);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapView, vmsnap_view_free)

/** Notes that a reader was told of an error. Any thread. */
void vmsnap_view_note_read_error(VmsnapView *view);

/** Returns: whether all who read have got what they asked for. Any thread. */
gboolean vmsnap_view_was_read_well(const VmsnapView *view);

/** Returns: whether somebody has given the order to commit the checkpoint. Any thread. */
gboolean vmsnap_view_has_commit(const VmsnapView *view);

/** Answers what the throttle still holds back, for a snapshot that has ended. */
void vmsnap_view_stop(VmsnapView *view);

/**
 * vmsnap_view_start:
 * @interrupted: called with @user_data now and then, if this blocks
 *
 * Begins to map the disks, and adds their files and the manifest. Blocks until it is known what has changed since a
 * checkpoint, and if the format needs it, or disks are released, until they are mapped, which otherwise goes on in the
 * background. Once, before the first look at the tree. Returns: FALSE with @error set if that failed; there may still
 * be questions under way then, as after a success: the snapshot ends before the view is freed.
 */
gboolean vmsnap_view_start(VmsnapView *view, VmsnapInterruptedFunc interrupted, gpointer user_data, GError **error);
