/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "map_wait.h"

#include "vmsnap/error.h"

#define INTERRUPTED_CHECK_US INT64_C(50000)

/* How many maps are not complete; shared with the scans, which may outlive whoever waits. */
typedef struct {
    GMutex lock;
    GCond changed;
    guint n_maps; /* guarded by lock */
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
    unmapped->n_maps--;
    g_cond_signal(&unmapped->changed);
    g_mutex_unlock(&unmapped->lock);
    unmapped_release(unmapped);
}

static Unmapped *unmapped_new(const GPtrArray *scans) {
    Unmapped *unmapped = g_atomic_rc_box_new0(Unmapped);
    g_mutex_init(&unmapped->lock);
    g_cond_init(&unmapped->changed);
    unmapped->n_maps = scans->len;
    for (guint i = 0; i < scans->len; i++)
        vmsnap_scan_wait(g_ptr_array_index(scans, i), G_MAXINT64, unmapped_count_down,
                         g_atomic_rc_box_acquire(unmapped));
    return unmapped;
}

/* Returns: FALSE if it was interrupted before every map was complete, or certain never to be. */
static gboolean unmapped_wait(Unmapped *unmapped, VmsnapInterruptedFunc interrupted, gpointer user_data) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&unmapped->lock);
    while (unmapped->n_maps > 0) {
        if (interrupted(user_data))
            return FALSE;
        (void)g_cond_wait_until(&unmapped->changed, &unmapped->lock, g_get_monotonic_time() + INTERRUPTED_CHECK_US);
    }
    return TRUE;
}

static void set_map_error(const VmsnapScan *scan, VmsnapSnapshot *snapshot, GError **error) {
    gboolean of_content = vmsnap_scan_get_question(scan) == VMSNAP_EXTENTS_OF_CONTENT;
    g_autofree char *reason = vmsnap_snapshot_dup_break_reason(snapshot);
    const char *silent = of_content ? "the NBD server does not tell; use format=raw"
                                    : "the NBD server does not tell; mount without since= and incremental";
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to learn which parts of disk '%s' %s: %s",
                vmsnap_scan_get_disk(scan)->name, of_content ? "are data" : "have changed", reason ? reason : silent);
}

static gboolean check_maps(VmsnapSnapshot *snapshot, const GPtrArray *scans, GError **error) {
    for (guint i = 0; i < scans->len; i++) {
        const VmsnapScan *scan = g_ptr_array_index(scans, i);
        if (vmsnap_scan_is_complete(scan) && !vmsnap_scan_has_failed(scan))
            continue;
        set_map_error(scan, snapshot, error);
        return FALSE;
    }
    return TRUE;
}

gboolean vmsnap_map_wait(VmsnapSnapshot *snapshot, const GPtrArray *scans, VmsnapInterruptedFunc interrupted,
                         gpointer user_data, GError **error) {
    Unmapped *unmapped = unmapped_new(scans);
    gboolean waited = unmapped_wait(unmapped, interrupted, user_data);
    unmapped_release(unmapped);
    if (!waited)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to mount '%s': interrupted before it was known what is on its disks", snapshot->machine);
    return waited && check_maps(snapshot, scans, error);
}
