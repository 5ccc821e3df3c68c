/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All that fs/ keeps about one disk: where its data is, and how much of it has been read. */
#pragma once

#include "progress.h"
#include "scan.h"

/** Immutable from new to free; what it points to takes care of itself. */
typedef struct {
    VmsnapDisk *disk;
    VmsnapScan *scan;
    VmsnapProgress *progress;
} VmsnapDiskView;

/** @disk must outlive the view. */
VmsnapDiskView *vmsnap_disk_view_new(VmsnapDisk *disk);

/** Frees the view of a disk whose snapshot has ended; NULL-safe. */
void vmsnap_disk_view_free(VmsnapDiskView *view);
