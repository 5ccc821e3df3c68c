/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* SEEK_DATA and SEEK_HOLE: a walk over segments that pauses where extents are unknown. */
#include "read.h"

#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>

/*
 * A walk keeps a thread of FUSE busy. A hole need not be told, as lseek(2) says, and where none comes for so long it is
 * not: compact formats are data to their end, in pieces as many as the disk has extents.
 */
#define MAX_SEGMENTS_TO_HOLE 10000

typedef struct {
    const VmsnapLayout *layout;
    uint64_t position;
    gboolean to_hole;
    uint64_t n_segments;  /* that were walked */
    _Atomic int arrivals; /* at the end of a question: the walk that asked, and the answer */
    VmsnapSeekFunc done;
    gpointer user_data;
} Seek;

static void seek_end(Seek *seek, int error) {
    seek->done(error, seek->position, seek->user_data);
    g_free(seek);
}

static void seek_walk(Seek *seek);

/* Whoever comes second goes on, and whoever comes first must not look back: the seek may have ended since. */
static gboolean seek_arrive(Seek *seek) {
    return atomic_fetch_add(&seek->arrivals, 1) == 1;
}

static void seek_resolved(gpointer user_data) {
    if (seek_arrive(user_data))
        seek_walk(user_data);
}

/*
 * An answer may come before the question returns, for thousands of windows on end where a disk is lost: then this loop
 * goes on, and not the answer, so that they do not nest.
 */
static void seek_walk(Seek *seek) {
    while (seek->position < seek->layout->size_bytes) {
        VmsnapSegment segment;
        vmsnap_layout_get_segment(seek->layout, seek->position, &segment);
        if (segment.kind == VMSNAP_SEGMENT_UNKNOWN) {
            atomic_store(&seek->arrivals, 0);
            vmsnap_scan_resolve(segment.disk->scan, segment.disk_offset, seek_resolved, seek);
            if (!seek_arrive(seek))
                return;
            continue;
        }
        if ((segment.kind == VMSNAP_SEGMENT_ZERO) == seek->to_hole) {
            seek_end(seek, 0);
            return;
        }
        seek->position += segment.length_bytes;
        if (seek->to_hole && ++seek->n_segments == MAX_SEGMENTS_TO_HOLE)
            seek->position = seek->layout->size_bytes;
    }
    seek_end(seek, seek->to_hole ? 0 : -ENXIO);
}

void vmsnap_layout_seek(const VmsnapLayout *layout, uint64_t offset, int whence, VmsnapSeekFunc done,
                        gpointer user_data) {
    if (whence != SEEK_DATA && whence != SEEK_HOLE) {
        done(-EINVAL, 0, user_data);
        return;
    }
    if (offset >= layout->size_bytes) {
        done(-ENXIO, 0, user_data);
        return;
    }
    Seek *seek = g_new0(Seek, 1);
    seek->layout = layout;
    seek->position = offset;
    seek->to_hole = whence == SEEK_HOLE;
    seek->done = done;
    seek->user_data = user_data;
    seek_walk(seek);
}
