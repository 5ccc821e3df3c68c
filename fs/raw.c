/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The format "raw": a file is the disk as it is, with its zero extents as zero segments. */
#include "layout.h"

static void raw_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    VmsnapExtentKind kind = VMSNAP_EXTENT_DATA;
    uint64_t length = 0;
    gboolean known = vmsnap_extent_map_lookup(vmsnap_scan_get_map(layout->disk->scan), offset, &kind, &length);
    VmsnapSegmentKind known_kind = kind == VMSNAP_EXTENT_ZERO ? VMSNAP_SEGMENT_ZERO : VMSNAP_SEGMENT_DISK;
    *ret_segment = (VmsnapSegment){
        .kind = known ? known_kind : VMSNAP_SEGMENT_UNKNOWN,
        .length_bytes = length,
        .disk = layout->disk,
        .disk_offset = offset,
    };
}

static uint64_t raw_allocated_bytes(const VmsnapLayout *layout) {
    return layout->size_bytes - vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(layout->disk->scan));
}

static void raw_free(VmsnapLayout *layout) {
    g_free(layout);
}

static const VmsnapLayoutClass raw_class = {
    .segment_at = raw_segment_at,
    .allocated_bytes = raw_allocated_bytes,
    .free = raw_free,
};

VmsnapLayout *vmsnap_layout_new_raw(VmsnapDiskView *disk) {
    VmsnapLayout *layout = g_new0(VmsnapLayout, 1);
    layout->class = &raw_class;
    layout->size_bytes = disk->disk->size_bytes;
    layout->disk = disk;
    return layout;
}
