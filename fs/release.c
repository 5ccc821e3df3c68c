/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk is released in units. Of one that was handed out in part, a list has the ranges. When they and its zero
 * extents are all of it, it is gone, which one bit says: from then on it must not be read, whether the backend has been
 * asked to release it or not. So what a reader meets does not depend on how fast the backend is.
 *
 * What is gone and was not asked for yet is pending. One request is under way at a time, and the next one takes what
 * comes behind it on the disk, neighbours together, and begins again at the front when nothing is left behind. So one
 * reader or many, and a fast backend or a slow one, there are never more requests than one can do, and each is short.
 * Units of zeroes, which nobody reads, go with their neighbours: a run of them request by request.
 *
 * Memory is bounded, and what is forgotten is not released. Who reads in sequence comes back to his unit with each read
 * until he is through with it, and has one range there: so the unit that was noted longest ago is the first to be
 * forgotten, and one that has come to too many ranges is.
 *
 * The lock guards all of it, and is never held while a backend is called.
 */
#include "release.h"

#define MAX_UNITS (UINT64_C(1) << 24)
/* What one request can be at most. */
#define MAX_UNIT_BYTES (UINT64_C(1) << 30)
#define BITS_PER_WORD 64

typedef struct {
    uint64_t start;
    uint64_t end;
} Range;

/* A unit that was handed out in part. */
typedef struct {
    uint64_t index;
    GArray *ranges; /* of Range, ascending; zeroes behind one belong to it, so that there is data between any two */
    GList link;     /* in the list of recent ones */
} Partial;

struct VmsnapRelease {
    VmsnapDisk *disk;
    const VmsnapExtentMap *content;
    uint64_t unit_bytes;
    uint64_t n_units; /* that can be released */
    uint64_t n_words; /* of each bitmap */

    GMutex lock;
    uint64_t *gone;    /* a bit a unit; guarded by lock, as all below */
    uint64_t *pending; /* the same */
    uint64_t n_pending;
    uint64_t next;        /* unit behind the last request */
    uint64_t asked_bytes; /* by the request under way, or 0 */
    gboolean failed;
    uint64_t released_bytes;
    GHashTable *partial; /* of index to Partial, owned */
    GQueue recent;       /* of Partial, the one that was noted last first */
};

static void partial_free(gpointer data) {
    Partial *partial = data;
    g_array_unref(partial->ranges);
    g_free(partial);
}

/*
 * The bitmaps stay below 2 MiB each, since the unit grows with the disk: but not beyond what one request can be. What
 * lies behind is not released; no disk is as large as that. The last unit never is (include/vmsnap/backend.h).
 */
VmsnapRelease *vmsnap_release_new(VmsnapDisk *disk, const VmsnapExtentMap *content) {
    VmsnapRelease *release = g_new0(VmsnapRelease, 1);
    release->disk = disk;
    release->content = content;
    release->unit_bytes = VMSNAP_RELEASE_UNIT_BYTES;
    while (disk->size_bytes / release->unit_bytes >= MAX_UNITS && release->unit_bytes < MAX_UNIT_BYTES)
        release->unit_bytes *= 2;
    release->n_units = disk->size_bytes > 0 ? MIN((disk->size_bytes - 1) / release->unit_bytes, MAX_UNITS) : 0;
    release->n_words = release->n_units / BITS_PER_WORD + 1;
    release->gone = g_new0(uint64_t, release->n_words);
    release->pending = g_new0(uint64_t, release->n_words);
    release->partial = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, partial_free);
    g_queue_init(&release->recent);
    g_mutex_init(&release->lock);
    return release;
}

void vmsnap_release_free(VmsnapRelease *release) {
    if (!release)
        return;
    g_assert(release->asked_bytes == 0);
    g_hash_table_unref(release->partial);
    g_free(release->gone);
    g_free(release->pending);
    g_mutex_clear(&release->lock);
    g_free(release);
}

static gboolean bit_get(const uint64_t *words, uint64_t bit) {
    return (words[bit / BITS_PER_WORD] >> bit % BITS_PER_WORD & 1) != 0;
}

static void bit_set(uint64_t *words, uint64_t bit, gboolean value) {
    uint64_t mask = UINT64_C(1) << bit % BITS_PER_WORD;
    words[bit / BITS_PER_WORD] = value ? words[bit / BITS_PER_WORD] | mask : words[bit / BITS_PER_WORD] & ~mask;
}

