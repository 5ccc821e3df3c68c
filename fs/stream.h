/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which reads of a file follow each other, and what to fetch ahead of them. Not thread-safe: its user has a lock. */
#pragma once

#include "layout.h"

#define VMSNAP_MAX_STREAMS 8

/** A run of reads over a file. */
typedef struct {
    uint64_t start;        /* where it began */
    uint64_t next;         /* where it has come to */
    uint64_t read_bytes;   /* of what lies between */
    uint64_t hole_bytes;   /* and how much of it were holes that were jumped over */
    guint n_reads;         /* 0: unused */
    gboolean came_further; /* with the last read */
    uint64_t last_used;
    uint64_t cursor; /* index of the first chunk that has not been chosen to be fetched ahead */
    guint window;    /* how many chunks to have ahead */
} VmsnapStream;

/** The streams of one open file; begins zeroed. */
typedef struct {
    VmsnapStream streams[VMSNAP_MAX_STREAMS];
    uint64_t clock;
} VmsnapStreams;

/**
 * vmsnap_streams_note:
 * @ret_begun: set if no stream went on with this read, so that one was begun in the place of an old one, whose chunks
 *     should be given up
 *
 * Notes a read, of at least one byte and inside the file. Returns: its stream.
 */
VmsnapStream *vmsnap_streams_note(VmsnapStreams *streams, const VmsnapLayout *layout, uint64_t offset, size_t length,
                                  gboolean *ret_begun);

/** Returns: whether it is worth to fetch ahead of the stream. */
gboolean vmsnap_stream_is_running(const VmsnapStream *stream);

/** Doubles the window, up to its limit, since what was fetched ahead is being read. */
void vmsnap_stream_widen(VmsnapStream *stream);

/**
 * vmsnap_stream_choose_chunk:
 * @chunk_bytes: size of all chunks
 *
 * Chooses the next chunk ahead that needs a disk, and does not choose it again.
 * Returns: FALSE if there is none, or if none was found in a search of reasonable length.
 */
gboolean vmsnap_stream_choose_chunk(VmsnapStream *stream, const VmsnapLayout *layout, size_t chunk_bytes,
                                    uint64_t *ret_index);
