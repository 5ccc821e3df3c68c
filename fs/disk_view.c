/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The companions of a disk, made and freed together. */
#include "disk_view.h"

#include "block_map.h"

/*
 * A 16 TiB disk in 64 KiB pieces by turns data and zero would want 1 GiB; past this bound small holes are data, and
 * what lies between changes counts as changed.
 */
#define EXTENT_MEMORY_BYTES ((size_t)48 << 20)

VmsnapDiskView *vmsnap_disk_view_new(VmsnapDisk *disk, VmsnapThrottle *throttle) {
    VmsnapDiskView *view = g_new0(VmsnapDiskView, 1);
    view->disk = disk;
    view->throttle = throttle;
    view->scan = vmsnap_scan_new(disk, VMSNAP_EXTENTS_OF_CONTENT, EXTENT_MEMORY_BYTES);
    if (disk->since)
        view->changes = vmsnap_scan_new(disk, VMSNAP_EXTENTS_OF_CHANGES, EXTENT_MEMORY_BYTES);
    view->progress = vmsnap_progress_new(disk->size_bytes);
    return view;
}

void vmsnap_disk_view_free(VmsnapDiskView *view) {
    if (!view)
        return;
    vmsnap_scan_free(view->scan);
    vmsnap_scan_free(view->changes);
    vmsnap_block_map_free(view->shown);
    vmsnap_progress_free(view->progress);
    vmsnap_release_free(view->release);
    g_free(view);
}

void vmsnap_disk_view_begin_release(VmsnapDiskView *view) {
    g_assert(!view->release && vmsnap_scan_is_complete(view->scan));
    if (view->disk->can_release)
        view->release = vmsnap_release_new(view->disk, vmsnap_scan_get_map(view->scan));
}

const VmsnapExtentMap *vmsnap_disk_view_get_changes(const VmsnapDiskView *view) {
    return view->changes ? vmsnap_scan_get_map(view->changes) : NULL;
}

uint64_t vmsnap_disk_view_get_dirty_bytes(const VmsnapDiskView *view) {
    const VmsnapExtentMap *changes = vmsnap_disk_view_get_changes(view);
    return view->disk->size_bytes - (changes ? vmsnap_extent_map_get_zero_bytes(changes) : 0);
}
