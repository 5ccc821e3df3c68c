/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Calls go into one list, and two threads take any of them and answer it. */
#include "memory_backend.h"

#include "extents.h"

#include <errno.h>
#include <string.h>

#define N_THREADS 2
#define UNIT_BYTES VMSNAP_RELEASE_UNIT_BYTES

typedef struct {
    VmsnapDisk base;
    GArray *extents;      /* of VmsnapExtent, owned */
    GArray *changes;      /* the same, or NULL */
    GHashTable *released; /* set of units, from 1, that were asked for; NULL where they cannot be; guarded by lock */
    uint64_t seed;
    uint64_t scratch_used_bytes; /* both 0 where it has none */
    uint64_t scratch_left_bytes;
} MemoryDisk;

typedef struct {
    MemoryDisk *disk;
    const GArray *extents; /* in a question for extents */
    uint8_t *buffer;       /* in a read; a release has neither */
    uint64_t length;
    uint64_t offset;
    VmsnapDoneFunc done;
    VmsnapExtentsFunc extents_done;
    gpointer user_data;
    int error;
} Call;

typedef struct {
    VmsnapSnapshot base;
    MemoryFaults faults; /* immutable */
    GThread *threads[N_THREADS];
    GMutex lock;
    GCond changed;
    GPtrArray *calls; /* of Call, owned, that wait for a thread; guarded by lock, as all below */
    MemoryCounts counts;
    GRand *random;
    GPtrArray *held_releases; /* of Call, owned, that wait for more than that */
    gboolean held;
    gboolean releases_held;
    gboolean ended;
} MemorySnapshot;

