/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The format "raw": a file is the disk as it is, with its zero extents as zero segments. */
#include "format.h"

static void raw_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    vmsnap_segment_init_disk(ret_segment, layout->disk, offset, layout->size_bytes - offset);
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

static VmsnapLayout *raw_layout_new(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot,
                                    VmsnapDiskView *const *disks, guint n_disks) {
    (void)options;
    (void)snapshot;
    g_assert(n_disks == 1);
    return vmsnap_layout_new_raw(disks[0]);
}

const VmsnapFormat vmsnap_format_raw = {
    .name = "raw",
    .layout_new = raw_layout_new,
};
