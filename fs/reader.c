/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reads, put together from pieces
 *
 * A file is cut into chunks. Each piece of a read, which is what it wants of one chunk, comes from the first of: the
 * layout's memory or its zeroes, a chunk that was fetched ahead, a buffer of the read's own. Nothing is copied: the
 * answer names the pieces where they are. Every buffer of a read's own is given back by itself when that read is done;
 * so a read may wait for a buffer, but never for another reader to go on.
 *
 * A chunk that could not be fetched is forgotten, and whoever waited for it reads once more without: what cannot be
 * read may be a place that it did not ask for.
 *
 * What was handed out may be released: noted when the one who asked has got it, and never for what was fetched ahead.
 * From then on it is not read again, be it still in a chunk. A chunk that has a part of it cannot be fetched, either.
 *
 * The lock guards the list of chunks and what is marked below. It is never held while a layout is read, a pool is
 * waited for or a read is answered; it is held while a layout is asked for segments, which calls nobody.
 */
#include "reader.h"

#include "stream.h"

#include <errno.h>
#include <stdatomic.h>

#define CHUNK_BYTES VMSNAP_READER_CHUNK_BYTES
/* Up to here, fresh memory costs no more than a buffer of the pool. */
#define MAX_SMALL_BYTES ((size_t)32 << 10)
/* Reads may come so late, in the order of the kernel's threads, that their chunk is still to be there. */
#define MAX_LATE_BYTES ((uint64_t)2 << 20)
/* Under a limit, what is fetched ahead must not keep other readers waiting for longer than this part of a second. */
#define MAX_AHEAD_SHARE 4

typedef struct {
    VmsnapReader *reader; /* a reference */
    _Atomic int refs;     /* the list, the load, and reads */
    uint64_t index;
    size_t length;
    uint8_t *buffer;       /* immutable once loaded */
    VmsnapStream *stream;  /* while the list has the chunk: whose it is; guarded by the reader's lock, as all below */
    uint64_t unread_bytes; /* that nobody has asked for yet */
    gboolean loading;
    GPtrArray *waiting; /* of Request */
} Chunk;

typedef struct {
    VmsnapReader *reader; /* a reference */
    uint64_t offset;
    size_t length;
    guint n_pieces;
    struct iovec *pieces; /* a piece without a place is to be read into the buffer */
    GPtrArray *chunks;    /* that pieces lie in: a reference each */
    uint8_t *buffer;
    _Atomic int parts; /* that are not there yet, and whoever is looking for them */
    _Atomic int error; /* the first one */
    VmsnapReadFunc done;
    gpointer user_data;
} Request;

struct VmsnapReader {
    const VmsnapLayout *layout;
    const VmsnapReaderResources *resources;
    _Atomic int refs; /* the open file, its chunks and its reads */
    GMutex lock;
    VmsnapStreams streams; /* guarded by lock */
    GHashTable *chunks;    /* of index to Chunk, a reference each; guarded by lock */
};

static void reader_unref(VmsnapReader *reader) {
    if (atomic_fetch_sub(&reader->refs, 1) > 1)
        return;
    g_hash_table_unref(reader->chunks);
    g_mutex_clear(&reader->lock);
    g_free(reader);
}

static VmsnapReader *reader_ref(VmsnapReader *reader) {
    atomic_fetch_add(&reader->refs, 1);
    return reader;
}

static void chunk_unref(gpointer data) {
    Chunk *chunk = data;
    if (atomic_fetch_sub(&chunk->refs, 1) > 1)
        return;
    VmsnapReader *reader = chunk->reader;
    vmsnap_buffer_pool_give(reader->resources->ahead, chunk->buffer);
    g_ptr_array_unref(chunk->waiting);
    g_free(chunk);
    reader_unref(reader);
}

VmsnapReader *vmsnap_reader_new(const VmsnapLayout *layout, const VmsnapReaderResources *resources) {
    VmsnapReader *reader = g_new0(VmsnapReader, 1);
    reader->layout = layout;
    reader->resources = resources;
    reader->refs = 1;
    g_mutex_init(&reader->lock);
    reader->chunks = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, chunk_unref);
    return reader;
}

void vmsnap_reader_close(VmsnapReader *reader) {
    if (!reader)
        return;
    g_mutex_lock(&reader->lock);
    g_hash_table_remove_all(reader->chunks);
    g_mutex_unlock(&reader->lock);
    reader_unref(reader);
}

static uint64_t chunk_end(const Chunk *chunk) {
    return (chunk->index + 1) * CHUNK_BYTES;
}

