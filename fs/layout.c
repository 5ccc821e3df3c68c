/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The checked way into a layout, and the layout of files that are held in memory. */
#include "layout.h"

typedef struct {
    VmsnapLayout base;
    GBytes *content;
} MemoryLayout;

static void memory_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    const MemoryLayout *memory = (const MemoryLayout *)layout;
    const uint8_t *bytes = g_bytes_get_data(memory->content, NULL);
    *ret_segment = (VmsnapSegment){
        .kind = VMSNAP_SEGMENT_MEMORY,
        .length_bytes = layout->size_bytes - offset,
        .memory = bytes + offset,
    };
}

static uint64_t memory_allocated_bytes(const VmsnapLayout *layout) {
    return layout->size_bytes;
}

static void memory_free(VmsnapLayout *layout) {
    MemoryLayout *memory = (MemoryLayout *)layout;
    g_bytes_unref(memory->content);
    g_free(memory);
}

static const VmsnapLayoutClass memory_class = {
    .segment_at = memory_segment_at,
    .allocated_bytes = memory_allocated_bytes,
    .free = memory_free,
};

VmsnapLayout *vmsnap_layout_new_memory(GBytes *content) {
    MemoryLayout *memory = g_new0(MemoryLayout, 1);
    memory->base.class = &memory_class;
    memory->base.size_bytes = g_bytes_get_size(content);
    memory->content = g_bytes_ref(content);
    return &memory->base;
}

void vmsnap_segment_init_disk(VmsnapSegment *segment, VmsnapDiskView *disk, uint64_t offset, uint64_t length_bytes) {
    VmsnapExtentKind kind = VMSNAP_EXTENT_DATA;
    uint64_t run_bytes = 0;
    gboolean known = vmsnap_extent_map_lookup(vmsnap_scan_get_map(disk->scan), offset, &kind, &run_bytes);
    VmsnapSegmentKind known_kind = kind == VMSNAP_EXTENT_ZERO ? VMSNAP_SEGMENT_ZERO : VMSNAP_SEGMENT_DISK;
    *segment = (VmsnapSegment){
        .kind = known ? known_kind : VMSNAP_SEGMENT_UNKNOWN,
        .length_bytes = MIN(run_bytes, length_bytes),
        .disk = disk,
        .disk_offset = offset,
    };
}

void vmsnap_layout_free(VmsnapLayout *layout) {
    if (layout)
        layout->class->free(layout);
}

void vmsnap_layout_get_segment(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    g_assert(offset < layout->size_bytes);
    layout->class->segment_at(layout, offset, ret_segment);
    g_assert(ret_segment->length_bytes > 0 && ret_segment->length_bytes <= layout->size_bytes - offset);
}

void vmsnap_layout_compute(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer) {
    layout->class->compute(layout, offset, length, buffer);
}

uint64_t vmsnap_layout_get_allocated_bytes(const VmsnapLayout *layout) {
    return layout->class->allocated_bytes(layout);
}
