/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The format "raw": a file is the disk as it is, with its zero extents as zero segments. Where only changes are asked
 * for, it is what the list beside it says: what is the same is a hole, and zeroes that have changed are none.
 */
#include "block_map.h"
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

static void changed_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    uint64_t length_bytes;
    VmsnapRangeKind kind = vmsnap_block_map_find(layout->disk->shown, offset, &length_bytes);
    if (kind == VMSNAP_RANGE_SAME)
        *ret_segment = (VmsnapSegment){.kind = VMSNAP_SEGMENT_ZERO, .length_bytes = length_bytes};
    else
        vmsnap_segment_init_disk(ret_segment, layout->disk, offset, length_bytes);
    if (kind != VMSNAP_RANGE_SAME && ret_segment->kind == VMSNAP_SEGMENT_ZERO)
        ret_segment->kind = VMSNAP_SEGMENT_COMPUTED;
}

static void changed_compute(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer) {
    (void)layout;
    (void)offset;
    memset(buffer, 0, length);
}

static uint64_t changed_allocated_bytes(const VmsnapLayout *layout) {
    return layout->size_bytes - vmsnap_block_map_count(layout->disk->shown, VMSNAP_RANGE_SAME);
}

static const VmsnapLayoutClass changed_class = {
    .segment_at = changed_segment_at,
    .compute = changed_compute,
    .allocated_bytes = changed_allocated_bytes,
    .free = raw_free,
};

static VmsnapLayout *raw_layout_new(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot,
                                    VmsnapDiskView *const *disks, guint n_disks) {
    (void)snapshot;
    g_assert(n_disks == 1);
    VmsnapLayout *layout = vmsnap_layout_new_raw(disks[0]);
    if (options->only_changed && disks[0]->shown)
        layout->class = &changed_class;
    return layout;
}

static const char *raw_tag(const VmsnapFormatOptions *options, const VmsnapDisk *disk) {
    return options->only_changed && disk->since ? "changed" : NULL;
}

const VmsnapFormat vmsnap_format_raw = {
    .name = "raw",
    .shows_changes = TRUE,
    .tag = raw_tag,
    .layout_new = raw_layout_new,
};