/* SplitMix64's mixing of bits. */
static uint64_t mix(uint64_t number) {
    number = (number ^ number >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    number = (number ^ number >> 27) * UINT64_C(0x94d049bb133111eb);
    return number ^ number >> 31;
}

void memory_disk_expand(const VmsnapDisk *base, uint8_t *buffer, size_t length, uint64_t offset) {
    const MemoryDisk *disk = (const MemoryDisk *)base;
    uint64_t run = 0;
    VmsnapExtentKind kind = VMSNAP_EXTENT_DATA;
    for (size_t i = 0, step; i < length; i += step, run -= step) {
        uint64_t position = offset + i, in_word = position % sizeof(uint64_t);
        if (run == 0)
            kind = extents_find(disk->extents, position, &run);
        step = MIN(MIN(sizeof(uint64_t) - in_word, length - i), run);
        uint64_t word = kind == VMSNAP_EXTENT_ZERO ? 0 : mix(disk->seed + position / sizeof word) >> in_word * 8;
        word = GUINT64_TO_LE(word);
        memcpy(buffer + i, &word, step);
    }
}

const GArray *memory_disk_get_extents(const VmsnapDisk *disk) {
    return ((const MemoryDisk *)disk)->extents;
}

const GArray *memory_disk_get_changes(const VmsnapDisk *disk) {
    return ((const MemoryDisk *)disk)->changes;
}

static void answer_extents(const Call *call, const MemoryFaults *faults) {
    if (call->error) {
        call->extents_done(call->error, NULL, 0, call->user_data);
        return;
    }
    g_autoptr(GArray) answer = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    uint64_t left = faults->max_answer_bytes ? MIN(call->length, faults->max_answer_bytes) : call->length;
    uint64_t offset = call->offset, end = 0;
    guint next = 0;
    const VmsnapExtent *extent = NULL;
    if (faults->say_nothing)
        left = 0;
    do {
        while (end <= offset) {
            extent = &g_array_index(call->extents, VmsnapExtent, next++);
            end += extent->length_bytes;
        }
        uint64_t run = MIN(end - offset, left);
        extents_append(answer, extent->kind, run);
        offset += run;
        left -= run;
    } while (left > 0);
    call->extents_done(0, (const VmsnapExtent *)(const void *)answer->data, answer->len, call->user_data);
}

static void answer(MemorySnapshot *snapshot, Call *call) {
    if (call->extents) {
        answer_extents(call, &snapshot->faults);
    } else {
        if (call->buffer && !call->error)
            memory_disk_expand(&call->disk->base, call->buffer, call->length, call->offset);
        call->done(call->error, call->user_data);
    }
    g_free(call);
    g_mutex_lock(&snapshot->lock);
    snapshot->counts.outstanding--;
    g_cond_broadcast(&snapshot->changed);
    g_mutex_unlock(&snapshot->lock);
}

/* Whether a range touches what was released, or all of it was. */
static gboolean released_locked(const MemoryDisk *disk, uint64_t offset, uint64_t length, gboolean all) {
    if (!disk->released)
        return FALSE;
    for (uint64_t unit = offset / UNIT_BYTES; unit <= (offset + length - 1) / UNIT_BYTES; unit++)
        if (g_hash_table_contains(disk->released, GSIZE_TO_POINTER(unit + 1)) != all)
            return !all;
    return all;
}

/* A read that began before the release may fail as well as one that comes after it. */
static void call_meet_release_locked(MemorySnapshot *snapshot, Call *call) {
    if (!call->buffer || !released_locked(call->disk, call->offset, call->length, FALSE))
        return;
    if (!snapshot->faults.read_released)
        call->error = -EIO;
}

static gpointer answer_thread(gpointer data) {
    MemorySnapshot *snapshot = data;
    g_mutex_lock(&snapshot->lock);
    while (TRUE) {
        while (!snapshot->ended && (snapshot->held || snapshot->calls->len == 0))
            g_cond_wait(&snapshot->changed, &snapshot->lock);
        if (snapshot->calls->len == 0)
            break;
        guint any = (guint)g_rand_int_range(snapshot->random, 0, (gint32)snapshot->calls->len);
        Call *call = g_ptr_array_steal_index_fast(snapshot->calls, any);
        call_meet_release_locked(snapshot, call);
        if (snapshot->ended)
            call->error = -EIO;
        gulong delay_us = (gulong)g_rand_int_range(snapshot->random, 0, (gint32)snapshot->faults.max_delay_us + 1);
        g_mutex_unlock(&snapshot->lock);
        if (delay_us > 0)
            g_usleep(delay_us);
        answer(snapshot, call);
        g_mutex_lock(&snapshot->lock);
    }
    g_mutex_unlock(&snapshot->lock);
    return NULL;
}

static gboolean touches_bad_range(const Call *call, const MemoryFaults *faults) {
    return call->buffer && call->offset < faults->bad_offset + faults->bad_bytes &&
           faults->bad_offset < call->offset + call->length;
}

static gboolean is_release(const Call *call) {
    return !call->buffer && !call->extents;
}

/* Returns: whether it fails. */
static gboolean note_release_locked(MemorySnapshot *snapshot, const Call *call) {
    MemoryDisk *disk = call->disk;
    g_assert_nonnull(disk->released);
    g_assert_cmpuint(call->offset % UNIT_BYTES + call->length % UNIT_BYTES, ==, 0);
    g_assert_cmpuint(call->offset + call->length, <, disk->base.size_bytes);
    g_assert_false(released_locked(disk, call->offset, call->length, FALSE));
    for (uint64_t offset = call->offset; offset < call->offset + call->length; offset += UNIT_BYTES)
        (void)g_hash_table_add(disk->released, GSIZE_TO_POINTER(offset / UNIT_BYTES + 1));
    snapshot->counts.releases++;
    snapshot->counts.released_bytes += call->length;
    snapshot->counts.max_release_bytes = MAX(snapshot->counts.max_release_bytes, call->length);
    return snapshot->counts.releases == snapshot->faults.fail_release;
}

static void note_read_locked(MemorySnapshot *snapshot, const Call *call, uint64_t zero_bytes) {
    snapshot->counts.reads++;
    snapshot->counts.bytes += call->length;
    snapshot->counts.zero_bytes_read += zero_bytes;
    if (released_locked(call->disk, call->offset, call->length, FALSE))
        snapshot->counts.released_read_bytes += call->length;
}

static void submit(Call *call) {
    MemorySnapshot *snapshot = (MemorySnapshot *)call->disk->base.snapshot;
    const MemoryFaults *faults = &snapshot->faults;
    uint64_t zero_bytes = call->buffer ? extents_count_zero(call->disk->extents, call->offset, call->length) : 0;

    g_mutex_lock(&snapshot->lock);
    gboolean release = is_release(call);
    if (call->buffer)
        note_read_locked(snapshot, call, zero_bytes);
    snapshot->counts.questions += call->extents != NULL;
    snapshot->counts.outstanding++;
    unsigned number = snapshot->counts.reads + snapshot->counts.questions;
    gboolean fails =
        faults->fail_call && (faults->fail_rest ? number >= faults->fail_call : number == faults->fail_call);
    fails |= touches_bad_range(call, faults);
    if (release)
        fails = note_release_locked(snapshot, call);
    if (fails || snapshot->ended)
        call->error = -EIO;
    gboolean at_once = snapshot->ended || (fails && faults->fail_at_once);
    if (!at_once)
        g_ptr_array_add(release && snapshot->releases_held ? snapshot->held_releases : snapshot->calls, call);
    g_cond_broadcast(&snapshot->changed);
    g_mutex_unlock(&snapshot->lock);
    if (at_once)
        answer(snapshot, call);
}

static void memory_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                        gpointer user_data) {
    Call *call = g_new0(Call, 1);
    *call = (Call){.disk = (MemoryDisk *)disk,
                   .buffer = buffer,
                   .length = length,
                   .offset = offset,
                   .done = done,
                   .user_data = user_data};
    submit(call);
}

