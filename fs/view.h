/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A snapshot as files: its disks with their maps, and the tree that shows them. Knows nothing of FUSE. */
#pragma once

#include "reader.h"
#include "tree.h"

typedef struct {
    uint64_t readahead_bytes;   /* memory for read-ahead, all readers together; 0 for no read-ahead */
    uint64_t speed_bytes_per_s; /* limit of disk reads, all together; 0 for none */
} VmsnapViewOptions;

/** Immutable from new to free; what it points to takes care of itself. */
typedef struct {
    VmsnapSnapshot *snapshot;
    GPtrArray *disks; /* of VmsnapDiskView, owned; in the order of the snapshot */
    VmsnapTree *tree;
    VmsnapThrottle *throttle;        /* of all disks; owned */
    VmsnapReaderResources resources; /* for readers of the files; owned */
} VmsnapView;

/**
 * vmsnap_view_new:
 * @snapshot: must outlive the view
 *
 * Builds the files, without a question to the backend.
 */
VmsnapView *vmsnap_view_new(VmsnapSnapshot *snapshot, const VmsnapViewOptions *options);

/** Frees the view of a snapshot that has ended; NULL-safe. */
void vmsnap_view_free(VmsnapView *view);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapView, vmsnap_view_free)

/** Answers what the throttle still holds back, for a snapshot that has ended. */
void vmsnap_view_stop(VmsnapView *view);

/** Begins to map the disks in the background. */
void vmsnap_view_start(VmsnapView *view);
