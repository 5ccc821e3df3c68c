/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A read walks the segments of its range. Zeroes and bytes in memory are there at once, ranges of a disk become reads
 * of the disk, all under way together, and where the extents are unknown the walk pauses until they are resolved. The
 * last part to finish ends the read; the walk itself counts as a part, so that no early answer can end it too soon.
 */
#include "read.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

/* A hole answers without a copy of its own; never written. As large as the largest read that FUSE sends. */
static uint8_t zeroes[1 << 20];

typedef struct {
    const VmsnapLayout *layout;
    uint64_t start;
    uint64_t end;
    uint64_t position; /* of the walk; one thread walks at a time */
    uint8_t *buffer;
    _Atomic int parts; /* the walk and the disk reads that have not finished */
    _Atomic int error; /* the first one */
    VmsnapReadFunc done;
    gpointer user_data;
} Read;

static void read_walk(Read *read);

/* Counts what was handed out. All extents of the range are known by now. */
static void read_note_progress(const Read *read) {
    VmsnapSegment segment;
    for (uint64_t position = read->start; position < read->end; position += segment.length_bytes) {
        vmsnap_layout_get_segment(read->layout, position, &segment);
        if (segment.kind == VMSNAP_SEGMENT_DISK)
            vmsnap_progress_add(segment.disk->progress, segment.disk_offset,
                                MIN(segment.length_bytes, read->end - position));
    }
}

static void read_part_done(int error, gpointer user_data) {
    Read *read = user_data;
    int no_error = 0;
    if (error)
        atomic_compare_exchange_strong(&read->error, &no_error, error);
    if (atomic_fetch_sub(&read->parts, 1) > 1)
        return;

    int first_error = atomic_load(&read->error);
    if (!first_error)
        read_note_progress(read);
    read->done(first_error, first_error ? NULL : read->buffer, first_error ? 0 : read->end - read->start,
               read->user_data);
    g_free(read->buffer);
    g_free(read);
}

static void read_resolved(gpointer user_data) {
    read_walk(user_data);
}

static void read_segment(Read *read, const VmsnapSegment *segment, size_t length) {
    uint8_t *target = read->buffer + (read->position - read->start);
    if (segment->kind == VMSNAP_SEGMENT_MEMORY) {
        memcpy(target, segment->memory, length);
    } else if (segment->kind == VMSNAP_SEGMENT_ZERO) {
        memset(target, 0, length);
    } else {
        atomic_fetch_add(&read->parts, 1);
        vmsnap_disk_read(segment->disk->disk, target, length, segment->disk_offset, read_part_done, read);
    }
}

static void read_walk(Read *read) {
    while (read->position < read->end && !atomic_load(&read->error)) {
        VmsnapSegment segment;
        vmsnap_layout_get_segment(read->layout, read->position, &segment);
        if (segment.kind == VMSNAP_SEGMENT_UNKNOWN) {
            vmsnap_scan_resolve(segment.disk->scan, segment.disk_offset, read_resolved, read);
            return;
        }
        size_t length = MIN(segment.length_bytes, read->end - read->position);
        read_segment(read, &segment, length);
        read->position += length;
    }
    read_part_done(0, read);
}

/* Returns: whether the whole range lies in one segment that needs neither a disk nor a buffer. */
static gboolean read_at_once(const VmsnapLayout *layout, uint64_t offset, size_t length, VmsnapReadFunc done,
                             gpointer user_data) {
    VmsnapSegment segment;
    vmsnap_layout_get_segment(layout, offset, &segment);
    if (segment.length_bytes < length)
        return FALSE;
    if (segment.kind == VMSNAP_SEGMENT_MEMORY)
        done(0, segment.memory, length, user_data);
    else if (segment.kind == VMSNAP_SEGMENT_ZERO && length <= sizeof zeroes)
        done(0, zeroes, length, user_data);
    else
        return FALSE;
    return TRUE;
}

void vmsnap_layout_read(const VmsnapLayout *layout, uint64_t offset, size_t length, VmsnapReadFunc done,
                        gpointer user_data) {
    if (offset >= layout->size_bytes || length == 0) {
        done(0, zeroes, 0, user_data);
        return;
    }
    length = MIN(length, layout->size_bytes - offset);
    if (read_at_once(layout, offset, length, done, user_data))
        return;

    Read *read = g_new0(Read, 1);
    read->layout = layout;
    read->start = read->position = offset;
    read->end = offset + length;
    read->buffer = g_malloc(length);
    read->parts = 1;
    read->done = done;
    read->user_data = user_data;
    read_walk(read);
}