/* Gives up those chunks of a stream that end at or before @offset. Whoever has a reference may still use them. */
static void chunks_forget_locked(VmsnapReader *reader, const VmsnapStream *stream, uint64_t offset) {
    GHashTableIter iterator;
    gpointer chunk;
    g_hash_table_iter_init(&iterator, reader->chunks);
    while (g_hash_table_iter_next(&iterator, NULL, &chunk))
        if (((Chunk *)chunk)->stream == stream && chunk_end(chunk) <= offset)
            g_hash_table_iter_remove(&iterator);
}

static guint count_chunks_ahead_locked(const VmsnapReader *reader, const VmsnapStream *stream) {
    GHashTableIter iterator;
    gpointer chunk;
    guint n_ahead = 0;
    g_hash_table_iter_init(&iterator, reader->chunks);
    while (g_hash_table_iter_next(&iterator, NULL, &chunk))
        n_ahead += ((Chunk *)chunk)->stream == stream && chunk_end(chunk) > stream->next;
    return n_ahead;
}

static Chunk *chunk_new_locked(VmsnapReader *reader, VmsnapStream *stream, uint64_t index, uint8_t *buffer) {
    Chunk *chunk = g_new0(Chunk, 1);
    chunk->reader = reader_ref(reader);
    chunk->refs = 2; /* the list and the load */
    chunk->index = index;
    chunk->length = chunk->unread_bytes = MIN(CHUNK_BYTES, reader->layout->size_bytes - index * CHUNK_BYTES);
    chunk->buffer = buffer;
    chunk->loading = TRUE;
    chunk->waiting = g_ptr_array_new();
    chunk->stream = stream;
    g_hash_table_insert(reader->chunks, &chunk->index, chunk);
    return chunk;
}

static guint window_limit(const VmsnapReader *reader, const VmsnapStream *stream) {
    uint64_t bytes_per_s = vmsnap_throttle_get_rate(reader->resources->throttle);
    return bytes_per_s == 0 ? stream->window : (guint)MIN(stream->window, bytes_per_s / MAX_AHEAD_SHARE / CHUNK_BYTES);
}

/* What a stream has passed is of use to late reads only: it goes when there is no other buffer left. */
static uint8_t *stream_take_buffer_locked(VmsnapReader *reader, const VmsnapStream *stream, guint n_ahead) {
    uint8_t *buffer = vmsnap_buffer_pool_try_take(reader->resources->ahead, n_ahead);
    if (buffer)
        return buffer;
    chunks_forget_locked(reader, stream, stream->next);
    return vmsnap_buffer_pool_try_take(reader->resources->ahead, n_ahead);
}

/* Fills the window of a stream. @ret_chunks gets the new chunks, which are then to be loaded. */
static void stream_run_ahead_locked(VmsnapReader *reader, VmsnapStream *stream, GPtrArray *ret_chunks) {
    guint window = window_limit(reader, stream);
    if (stream->next > MAX_LATE_BYTES)
        chunks_forget_locked(reader, stream, stream->next - MAX_LATE_BYTES);
    guint n_ahead = count_chunks_ahead_locked(reader, stream);
    while (n_ahead < window) {
        uint64_t index;
        uint8_t *buffer = stream_take_buffer_locked(reader, stream, n_ahead);
        if (!buffer)
            return;
        gboolean found = vmsnap_stream_choose_chunk(stream, reader->layout, CHUNK_BYTES, &index);
        if (found && !g_hash_table_contains(reader->chunks, &index)) {
            g_ptr_array_add(ret_chunks, chunk_new_locked(reader, stream, index, buffer));
            n_ahead++;
        } else {
            vmsnap_buffer_pool_give(reader->resources->ahead, buffer);
        }
        if (!found)
            return;
    }
}

typedef gboolean (*DiskRangeFunc)(VmsnapDiskView *disk, uint64_t offset, uint64_t length_bytes);

/* Calls @func for the ranges of disks that a range of a file shows, until it says TRUE. Returns: whether it did. */
static gboolean find_disk_range(const VmsnapLayout *layout, uint64_t offset, uint64_t length, DiskRangeFunc func) {
    VmsnapSegment segment;
    gboolean found = FALSE;
    for (uint64_t end = offset + length; offset < end && !found; offset += segment.length_bytes) {
        vmsnap_layout_get_segment(layout, offset, &segment);
        if (segment.kind == VMSNAP_SEGMENT_DISK)
            found = func(segment.disk, segment.disk_offset, MIN(segment.length_bytes, end - offset));
    }
    return found;
}

static gboolean range_is_released(VmsnapDiskView *disk, uint64_t offset, uint64_t length_bytes) {
    return vmsnap_release_has(disk->release, offset, length_bytes);
}

