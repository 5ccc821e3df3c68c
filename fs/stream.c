/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stream runs once it has come some way and has left out little of it. Backward, strided and random readers never get
 * there. Neighbouring reads may come in another order than they were made, since several threads take them from the
 * kernel: so a read belongs to a stream if it is near where that has come to.
 *
 * A stream runs ahead in data, not in offsets: chunks that need no disk are passed over, and a reader that jumps over a
 * hole goes on with its stream behind it.
 */
#include "stream.h"

/* Random readers read as much as this in a row now and then. */
#define MIN_RUN_BYTES ((uint64_t)128 << 10)
/* How many reads may come late. */
#define MAX_LATE_READS 8
#define FIRST_WINDOW 4
#define MAX_WINDOW 16
/* A search over so many segments is long enough for one read; the next one goes on with it. */
#define MAX_SEARCH_SEGMENTS 64
/* A stream that runs outlives this many reads elsewhere. */
#define RUNNING_PATIENCE 1000

gboolean vmsnap_stream_is_running(const VmsnapStream *stream) {
    uint64_t span = stream->next - stream->start;
    uint64_t left_out_at_most = span / 8;
    return stream->n_reads > 1 && stream->read_bytes >= MIN_RUN_BYTES &&
           stream->read_bytes + stream->hole_bytes >= span - left_out_at_most;
}

/* Returns: the first offset from @offset on that needs a disk, or where the search ended without one. */
static uint64_t find_data(const VmsnapLayout *layout, uint64_t offset, uint64_t end, gboolean *ret_found) {
    *ret_found = FALSE;
    for (int n = 0; n < MAX_SEARCH_SEGMENTS && offset < end; n++) {
        VmsnapSegment segment;
        vmsnap_layout_get_segment(layout, offset, &segment);
        *ret_found = segment.kind == VMSNAP_SEGMENT_DISK || segment.kind == VMSNAP_SEGMENT_UNKNOWN;
        if (*ret_found)
            break;
        offset += segment.length_bytes;
    }
    return MIN(offset, end);
}

static gboolean stream_jumps_over_hole(const VmsnapStream *stream, const VmsnapLayout *layout, uint64_t offset) {
    gboolean found;
    return offset > stream->next && find_data(layout, stream->next, offset, &found) == offset;
}

static gboolean stream_goes_on(const VmsnapStream *stream, const VmsnapLayout *layout, uint64_t offset, size_t length) {
    if (stream->n_reads == 0 || offset < stream->start)
        return FALSE;
    gboolean near = offset <= stream->next + length && offset + (uint64_t)MAX_LATE_READS * length >= stream->next;
    return near || stream_jumps_over_hole(stream, layout, offset);
}

static VmsnapStream *streams_find(VmsnapStreams *streams, const VmsnapLayout *layout, uint64_t offset, size_t length) {
    for (int i = 0; i < VMSNAP_MAX_STREAMS; i++)
        if (stream_goes_on(&streams->streams[i], layout, offset, length))
            return &streams->streams[i];
    return NULL;
}

static uint64_t stream_worth(const VmsnapStream *stream) {
    return stream->last_used + (vmsnap_stream_is_running(stream) ? RUNNING_PATIENCE : 0);
}

static VmsnapStream *streams_find_victim(VmsnapStreams *streams) {
    VmsnapStream *victim = &streams->streams[0];
    for (int i = 1; i < VMSNAP_MAX_STREAMS; i++)
        if (stream_worth(&streams->streams[i]) < stream_worth(victim))
            victim = &streams->streams[i];
    return victim;
}

VmsnapStream *vmsnap_streams_note(VmsnapStreams *streams, const VmsnapLayout *layout, uint64_t offset, size_t length,
                                  gboolean *ret_begun) {
    VmsnapStream *stream = streams_find(streams, layout, offset, length);
    *ret_begun = !stream;
    if (!stream) {
        stream = streams_find_victim(streams);
        *stream = (VmsnapStream){.start = offset, .next = offset, .window = FIRST_WINDOW};
    }
    if (stream_jumps_over_hole(stream, layout, offset))
        stream->hole_bytes += offset - stream->next;
    stream->came_further = offset + length > stream->next;
    stream->next = MAX(stream->next, offset + length);
    stream->read_bytes += length;
    stream->n_reads++;
    stream->last_used = ++streams->clock;
    return stream;
}

void vmsnap_stream_widen(VmsnapStream *stream) {
    stream->window = MIN(stream->window * 2, MAX_WINDOW);
}

gboolean vmsnap_stream_choose_chunk(VmsnapStream *stream, const VmsnapLayout *layout, size_t chunk_bytes,
                                    uint64_t *ret_index) {
    gboolean found;
    stream->cursor = MAX(stream->cursor, stream->next / chunk_bytes);
    uint64_t from = MAX(stream->cursor * chunk_bytes, stream->next);
    uint64_t data = find_data(layout, from, layout->size_bytes, &found);
    *ret_index = stream->cursor = MAX(stream->cursor, data / chunk_bytes);
    if (found)
        stream->cursor++;
    return found;
}
