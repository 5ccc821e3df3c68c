/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A file that somebody has open: its reads, and the read-ahead for those of them that follow each other. */
#pragma once

#include "buffer_pool.h"
#include "read.h"

#include <sys/uio.h>

/** How much is fetched ahead at a time, and so the size of buffers in the pool for that. */
#define VMSNAP_READER_CHUNK_BYTES ((size_t)256 << 10)

/** What all readers share, and what bounds their memory. The pools must outlive them. */
typedef struct {
    const VmsnapSnapshot *snapshot; /* what is read */
    VmsnapBufferPool *demand;       /* for reads that cannot be answered without a buffer */
    VmsnapBufferPool *ahead;        /* for chunks of VMSNAP_READER_CHUNK_BYTES that are fetched ahead */
    const VmsnapThrottle *throttle; /* what the layouts' disks are read by, or NULL */
    gboolean releases;              /* what is handed out may be released, so that it is read once */
} VmsnapReaderResources;

typedef struct VmsnapReader VmsnapReader;

/**
 * VmsnapReadFunc:
 * @error: 0, or -errno; then there are no data
 * @pieces: the data, in their order; valid during the call only
 *
 * Returns: whether somebody has got the data: if not, they count as not handed out, and can be read again.
 */
typedef gboolean (*VmsnapReadFunc)(int error, const struct iovec *pieces, guint n_pieces, gpointer user_data);

/** @layout and @resources must outlive the reader and its reads. */
VmsnapReader *vmsnap_reader_new(const VmsnapLayout *layout, const VmsnapReaderResources *resources);

/**
 * vmsnap_reader_read:
 * @length: may reach beyond the end of the file, and may be 0: as read(2), it then gives less
 *
 * Reads a range. @done is called once, before or after this returns, on this thread or one of a backend. A range of
 * which something was released fails with -EIO as a whole. Any thread.
 */
void vmsnap_reader_read(VmsnapReader *reader, uint64_t offset, size_t length, VmsnapReadFunc done, gpointer user_data);

/** Nobody reads any more; reads in flight still end. What was fetched ahead is given up. NULL-safe. */
void vmsnap_reader_close(VmsnapReader *reader);
