/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "map_wait.h"

#include "vmsnap/error.h"

#define INTERRUPTED_CHECK_US INT64_C(50000)

/* For how many disks the map is not complete; shared with the scans, which may outlive whoever waits. */
typedef struct {
    GMutex lock;
    GCond changed;
    guint n_disks; /* guarded by lock */
} Unmapped;

static void unmapped_clear(gpointer data) {
    Unmapped *unmapped = data;
    g_mutex_clear(&unmapped->lock);
    g_cond_clear(&unmapped->changed);
}

static void unmapped_release(gpointer data) {
    g_atomic_rc_box_release_full(data, unmapped_clear);
}

static void unmapped_count_down(gpointer user_data) {
    Unmapped *unmapped = user_data;
    g_mutex_lock(&unmapped->lock);
    unmapped->n_disks--;
    g_cond_signal(&unmapped->changed);
    g_mutex_unlock(&unmapped->lock);
    unmapped_release(unmapped);
}

static Unmapped *unmapped_new(const GPtrArray *disks) {
    Unmapped *unmapped = g_atomic_rc_box_new0(Unmapped);
    g_mutex_init(&unmapped->lock);
    g_cond_init(&unmapped->changed);
    unmapped->n_disks = disks->len;
    for (guint i = 0; i < disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(disks, i);
        vmsnap_scan_wait(disk->scan, G_MAXINT64, unmapped_count_down, g_atomic_rc_box_acquire(unmapped));
    }
    return unmapped;
}

/* Returns: FALSE if it was interrupted before every map was complete, or certain never to be. */
static gboolean unmapped_wait(Unmapped *unmapped, VmsnapInterruptedFunc interrupted, gpointer user_data) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&unmapped->lock);
    while (unmapped->n_disks > 0) {
        if (interrupted(user_data))
            return FALSE;
        (void)g_cond_wait_until(&unmapped->changed, &unmapped->lock, g_get_monotonic_time() + INTERRUPTED_CHECK_US);
    }
    return TRUE;
}

static gboolean check_maps(VmsnapSnapshot *snapshot, const GPtrArray *disks, GError **error) {
    for (guint i = 0; i < disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(disks, i);
        if (vmsnap_scan_is_complete(disk->scan) && !vmsnap_scan_has_failed(disk->scan))
            continue;
        g_autofree char *reason = vmsnap_snapshot_dup_break_reason(snapshot);
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to learn which parts of disk '%s' are data: %s",
                    disk->disk->name, reason ? reason : "the NBD server does not tell; use format=raw");
        return FALSE;
    }
    return TRUE;
}

gboolean vmsnap_map_wait(VmsnapSnapshot *snapshot, const GPtrArray *disks, VmsnapInterruptedFunc interrupted,
                         gpointer user_data, GError **error) {
    Unmapped *unmapped = unmapped_new(disks);
    gboolean waited = unmapped_wait(unmapped, interrupted, user_data);
    unmapped_release(unmapped);
    if (!waited)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to mount '%s': interrupted before it was known which parts of its disks are data",
                    snapshot->machine);
    return waited && check_maps(snapshot, disks, error);
}