static void memory_extents(VmsnapDisk *base, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                           VmsnapExtentsFunc done, gpointer user_data) {
    MemoryDisk *disk = (MemoryDisk *)base;
    Call *call = g_new0(Call, 1);
    *call = (Call){.disk = disk,
                   .extents = question == VMSNAP_EXTENTS_OF_CHANGES ? disk->changes : disk->extents,
                   .length = length,
                   .offset = offset,
                   .extents_done = done,
                   .user_data = user_data};
    submit(call);
}

static void memory_release(VmsnapDisk *disk, uint64_t offset, uint64_t length, VmsnapDoneFunc done,
                           gpointer user_data) {
    Call *call = g_new0(Call, 1);
    *call =
        (Call){.disk = (MemoryDisk *)disk, .length = length, .offset = offset, .done = done, .user_data = user_data};
    submit(call);
}

static void let_releases_go_locked(MemorySnapshot *snapshot) {
    snapshot->releases_held = FALSE;
    while (snapshot->held_releases->len > 0)
        g_ptr_array_add(snapshot->calls, g_ptr_array_steal_index(snapshot->held_releases, 0));
    g_cond_broadcast(&snapshot->changed);
}

static gboolean memory_end(VmsnapSnapshot *base, gboolean aborted, gboolean commit, GError **error) {
    (void)aborted;
    (void)commit;
    (void)error;
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    snapshot->ended = TRUE;
    let_releases_go_locked(snapshot);
    g_cond_broadcast(&snapshot->changed);
    g_mutex_unlock(&snapshot->lock);
    for (int i = 0; i < N_THREADS; i++)
        (void)g_thread_join(g_steal_pointer(&snapshot->threads[i]));
    return TRUE;
}

static void memory_free(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    for (guint i = 0; i < base->disks->len; i++) {
        MemoryDisk *disk = g_ptr_array_index(base->disks, i);
        g_array_unref(disk->extents);
        g_clear_pointer(&disk->changes, g_array_unref);
        g_clear_pointer(&disk->released, g_hash_table_unref);
    }
    vmsnap_snapshot_clear(base);
    g_ptr_array_unref(snapshot->calls);
    g_ptr_array_unref(snapshot->held_releases);
    g_rand_free(snapshot->random);
    g_cond_clear(&snapshot->changed);
    g_mutex_clear(&snapshot->lock);
    g_free(snapshot);
}

static gboolean memory_scratch(VmsnapDisk *base, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes) {
    const MemoryDisk *disk = (const MemoryDisk *)base;
    *ret_used_bytes = disk->scratch_used_bytes;
    *ret_left_bytes = disk->scratch_left_bytes;
    return disk->scratch_left_bytes > 0;
}

void memory_disk_set_scratch(VmsnapDisk *base, uint64_t used_bytes, uint64_t left_bytes) {
    MemoryDisk *disk = (MemoryDisk *)base;
    disk->scratch_used_bytes = used_bytes;
    disk->scratch_left_bytes = left_bytes;
}

