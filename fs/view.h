/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A snapshot as files: its disks with their maps, and the tree that shows them. Knows nothing of FUSE. */
#pragma once

#include "tree.h"

/** Immutable from new to free; what it points to takes care of itself. */
typedef struct {
    VmsnapSnapshot *snapshot;
    GPtrArray *disks; /* of VmsnapDiskView, owned; in the order of the snapshot */
    VmsnapTree *tree;
} VmsnapView;

/**
 * vmsnap_view_new:
 * @snapshot: must outlive the view
 *
 * Builds the files, without a question to the backend.
 */
VmsnapView *vmsnap_view_new(VmsnapSnapshot *snapshot);

/** Frees the view of a snapshot that has ended; NULL-safe. */
void vmsnap_view_free(VmsnapView *view);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapView, vmsnap_view_free)

/** Begins to map the disks in the background. */
void vmsnap_view_start(VmsnapView *view);