/* Returns: where the zero extents that begin at @offset end, or @offset where there is data. */
static uint64_t zeroes_end(const VmsnapRelease *release, uint64_t offset, uint64_t end) {
    while (offset < end) {
        VmsnapExtentKind kind = VMSNAP_EXTENT_DATA;
        uint64_t length;
        (void)vmsnap_extent_map_lookup(release->content, offset, &kind, &length);
        if (kind != VMSNAP_EXTENT_ZERO)
            break;
        offset += length;
    }
    return MIN(offset, end);
}

static uint64_t unit_start(const VmsnapRelease *release, uint64_t index) {
    return index * release->unit_bytes;
}

/* Whether a unit has nothing that anybody would read, and has not been released. */
static gboolean unit_is_idle_locked(const VmsnapRelease *release, uint64_t index) {
    uint64_t start = unit_start(release, index), end = start + release->unit_bytes;
    return index < release->n_units && !bit_get(release->gone, index) && zeroes_end(release, start, end) == end;
}

static void unit_go_locked(VmsnapRelease *release, uint64_t index) {
    bit_set(release->gone, index, TRUE);
    bit_set(release->pending, index, TRUE);
    release->n_pending++;
}

/* Returns: the first unit from @index on that is pending, or one that cannot be. */
static uint64_t find_pending_locked(const VmsnapRelease *release, uint64_t index) {
    uint64_t mask = UINT64_MAX << index % BITS_PER_WORD;
    for (uint64_t word = index / BITS_PER_WORD; word < release->n_words; word++, mask = UINT64_MAX)
        if (release->pending[word] & mask)
            return word * BITS_PER_WORD + (uint64_t)__builtin_ctzll(release->pending[word] & mask);
    return release->n_units;
}

/* Takes a unit into a request. Returns: FALSE if it is not to be released now. */
static gboolean unit_take_locked(VmsnapRelease *release, uint64_t index) {
    if (unit_is_idle_locked(release, index))
        unit_go_locked(release, index);
    if (index >= release->n_units || !bit_get(release->pending, index))
        return FALSE;
    bit_set(release->pending, index, FALSE);
    release->n_pending--;
    return TRUE;
}

/* Chooses the next request. Returns: FALSE if there is none to be made. */
static gboolean request_take_locked(VmsnapRelease *release, Range *ret_range) {
    if (release->asked_bytes > 0 || release->n_pending == 0)
        return FALSE;
    uint64_t max_units = MAX(1, VMSNAP_RELEASE_MAX_REQUEST_BYTES / release->unit_bytes);
    uint64_t first = find_pending_locked(release, release->next);
    if (first == release->n_units)
        first = find_pending_locked(release, 0);
    uint64_t end = first;
    while (end - first < max_units && unit_take_locked(release, end))
        end++;
    while (first > 0 && end - first < max_units && unit_take_locked(release, first - 1))
        first--;
    /* A run of zeroes that is longer goes on with the next request. */
    if (unit_is_idle_locked(release, end))
        unit_go_locked(release, end);
    if (first > 0 && unit_is_idle_locked(release, first - 1))
        unit_go_locked(release, first - 1);
    release->next = end;
    release->asked_bytes = unit_start(release, end - first);
    *ret_range = (Range){unit_start(release, first), unit_start(release, end)};
    return TRUE;
}

/* What was not asked for stays what it is, and can be read again. */
static void fail_locked(VmsnapRelease *release) {
    release->failed = TRUE;
    release->n_pending = 0;
    for (uint64_t word = 0; word < release->n_words; word++) {
        release->gone[word] &= ~release->pending[word];
        release->pending[word] = 0;
    }
    g_queue_init(&release->recent);
    g_hash_table_remove_all(release->partial);
}

static void request_make(VmsnapRelease *release, const Range *range);

/* Nobody who reads is told of a failure. It may only be that the snapshot ends. */
static void request_done(int error, gpointer user_data) {
    VmsnapRelease *release = user_data;
    Range range;
    g_mutex_lock(&release->lock);
    if (error)
        fail_locked(release);
    else
        release->released_bytes += release->asked_bytes;
    release->asked_bytes = 0;
    gboolean goes_on = request_take_locked(release, &range);
    g_mutex_unlock(&release->lock);

    if (error)
        g_info("failed to release what was read of disk '%s': %s; no more of it is released", release->disk->name,
               g_strerror(-error));
    if (goes_on)
        request_make(release, &range);
}