static gboolean range_count(VmsnapDiskView *disk, uint64_t offset, uint64_t length_bytes) {
    vmsnap_progress_add(disk->progress, offset, length_bytes);
    return FALSE;
}

static gboolean range_release(VmsnapDiskView *disk, uint64_t offset, uint64_t length_bytes) {
    vmsnap_release_note(disk->release, offset, length_bytes);
    return FALSE;
}

/* Answers, and counts what is handed out. All extents of the range are known by now. */
static void request_answer(const Request *request, int error) {
    const VmsnapReader *reader = request->reader;
    /* What was released meanwhile may have been gone before it was read. */
    if (!error && reader->resources->releases &&
        find_disk_range(reader->layout, request->offset, request->length, range_is_released))
        error = -EIO;
    if (error) {
        (void)request->done(error, NULL, 0, request->user_data);
        return;
    }
    (void)find_disk_range(reader->layout, request->offset, request->length, range_count);
    gboolean got = request->done(0, request->pieces, request->n_pieces, request->user_data);
    if (got && reader->resources->releases)
        (void)find_disk_range(reader->layout, request->offset, request->length, range_release);
}

/* Whether a read's buffer comes from the pool. One that is larger than FUSE's requests must be some test's. */
static gboolean uses_pool(const Request *request) {
    return request->length > MAX_SMALL_BYTES &&
           request->length <= vmsnap_buffer_pool_get_buffer_bytes(request->reader->resources->demand);
}

static void request_free(Request *request) {
    VmsnapReader *reader = request->reader;
    if (uses_pool(request))
        vmsnap_buffer_pool_give(reader->resources->demand, request->buffer);
    else
        g_free(request->buffer);
    g_ptr_array_unref(request->chunks);
    g_free(request->pieces);
    g_free(request);
    reader_unref(reader);
}

static void request_read_alone(Request *request);

static void request_part_done(int error, gpointer user_data) {
    Request *request = user_data;
    int no_error = 0;
    if (error)
        atomic_compare_exchange_strong(&request->error, &no_error, error);
    if (atomic_fetch_sub(&request->parts, 1) > 1)
        return;
    error = atomic_load(&request->error);
    /* What was fetched while the snapshot was being lost is not to be trusted. */
    if (request->chunks->len > 0 && vmsnap_snapshot_is_broken(request->reader->resources->snapshot))
        error = -EIO;
    if (error && request->chunks->len > 0) {
        request_read_alone(request);
        return;
    }
    request_answer(request, error);
    request_free(request);
}

/* Reads the pieces that have no place yet. */
static void request_fill(uint8_t *buffer, gpointer user_data) {
    Request *request = user_data;
    request->buffer = buffer;
    size_t position = 0;
    for (guint i = 0; i < request->n_pieces; i++) {
        struct iovec *piece = &request->pieces[i];
        if (!piece->iov_base) {
            piece->iov_base = buffer + position;
            atomic_fetch_add(&request->parts, 1);
            vmsnap_layout_fill(request->reader->layout, request->offset + position, piece->iov_len, piece->iov_base,
                               request_part_done, request);
        }
        position += piece->iov_len;
    }
    request_part_done(0, request);
}

static void request_take_buffer(Request *request) {
    if (request->buffer)
        request_fill(request->buffer, request);
    else if (uses_pool(request))
        vmsnap_buffer_pool_take(request->reader->resources->demand, request_fill, request);
    else
        request_fill(g_malloc(request->length), request);
}

static void request_read_alone(Request *request) {
    g_ptr_array_set_size(request->chunks, 0);
    for (guint i = 0; i < request->n_pieces; i++)
        request->pieces[i].iov_base = NULL;
    atomic_store(&request->error, 0);
    atomic_store(&request->parts, 1);
    request_take_buffer(request);
}

/* Cuts a read into pieces. */
static void request_cut(Request *request) {
    uint64_t end = request->offset + request->length;
    guint max_pieces = (guint)((end - 1) / CHUNK_BYTES - request->offset / CHUNK_BYTES + 1);
    request->pieces = g_new0(struct iovec, max_pieces);
    for (uint64_t offset = request->offset; offset < end;) {
        struct iovec *piece = &request->pieces[request->n_pieces++];
        piece->iov_len = MIN((offset / CHUNK_BYTES + 1) * CHUNK_BYTES, end) - offset;
        piece->iov_base = (void *)vmsnap_layout_peek(request->reader->layout, offset, piece->iov_len);
        offset += piece->iov_len;
    }
}

