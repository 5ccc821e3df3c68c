/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * All that fs/ keeps about one disk: where its data is, what of it has changed, how it is read, how much of it has
 * been, and what of that is given back.
 */
#pragma once

#include "progress.h"
#include "release.h"
#include "scan.h"
#include "throttle.h"

typedef struct VmsnapBlockMap VmsnapBlockMap;

/** Immutable once its file is there; what it points to takes care of itself. */
typedef struct {
    VmsnapDisk *disk;
    VmsnapScan *scan;
    VmsnapScan *changes; /* NULL where nobody knows what has changed */
    VmsnapProgress *progress;
    VmsnapRelease *release;   /* NULL where what was read is kept */
    VmsnapThrottle *throttle; /* not owned; NULL for no limit */
    VmsnapBlockMap *shown;    /* what its file shows, where that is only changes; or NULL; owned */
    gboolean only_changes;    /* is set earlier than that */
} VmsnapDiskView;

/** @disk and @throttle (or NULL) must outlive the view. */
VmsnapDiskView *vmsnap_disk_view_new(VmsnapDisk *disk, VmsnapThrottle *throttle);

/** From now on what is handed out is released, if the disk can be. The map of its content is complete. */
void vmsnap_disk_view_begin_release(VmsnapDiskView *view);

/** Returns: (transfer none): the map of what has changed, or NULL. */
const VmsnapExtentMap *vmsnap_disk_view_get_changes(const VmsnapDiskView *view);

/** Returns: how much may have changed; all of a disk where nobody knows. Exact when the map of changes is complete. */
uint64_t vmsnap_disk_view_get_dirty_bytes(const VmsnapDiskView *view);

/** Frees the view of a disk whose snapshot has ended; NULL-safe. */
void vmsnap_disk_view_free(VmsnapDiskView *view);