static void request_make(VmsnapRelease *release, const Range *range) {
    vmsnap_disk_release(release->disk, range->start, range->end - range->start, request_done, release);
}

static void partial_forget_locked(VmsnapRelease *release, Partial *partial) {
    g_queue_unlink(&release->recent, &partial->link);
    (void)g_hash_table_remove(release->partial, &partial->index);
}

/* Zeroes at the beginning are the first range of a unit. */
static Partial *partial_new_locked(VmsnapRelease *release, uint64_t index) {
    Partial *partial = g_new0(Partial, 1);
    Range zeroes = {.start = unit_start(release, index)};
    zeroes.end = zeroes_end(release, zeroes.start, zeroes.start + release->unit_bytes);
    partial->index = index;
    partial->link.data = partial;
    partial->ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    if (zeroes.end > zeroes.start)
        g_array_append_val(partial->ranges, zeroes);
    (void)g_hash_table_insert(release->partial, &partial->index, partial);
    g_queue_push_head_link(&release->recent, &partial->link);
    return partial;
}

/* Adds a range, and makes one of it and those that it touches. */
static void ranges_add(GArray *ranges, Range range) {
    guint first = 0;
    while (first < ranges->len && g_array_index(ranges, Range, first).end < range.start)
        first++;
    guint end = first;
    for (; end < ranges->len && g_array_index(ranges, Range, end).start <= range.end; end++) {
        const Range *touched = &g_array_index(ranges, Range, end);
        range = (Range){MIN(range.start, touched->start), MAX(range.end, touched->end)};
    }
    (void)g_array_remove_range(ranges, first, end - first);
    (void)g_array_insert_val(ranges, first, range);
}

/* @range: lies in the unit */
static void unit_note_locked(VmsnapRelease *release, uint64_t index, Range range) {
    if (bit_get(release->gone, index))
        return;
    Partial *partial = g_hash_table_lookup(release->partial, &index);
    if (!partial)
        partial = partial_new_locked(release, index);
    g_queue_unlink(&release->recent, &partial->link);
    g_queue_push_head_link(&release->recent, &partial->link);

    uint64_t start = unit_start(release, index), end = start + release->unit_bytes;
    range.end = zeroes_end(release, range.end, end);
    ranges_add(partial->ranges, range);
    const Range *only = &g_array_index(partial->ranges, Range, 0);
    gboolean complete = only->start == start && only->end == end;
    if (complete || partial->ranges->len > VMSNAP_RELEASE_MAX_RANGES)
        partial_forget_locked(release, partial);
    if (complete)
        unit_go_locked(release, index);
    if (g_hash_table_size(release->partial) > VMSNAP_RELEASE_MAX_PARTIAL_UNITS)
        partial_forget_locked(release, g_queue_peek_tail(&release->recent));
}

void vmsnap_release_note(VmsnapRelease *release, uint64_t offset, uint64_t length_bytes) {
    if (!release)
        return;
    uint64_t end = MIN(offset + length_bytes, unit_start(release, release->n_units));
    Range range;
    g_mutex_lock(&release->lock);
    while (offset < end && !release->failed) {
        uint64_t index = offset / release->unit_bytes;
        uint64_t step_end = MIN(unit_start(release, index + 1), end);
        unit_note_locked(release, index, (Range){offset, step_end});
        offset = step_end;
    }
    gboolean goes_on = request_take_locked(release, &range);
    g_mutex_unlock(&release->lock);
    if (goes_on)
        request_make(release, &range);
}

gboolean vmsnap_release_has(VmsnapRelease *release, uint64_t offset, uint64_t length_bytes) {
    if (!release)
        return FALSE;
    uint64_t end = MIN(offset + length_bytes, unit_start(release, release->n_units));
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&release->lock);
    for (; offset < end; offset = unit_start(release, offset / release->unit_bytes + 1))
        if (bit_get(release->gone, offset / release->unit_bytes))
            return TRUE;
    return FALSE;
}

uint64_t vmsnap_release_get_bytes(VmsnapRelease *release) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&release->lock);
    return release->released_bytes;
}