static const VmsnapBackend memory_backend = {
    .name = "memory",
    .end = memory_end,
    .free = memory_free,
    .read = memory_read,
    .extents = memory_extents,
    .scratch = memory_scratch,
    .release = memory_release,
};

VmsnapSnapshot *memory_snapshot_new(const MemoryFaults *faults) {
    MemorySnapshot *snapshot = g_new0(MemorySnapshot, 1);
    vmsnap_snapshot_init(&snapshot->base, &memory_backend);
    snapshot->base.uuid = g_strdup("6f1c2d3e-0000-4000-8000-000000000001");
    snapshot->base.machine = g_strdup("vm1");
    snapshot->base.machine_uuid = g_strdup("6f1c2d3e-0000-4000-8000-00000000000a");
    snapshot->base.instant_ns = INT64_C(1700000000123456789);
    if (faults)
        snapshot->faults = *faults;
    g_mutex_init(&snapshot->lock);
    g_cond_init(&snapshot->changed);
    snapshot->calls = g_ptr_array_new();
    snapshot->held_releases = g_ptr_array_new();
    snapshot->random = g_rand_new_with_seed((guint32)g_test_rand_int());
    for (int i = 0; i < N_THREADS; i++)
        snapshot->threads[i] = g_thread_new("memory-backend", answer_thread, snapshot);
    return &snapshot->base;
}

VmsnapDisk *memory_snapshot_add_disk(VmsnapSnapshot *snapshot, const char *name, GArray *extents) {
    MemoryDisk *disk = g_new0(MemoryDisk, 1);
    disk->base.snapshot = snapshot;
    disk->base.name = g_strdup(name);
    disk->base.source = g_strdup_printf("/images/%s.qcow2", name);
    for (guint i = 0; i < extents->len; i++)
        disk->base.size_bytes += g_array_index(extents, VmsnapExtent, i).length_bytes;
    disk->extents = extents;
    disk->seed = random_below(UINT64_MAX);
    g_ptr_array_add(snapshot->disks, disk);
    return &disk->base;
}

void memory_disk_set_changes(VmsnapDisk *base, const char *since, GArray *changes) {
    MemoryDisk *disk = (MemoryDisk *)base;
    base->since = g_strdup(since);
    disk->changes = changes;
}

void memory_disk_allow_release(VmsnapDisk *base) {
    MemoryDisk *disk = (MemoryDisk *)base;
    base->can_release = TRUE;
    disk->released = g_hash_table_new(NULL, NULL);
}

gboolean memory_disk_is_released(VmsnapDisk *disk, uint64_t offset, uint64_t length) {
    MemorySnapshot *snapshot = (MemorySnapshot *)disk->snapshot;
    g_mutex_lock(&snapshot->lock);
    gboolean released = released_locked((MemoryDisk *)disk, offset, length, TRUE);
    g_mutex_unlock(&snapshot->lock);
    return released;
}

void memory_snapshot_hold(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    snapshot->held = TRUE;
    g_mutex_unlock(&snapshot->lock);
}

void memory_snapshot_release(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    snapshot->held = FALSE;
    g_cond_broadcast(&snapshot->changed);
    g_mutex_unlock(&snapshot->lock);
}

void memory_snapshot_hold_releases(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    snapshot->releases_held = TRUE;
    g_mutex_unlock(&snapshot->lock);
}

void memory_snapshot_release_releases(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    let_releases_go_locked(snapshot);
    g_mutex_unlock(&snapshot->lock);
}

MemoryCounts memory_snapshot_count(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    MemoryCounts counts = snapshot->counts;
    g_mutex_unlock(&snapshot->lock);
    return counts;
}

void memory_snapshot_wait_idle(VmsnapSnapshot *base) {
    MemorySnapshot *snapshot = (MemorySnapshot *)base;
    g_mutex_lock(&snapshot->lock);
    while (snapshot->counts.outstanding > 0)
        g_cond_wait(&snapshot->changed, &snapshot->lock);
    g_mutex_unlock(&snapshot->lock);
}

void memory_snapshot_end(VmsnapSnapshot *snapshot) {
    g_assert_true(vmsnap_snapshot_end(snapshot, FALSE, FALSE, NULL));
    g_assert_cmpuint(memory_snapshot_count(snapshot).outstanding, ==, 0);
}
