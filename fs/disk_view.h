/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All that fs/ keeps about one disk: where its data is, how it is read, and how much of it has been. */
#pragma once

#include "progress.h"
#include "scan.h"
#include "throttle.h"

/** Immutable from new to free; what it points to takes care of itself. */
typedef struct {
    VmsnapDisk *disk;
    VmsnapScan *scan;
    VmsnapProgress *progress;
    VmsnapThrottle *throttle; /* not owned; NULL for no limit */
} VmsnapDiskView;

/** @disk and @throttle (or NULL) must outlive the view. */
VmsnapDiskView *vmsnap_disk_view_new(VmsnapDisk *disk, VmsnapThrottle *throttle);

/** Frees the view of a disk whose snapshot has ended; NULL-safe. */
void vmsnap_disk_view_free(VmsnapDiskView *view);
