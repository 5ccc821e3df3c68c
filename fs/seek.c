/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* SEEK_DATA and SEEK_HOLE: a walk over segments that pauses where extents are unknown. */
#include "read.h"

#include <errno.h>
#include <unistd.h>

typedef struct {
    const VmsnapLayout *layout;
    uint64_t position;
    gboolean to_hole;
    VmsnapSeekFunc done;
    gpointer user_data;
} Seek;

static void seek_end(Seek *seek, int error) {
    seek->done(error, seek->position, seek->user_data);
    g_free(seek);
}

static void seek_walk(gpointer user_data) {
    Seek *seek = user_data;
    while (seek->position < seek->layout->size_bytes) {
        VmsnapSegment segment;
        vmsnap_layout_get_segment(seek->layout, seek->position, &segment);
        if (segment.kind == VMSNAP_SEGMENT_UNKNOWN) {
            vmsnap_scan_resolve(segment.disk->scan, segment.disk_offset, seek_walk, seek);
            return;
        }
        if ((segment.kind == VMSNAP_SEGMENT_ZERO) == seek->to_hole) {
            seek_end(seek, 0);
            return;
        }
        seek->position += segment.length_bytes;
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
