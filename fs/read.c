/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A fill walks the segments of its range. Zeroes, and bytes in memory or computed, are there at once, ranges of a disk
 * become reads of the disk, all under way together, and where the extents are unknown the walk pauses until they are
 * resolved. The last part to finish ends the fill; the walk itself counts as a part, so that no early answer can end it
 * too soon.
 */
#include "read.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

/*
 * A hole answers without a copy of its own. Constant, and so pages of the program: those of a variable that is never
 * written are none yet, and the kernel takes far longer to find that out than to copy them.
 */
static const uint8_t zeroes[(size_t)256 << 10];

/*
 * QEMU has a buffer for each read. Larger ones it gets from the kernel and gives back each time, so that it has to take
 * page faults for all that it reads.
 */
#define MAX_DISK_READ_BYTES ((size_t)128 << 10)

typedef struct {
    const VmsnapLayout *layout;
    uint64_t start;
    uint64_t end;
    uint64_t position; /* of the walk; one thread walks at a time */
    uint8_t *buffer;
    _Atomic int parts; /* the walk and the disk reads that have not finished */
    _Atomic int error; /* the first one */
    VmsnapDoneFunc done;
    gpointer user_data;
} Fill;

static void fill_walk(Fill *fill);

static void fill_part_done(int error, gpointer user_data) {
    Fill *fill = user_data;
    int no_error = 0;
    if (error)
        atomic_compare_exchange_strong(&fill->error, &no_error, error);
    if (atomic_fetch_sub(&fill->parts, 1) > 1)
        return;
    fill->done(atomic_load(&fill->error), fill->user_data);
    g_free(fill);
}

static void fill_resolved(gpointer user_data) {
    fill_walk(user_data);
}

static void fill_segment(Fill *fill, const VmsnapSegment *segment, size_t length) {
    uint8_t *target = fill->buffer + (fill->position - fill->start);
    if (segment->kind == VMSNAP_SEGMENT_MEMORY) {
        memcpy(target, segment->memory, length);
    } else if (segment->kind == VMSNAP_SEGMENT_COMPUTED) {
        vmsnap_layout_compute(fill->layout, fill->position, length, target);
    } else if (segment->kind == VMSNAP_SEGMENT_ZERO) {
        memset(target, 0, length);
    } else {
        atomic_fetch_add(&fill->parts, 1);
        if (vmsnap_release_has(segment->disk->release, segment->disk_offset, length))
            fill_part_done(-EIO, fill);
        else
            vmsnap_throttle_read(segment->disk->throttle, segment->disk->disk, target, length, segment->disk_offset,
                                 fill_part_done, fill);
    }
}

static size_t step_length(const Fill *fill, const VmsnapSegment *segment) {
    uint64_t length = MIN(segment->length_bytes, fill->end - fill->position);
    if (segment->kind != VMSNAP_SEGMENT_DISK)
        return length;
    uint64_t boundary_bytes = segment->disk->disk->boundary_bytes;
    if (boundary_bytes > 0)
        length = MIN(length, boundary_bytes - segment->disk_offset % boundary_bytes);
    return MIN(length, MIN(MAX_DISK_READ_BYTES, vmsnap_throttle_get_max_read_bytes(segment->disk->throttle)));
}

static void fill_walk(Fill *fill) {
    while (fill->position < fill->end && !atomic_load(&fill->error)) {
        VmsnapSegment segment;
        vmsnap_layout_get_segment(fill->layout, fill->position, &segment);
        if (segment.kind == VMSNAP_SEGMENT_UNKNOWN) {
            vmsnap_scan_resolve(segment.disk->scan, segment.disk_offset, fill_resolved, fill);
            return;
        }
        size_t length = step_length(fill, &segment);
        fill_segment(fill, &segment, length);
        fill->position += length;
    }
    fill_part_done(0, fill);
}

const uint8_t *vmsnap_layout_peek(const VmsnapLayout *layout, uint64_t offset, size_t length) {
    VmsnapSegment segment;
    vmsnap_layout_get_segment(layout, offset, &segment);
    if (segment.length_bytes < length)
        return NULL;
    if (segment.kind == VMSNAP_SEGMENT_MEMORY)
        return segment.memory;
    return segment.kind == VMSNAP_SEGMENT_ZERO && length <= sizeof zeroes ? zeroes : NULL;
}

void vmsnap_layout_fill(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer,
                        VmsnapDoneFunc done, gpointer user_data) {
    g_assert(length > 0 && offset <= layout->size_bytes && length <= layout->size_bytes - offset);
    Fill *fill = g_new0(Fill, 1);
    fill->layout = layout;
    fill->start = fill->position = offset;
    fill->end = offset + length;
    fill->buffer = buffer;
    fill->parts = 1;
    fill->done = done;
    fill->user_data = user_data;
    fill_walk(fill);
}
