/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cleanup.h"

#include "mount_point.h"
#include "report.h"
#include "utab.h"
#include "vmsnap/backend.h"
#include "vmsnap/thread.h"

#include <stdlib.h>

/* For what is done beside waiting for the machine's host. */
#define GRACE_MS 3000

/* The guest first: to look at a mount point may take long, if it lies on another filesystem that hangs. */
gboolean vmsnap_cleanup_record(int fd, VmsnapRecord *record, GError **error) {
    gboolean recovered = vmsnap_snapshot_recover(fd, record, error);
    if (record->mount_point) {
        vmsnap_mount_point_clear_dead(record->mount_point);
        /* After a lazy unmount, somebody else may have mounted there. */
        if (!vmsnap_mount_point_is_vmsnap(record->mount_point))
            vmsnap_utab_remove(record->mount_point);
    }
    return recovered && vmsnap_snapshot_remove_left(fd, record, error);
}

/* A clean-up that somebody waits for, but no longer than the timeout of the record that it is at. */
typedef struct {
    const char *machine;
    const char *mount_point;
    GMutex lock;
    GCond changed;
    gint64 deadline_us; /* these are guarded by lock */
    const char *host;   /* who is waited for; static */
    gboolean done;
    GError *error;
} Cleanup;

static void cleanup_wait_for(Cleanup *cleanup, const char *backend, int timeout_ms) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&cleanup->lock);
    cleanup->deadline_us = g_get_monotonic_time() + (gint64)(timeout_ms + GRACE_MS) * 1000;
    cleanup->host = vmsnap_backend_get_words(backend)->host;
}

static gboolean dead_clear(int fd, VmsnapRecord *record, gpointer user_data, GError **error) {
    if (user_data)
        cleanup_wait_for(user_data, record->backend, record->timeout_ms);
    if (!vmsnap_cleanup_record(fd, record, error))
        return FALSE;
    g_message("cleared what a dead mount of '%s' on '%s' had left", record->machine, record->mount_point);
    return TRUE;
}

gboolean vmsnap_cleanup_dead(const char *machine, const char *mount_point, GError **error) {
    return vmsnap_record_visit_dead(machine, mount_point, dead_clear, NULL, error);
}

static gpointer cleanup_run(gpointer data) {
    Cleanup *cleanup = data;
    g_autoptr(GError) error = NULL;
    (void)vmsnap_record_visit_dead(cleanup->machine, cleanup->mount_point, dead_clear, cleanup, &error);
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&cleanup->lock);
    cleanup->error = g_steal_pointer(&error);
    cleanup->done = TRUE;
    g_cond_signal(&cleanup->changed);
    return NULL;
}

static void cleanup_wait(Cleanup *cleanup, GError **error) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&cleanup->lock);
    while (!cleanup->done && g_get_monotonic_time() < cleanup->deadline_us)
        (void)g_cond_wait_until(&cleanup->changed, &cleanup->lock, cleanup->deadline_us);
    if (cleanup->error)
        g_propagate_error(error, g_steal_pointer(&cleanup->error));
    else if (!cleanup->done)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to clear what a dead mount has left: %s does not answer; see whether it is well, and "
                    "try 'mount.vmsnap --cleanup' again",
                    cleanup->host);
}

gboolean vmsnap_cleanup_dead_in_time(const char *machine, const char *mount_point, GError **error) {
    /* Never freed: a thread that hangs in libvirt goes on to use it, until the process exits. */
    Cleanup *cleanup = g_new0(Cleanup, 1);
    cleanup->machine = machine;
    cleanup->mount_point = mount_point;
    g_mutex_init(&cleanup->lock);
    g_cond_init(&cleanup->changed);
    cleanup_wait_for(cleanup, NULL, 0);
    g_autoptr(GError) first_error = NULL;
    GThread *thread = vmsnap_thread_try_new("vmsnap-cleanup", cleanup_run, cleanup, &first_error);
    if (thread) {
        g_thread_unref(thread);
        cleanup_wait(cleanup, &first_error);
    }
    if (!first_error)
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&first_error));
    return FALSE;
}

int vmsnap_cleanup_main(const char *machine) {
    g_autoptr(GError) error = NULL;
    if (!vmsnap_cleanup_dead_in_time(machine, NULL, &error) || (!machine && !vmsnap_scratch_sweep(&error)))
        return vmsnap_report_error(error);
    if (!machine || vmsnap_record_machine_is_free("clear up after", machine, machine, &error))
        return EXIT_SUCCESS;
    return vmsnap_report_error(error);
}
