/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a file in the mount is made of: an ordered, gapless list of segments, found by offset. Reading, SEEK_DATA and
 * SEEK_HOLE and the block count come from the segments alone, so that a format is no more than a layout.
 */
#pragma once

#include "disk_view.h"

typedef enum {
    VMSNAP_SEGMENT_MEMORY,   /* bytes held in memory */
    VMSNAP_SEGMENT_COMPUTED, /* bytes that the layout computes each time */
    VMSNAP_SEGMENT_ZERO,     /* zeroes that are stored nowhere */
    VMSNAP_SEGMENT_DISK,     /* a range of a disk */
    VMSNAP_SEGMENT_UNKNOWN,  /* a range of a disk whose extents must be resolved first */
} VmsnapSegmentKind;

/** A run of a file from the offset on that was asked for. */
typedef struct {
    VmsnapSegmentKind kind;
    uint64_t length_bytes;
    const uint8_t *memory; /* MEMORY: the bytes, owned by the layout */
    VmsnapDiskView *disk;  /* DISK, UNKNOWN: of which disk */
    uint64_t disk_offset;  /* DISK, UNKNOWN: where on it */
} VmsnapSegment;

typedef struct VmsnapLayout VmsnapLayout;

/**
 * VmsnapLayoutClass: what a format implements. All of it may be called from any thread, and does not block.
 * @segment_at: gives the segment at an offset inside the file, which reaches at most to its end
 * @compute: gives the bytes of a range of a COMPUTED segment; may be NULL where there are none
 * @allocated_bytes: how much of the file is not known to be zero
 * @free: frees the layout
 */
typedef struct {
    void (*segment_at)(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment);
    void (*compute)(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer);
    uint64_t (*allocated_bytes)(const VmsnapLayout *layout);
    void (*free)(VmsnapLayout *layout);
} VmsnapLayoutClass;

/** The base of every layout. Immutable. */
struct VmsnapLayout {
    const VmsnapLayoutClass *class;
    uint64_t size_bytes;
    VmsnapDiskView *disk; /* whose scan must be complete before allocated_bytes() is exact, or NULL */
};

/** A file that is @content; takes a reference. */
VmsnapLayout *vmsnap_layout_new_memory(GBytes *content);

/**
 * vmsnap_layout_new_raw:
 * @disk: what the file shows as it is; must outlive the layout
 */
VmsnapLayout *vmsnap_layout_new_raw(VmsnapDiskView *disk);

/**
 * vmsnap_segment_init_disk:
 * @length_bytes: at least 1; the range must lie inside the disk
 *
 * For layouts: makes a segment of the beginning of a range of a disk, as far as it is of one kind.
 */
void vmsnap_segment_init_disk(VmsnapSegment *segment, VmsnapDiskView *disk, uint64_t offset, uint64_t length_bytes);

/** NULL-safe. */
void vmsnap_layout_free(VmsnapLayout *layout);

/**
 * vmsnap_layout_get_segment:
 * @offset: less than the size
 * @ret_segment: the segment from @offset on, at least one byte long
 */
void vmsnap_layout_get_segment(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment);

/**
 * vmsnap_layout_compute:
 * @offset: the range must lie inside a COMPUTED segment
 */
void vmsnap_layout_compute(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer);

/** Returns: how much of the file is not known to be zero, at most; of whole disks exact once their scan is complete. */
uint64_t vmsnap_layout_get_allocated_bytes(const VmsnapLayout *layout);
