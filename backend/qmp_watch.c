/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU gives a snapshot up without a word when it cannot keep old data: from then on, all reads of that disk fail. So
 * the last bytes of each disk, which are never released, are read again and again. Scratch is looked at as well, so
 * that it is the snapshot that goes before it fills up a filesystem that others need.
 *
 * The monitor is not watched, since it would not be there for others then. It is used when there is something to end.
 */
#include "qmp_snapshot.h"
#include "room.h"
#include "vmsnap/thread.h"

/* Between two looks whether QEMU keeps the snapshot. */
#define KEPT_INTERVAL_US G_USEC_PER_SEC
/* For one try to take everything out: there are more of them, and they must not keep an end waiting for long. */
#define CLEAR_TIMEOUT_MS 3000
#define CLEAR_INTERVAL_MS 1000
#define PROBE_BYTES 512

struct VmsnapQmpWatch {
    VmsnapQmpSnapshot *snapshot;
    GThread *thread;
    GMutex lock;
    GCond changed;
    gboolean stopped; /* guarded by lock */

    gint64 kept_us; /* these are the thread's: when that was looked at last */
    gboolean ended;
    gboolean warned;
};

/* Reads of one byte range a disk, all under way together. */
typedef struct {
    GMutex lock;
    GCond changed;
    guint n_left; /* these are guarded by lock */
    gboolean failed;
} Probe;

static void probe_done(int error, gpointer user_data) {
    Probe *probe = user_data;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&probe->lock);
    probe->failed = probe->failed || error;
    if (--probe->n_left == 0)
        g_cond_signal(&probe->changed);
}

static void probe_wait(Probe *probe) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&probe->lock);
    while (probe->n_left > 0)
        g_cond_wait(&probe->changed, &probe->lock);
}

static void break_for_loss(VmsnapSnapshot *snapshot) {
    VmsnapRoom room = {0};
    (void)vmsnap_room_measure(snapshot, 0, 0, &room);
    vmsnap_snapshot_break(snapshot,
                          "QEMU gave the snapshot up, since scratch was full, failed, or took longer than 4 s for what "
                          "the guest was overwriting, or the disk cannot be read at its end (%" G_GUINT64_FORMAT
                          " MiB left in its filesystem), and the guest went on; give it more room, or a faster place, "
                          "with -o scratch=DIR",
                          room.left_bytes >> 20);
}

void vmsnap_qmp_check_kept(VmsnapQmpSnapshot *snapshot) {
    Probe probe = {.n_left = snapshot->base.disks->len};
    g_autofree uint8_t *buffer = g_malloc((gsize)probe.n_left * PROBE_BYTES);
    g_mutex_init(&probe.lock);
    g_cond_init(&probe.changed);
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        VmsnapDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        uint64_t length = MIN(disk->size_bytes, PROBE_BYTES);
        if (length > 0)
            vmsnap_disk_read(disk, buffer + (gsize)i * PROBE_BYTES, length, disk->size_bytes - length, probe_done,
                             &probe);
        else
            probe_done(0, &probe);
    }
    probe_wait(&probe);
    g_cond_clear(&probe.changed);
    g_mutex_clear(&probe.lock);
    if (probe.failed)
        break_for_loss(&snapshot->base);
}

/*
 * The end cannot wait for somebody to unmount: until then QEMU would go on to fill scratch. Whoever has the right in
 * this process's place writes the record, which nobody else does before the watch is gone.
 */
static void watch_clear(VmsnapQmpWatch *watch) {
    VmsnapQmpSnapshot *snapshot = watch->snapshot;
    g_autoptr(GError) error = NULL;
    VmsnapQmpClearing clearing =
        vmsnap_qmp_clear(snapshot->record, MIN(snapshot->timeout_ms, CLEAR_TIMEOUT_MS), &error);
    if (clearing == VMSNAP_QMP_DENIED && snapshot->clear && snapshot->clear(snapshot->clear_data))
        clearing = VMSNAP_QMP_CLEARED;
    watch->ended = clearing == VMSNAP_QMP_CLEARED || clearing == VMSNAP_QMP_GONE;
    if (watch->ended) {
        snapshot->record->job = FALSE;
        (void)vmsnap_record_update(snapshot->record_fd, snapshot->record);
        vmsnap_qmp_remove_scratch(snapshot);
    } else if (error && !watch->warned) {
        g_warning("%s; it is tried again", error->message);
        watch->warned = TRUE;
    }
}

/* Returns: in how many milliseconds to look again. */
static unsigned watch_look(VmsnapQmpWatch *watch) {
    VmsnapQmpSnapshot *snapshot = watch->snapshot;
    VmsnapRoom room;
    gint64 now_us = g_get_monotonic_time();
    if (!vmsnap_snapshot_is_broken(&snapshot->base) && now_us - watch->kept_us >= KEPT_INTERVAL_US) {
        watch->kept_us = now_us;
        vmsnap_qmp_check_kept(snapshot);
    }
    gboolean measured =
        vmsnap_room_measure(&snapshot->base, snapshot->scratch_reserve_bytes, snapshot->scratch_max_bytes, &room);
    if (measured && room.room_bytes == 0)
        vmsnap_room_break(&snapshot->base, &room, "the snapshot was given up");
    if (!vmsnap_snapshot_is_broken(&snapshot->base))
        return measured ? vmsnap_room_get_interval_ms(&room) : CLEAR_INTERVAL_MS;
    watch_clear(watch);
    return CLEAR_INTERVAL_MS;
}

static gboolean watch_wait(VmsnapQmpWatch *watch, unsigned interval_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)interval_ms * 1000;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&watch->lock);
    while (!watch->stopped)
        if (!g_cond_wait_until(&watch->changed, &watch->lock, deadline_us))
            break;
    return !watch->stopped;
}

static gpointer watch_run(gpointer data) {
    VmsnapQmpWatch *watch = data;
    unsigned interval_ms = 0;
    while (watch_wait(watch, interval_ms) && !watch->ended)
        interval_ms = watch_look(watch);
    return NULL;
}

VmsnapQmpWatch *vmsnap_qmp_watch_new(VmsnapQmpSnapshot *snapshot, GError **error) {
    VmsnapQmpWatch *watch = g_new0(VmsnapQmpWatch, 1);
    watch->snapshot = snapshot;
    g_mutex_init(&watch->lock);
    g_cond_init(&watch->changed);
    watch->thread = vmsnap_thread_try_new("vmsnap-watch", watch_run, watch, error);
    if (watch->thread)
        return watch;
    vmsnap_qmp_watch_free(watch);
    return NULL;
}

void vmsnap_qmp_watch_free(VmsnapQmpWatch *watch) {
    if (!watch)
        return;
    g_mutex_lock(&watch->lock);
    watch->stopped = TRUE;
    g_cond_signal(&watch->changed);
    g_mutex_unlock(&watch->lock);
    if (watch->thread)
        (void)g_thread_join(watch->thread);
    g_cond_clear(&watch->changed);
    g_mutex_clear(&watch->lock);
    g_free(watch);
}