/* Lets a piece lie in a chunk, where there is one. */
static void piece_find_chunk_locked(Request *request, struct iovec *piece, uint64_t offset) {
    VmsnapReader *reader = request->reader;
    uint64_t index = offset / CHUNK_BYTES;
    Chunk *chunk = g_hash_table_lookup(reader->chunks, &index);
    if (!chunk)
        return;
    atomic_fetch_add(&chunk->refs, 1);
    g_ptr_array_add(request->chunks, chunk);
    piece->iov_base = chunk->buffer + offset % CHUNK_BYTES;
    if (chunk->loading) {
        atomic_fetch_add(&request->parts, 1);
        g_ptr_array_add(chunk->waiting, request);
    }
    if (chunk->unread_bytes == chunk->length)
        vmsnap_stream_widen(chunk->stream);
    chunk->unread_bytes -= MIN(chunk->unread_bytes, piece->iov_len);
    if (chunk->unread_bytes == 0)
        g_hash_table_remove(reader->chunks, &index);
}

/* Whether there are pieces that have no place yet. */
static gboolean request_has_gaps(const Request *request) {
    for (guint i = 0; i < request->n_pieces; i++)
        if (!request->pieces[i].iov_base)
            return TRUE;
    return FALSE;
}

/* Lets pieces lie in chunks, and chooses chunks for the reads that will follow: @ret_chunks, which are to be loaded. */
static void request_use_streams(Request *request, GPtrArray *ret_chunks) {
    VmsnapReader *reader = request->reader;
    uint64_t offset = request->offset;
    gboolean begun, needs_disk = request_has_gaps(request);
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&reader->lock);
    VmsnapStream *stream = vmsnap_streams_note(&reader->streams, reader->layout, offset, request->length, &begun);
    if (begun)
        chunks_forget_locked(reader, stream, UINT64_MAX);
    for (guint i = 0; i < request->n_pieces; i++) {
        struct iovec *piece = &request->pieces[i];
        if (!piece->iov_base)
            piece_find_chunk_locked(request, piece, offset);
        offset += piece->iov_len;
    }
    /* Who reads zeroes may go on to do so, and what comes behind them was fetched when they began. */
    if (needs_disk && stream->came_further && vmsnap_stream_is_running(stream))
        stream_run_ahead_locked(reader, stream, ret_chunks);
}

static void chunk_loaded(int error, gpointer user_data) {
    Chunk *chunk = user_data;
    VmsnapReader *reader = chunk->reader;
    g_mutex_lock(&reader->lock);
    chunk->loading = FALSE;
    if (error && g_hash_table_lookup(reader->chunks, &chunk->index) == chunk)
        g_hash_table_remove(reader->chunks, &chunk->index);
    g_mutex_unlock(&reader->lock);

    /* Nobody comes to wait for it any more. */
    for (guint i = 0; i < chunk->waiting->len; i++)
        request_part_done(error, g_ptr_array_index(chunk->waiting, i));
    chunk_unref(chunk);
}

static void chunk_load(gpointer data, gpointer user_data) {
    Chunk *chunk = data;
    (void)user_data;
    vmsnap_layout_fill(chunk->reader->layout, chunk->index * CHUNK_BYTES, chunk->length, chunk->buffer, chunk_loaded,
                       chunk);
}

/* @length: as far as the file goes */
static Request *request_new(VmsnapReader *reader, uint64_t offset, size_t length, VmsnapReadFunc done,
                            gpointer user_data) {
    Request *request = g_new0(Request, 1);
    request->reader = reader_ref(reader);
    request->offset = offset;
    request->length = length;
    request->chunks = g_ptr_array_new_with_free_func(chunk_unref);
    request->parts = 1;
    request->done = done;
    request->user_data = user_data;
    return request;
}

void vmsnap_reader_read(VmsnapReader *reader, uint64_t offset, size_t length, VmsnapReadFunc done, gpointer user_data) {
    uint64_t size_bytes = reader->layout->size_bytes;
    if (offset >= size_bytes || length == 0) {
        (void)done(0, NULL, 0, user_data);
        return;
    }
    length = MIN(length, size_bytes - offset);
    if (reader->resources->releases && find_disk_range(reader->layout, offset, length, range_is_released)) {
        (void)done(-EIO, NULL, 0, user_data);
        return;
    }
    Request *request = request_new(reader, offset, length, done, user_data);
    g_autoptr(GPtrArray) ahead = g_ptr_array_new();
    request_cut(request);
    request_use_streams(request, ahead);
    /* What somebody waits for goes first. */
    if (request_has_gaps(request))
        request_take_buffer(request);
    else
        request_part_done(0, request);
    g_ptr_array_foreach(ahead, chunk_load, NULL);
}
