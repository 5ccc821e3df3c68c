/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From any state back to where only the record and the directories are left: libvirt_snapshot.h has the states. */
#include "libvirt_checkpoint.h"
#include "libvirt_snapshot.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <string.h>

/* QEMU pauses a guest some time after its write has failed. */
#define PAUSE_LAG_MS 500
/* For a checkpoint to be settled, if ending the job took all the time there was. */
#define MIN_SETTLE_MS 1000
/* Nobody saw whether a freeze was still on its way to the agent, or in the guest's kernel. */
#define FREEZE_SETTLE_US 1000000
#define N_SETTLING_THAWS 5

void vmsnap_libvirt_clear_frozen(VmsnapLibvirtSnapshot *snapshot) {
    snapshot->record->frozen = FALSE;
    (void)vmsnap_record_update(snapshot->record_fd, snapshot->record);
}

VmsnapJob vmsnap_libvirt_job_of(const VmsnapRecord *record, virConnectPtr connection, unsigned timeout_ms) {
    return (VmsnapJob){
        .connection = connection,
        .uri = record->connect_uri,
        .domain_uuid = record->machine_uuid,
        .socket = record->socket,
        .may_resume = record->resume,
        .timeout_ms = timeout_ms,
    };
}

static void error_add_leftovers(const VmsnapRecord *record, GError **error) {
    if (!error || !*error)
        return;
    g_autofree char *message = g_strdup_printf(
        "%s; the backup job, '%s' and '%s' remain, and vmsnap's guardian goes on trying to clear them: see "
        "'journalctl -t vmsnap', or end the job with 'virsh domjobabort %s' when libvirt is well again",
        (*error)->message, record->runtime_dir, record->scratch_dir, record->machine);
    g_clear_error(error);
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, message);
}

/* Ends the job. Returns: FALSE with @error set if it may still run. */
static gboolean snapshot_end_job(VmsnapLibvirtSnapshot *snapshot, GError **error) {
    if (!snapshot->record->job)
        return TRUE;
    VmsnapJob job = vmsnap_libvirt_job_of(snapshot->record, snapshot->connection, snapshot->timeout_ms);
    job.may_be_beginning = virConnectIsAlive(snapshot->connection) <= 0;
    /* One that broke may have had the guest paused, and one that did not, has not. */
    job.pause_lag_ms = vmsnap_snapshot_is_broken(&snapshot->base) ? PAUSE_LAG_MS : 0;
    VmsnapJobEnd end = vmsnap_libvirt_end_job(&job, error);
    if (end == VMSNAP_JOB_LOST)
        vmsnap_snapshot_break(&snapshot->base, "the guest was stopped");
    else if (end == VMSNAP_JOB_GONE)
        vmsnap_snapshot_break(&snapshot->base, "somebody else ended the backup job");
    snapshot->record->job = end == VMSNAP_JOB_FAILED;
    if (snapshot->record->job)
        error_add_leftovers(snapshot->record, error);
    else
        vmsnap_libvirt_remove_scratch(snapshot);
    return !snapshot->record->job;
}

static gboolean snapshot_end_quiesce(VmsnapLibvirtSnapshot *snapshot, GError **error) {
    if (vmsnap_quiesce_free(g_steal_pointer(&snapshot->quiesce)))
        snapshot->record->frozen = FALSE;
    if (snapshot->record->frozen)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to see the filesystems of domain '%s' thawed: the guest agent does not answer; it is tried "
                    "again, or thaw them with 'virsh domfsthaw %s'",
                    snapshot->base.machine, snapshot->base.machine);
    return !snapshot->record->frozen;
}

static VmsnapUnsettled unsettled_of(const VmsnapRecord *record, virConnectPtr connection, gint64 deadline_us) {
    gint64 left_ms = (deadline_us - g_get_monotonic_time()) / 1000;
    return (VmsnapUnsettled){
        .connection = connection,
        .uri = record->connect_uri,
        .domain_uuid = record->machine_uuid,
        .name = record->checkpoint,
        .snapshot = record->uuid,
        .description = record->commit,
        .timeout_ms = (unsigned)MAX(left_ms, MIN_SETTLE_MS),
    };
}

static void record_clear_checkpoint(VmsnapRecord *record) {
    g_clear_pointer(&record->checkpoint, g_free);
    g_clear_pointer(&record->commit, g_free);
}

static void snapshot_prune_checkpoints(VmsnapLibvirtSnapshot *snapshot) {
    g_autoptr(GError) error = NULL;
    if (snapshot->keep_checkpoints > 0 &&
        !vmsnap_libvirt_prune_checkpoints(snapshot->domain, snapshot->keep_checkpoints, &error))
        g_warning("%s", error->message);
}

/*
 * From when the record says so, the snapshot is complete and its checkpoint committed, even if it is somebody else who
 * brings that about: what umount tells and what the next backup begins from must be the same.
 */
static gboolean snapshot_commit_checkpoint(VmsnapLibvirtSnapshot *snapshot, gint64 deadline_us, GError **error) {
    VmsnapRecord *record = snapshot->record;
    record->commit = vmsnap_checkpoint_describe(&snapshot->base, TRUE);
    record->outcome = g_strdup(VMSNAP_OUTCOME_COMPLETE);
    gboolean decided = vmsnap_record_update(snapshot->record_fd, record);
    const VmsnapUnsettled unsettled = unsettled_of(record, snapshot->connection, deadline_us);
    gboolean committed = decided && vmsnap_libvirt_settle_checkpoint(&unsettled, error);
    if (!decided)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to commit checkpoint '%s': the record beside '%s' cannot be written; free some space there",
                    record->checkpoint, record->runtime_dir);
    if (committed) {
        record_clear_checkpoint(record);
        snapshot_prune_checkpoints(snapshot);
    }
    g_clear_pointer(&record->commit, g_free);
    g_clear_pointer(&record->outcome, g_free);
    return committed;
}

/* While the job runs, the guardian goes on trying to end it, and does this then. */
static gboolean snapshot_delete_checkpoint(VmsnapLibvirtSnapshot *snapshot, gint64 deadline_us, GError **error) {
    VmsnapRecord *record = snapshot->record;
    if (!record->checkpoint || record->job)
        return TRUE;
    const VmsnapUnsettled unsettled = unsettled_of(record, snapshot->connection, deadline_us);
    gboolean deleted = vmsnap_libvirt_settle_checkpoint(&unsettled, error);
    if (deleted)
        record_clear_checkpoint(record);
    return deleted;
}

static void snapshot_close_disks(VmsnapLibvirtSnapshot *snapshot) {
    if (snapshot->threads)
        vmsnap_io_threads_stop(snapshot->threads);
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        VmsnapLibvirtDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        if (disk->pool)
            vmsnap_nbd_pool_close(disk->pool);
    }
}

/* @uncommitted: the checkpoint was to be kept, and will not be */
static void record_note_outcome(VmsnapLibvirtSnapshot *snapshot, gboolean aborted, gboolean uncommitted,
                                const GError *error) {
    VmsnapRecord *record = snapshot->record;
    record->reason = vmsnap_snapshot_dup_break_reason(&snapshot->base);
    if (record->reason) {
        record->outcome = g_strdup(VMSNAP_OUTCOME_BROKEN);
    } else if (error) {
        record->outcome = g_strdup(uncommitted ? VMSNAP_OUTCOME_UNCOMMITTED : VMSNAP_OUTCOME_LEFTOVER);
        record->reason = g_strdup(error->message);
    } else {
        record->outcome = g_strdup(aborted ? VMSNAP_OUTCOME_ABORTED : VMSNAP_OUTCOME_COMPLETE);
    }
}

gboolean vmsnap_libvirt_release(VmsnapLibvirtSnapshot *snapshot, gboolean aborted, gboolean commit, GError **error) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)snapshot->timeout_ms * 1000;
    vmsnap_libvirt_watch_free(g_steal_pointer(&snapshot->watch));
    snapshot_close_disks(snapshot);
    g_autoptr(GError) first_error = NULL;
    (void)snapshot_end_job(snapshot, &first_error);
    (void)snapshot_end_quiesce(snapshot, first_error ? NULL : &first_error);
    gboolean wanted = commit && snapshot->record->checkpoint && !vmsnap_snapshot_is_broken(&snapshot->base);
    gboolean committed = wanted && !first_error && snapshot_commit_checkpoint(snapshot, deadline_us, &first_error);
    (void)snapshot_delete_checkpoint(snapshot, first_error ? 0 : deadline_us, first_error ? NULL : &first_error);
    if (snapshot->published) {
        record_note_outcome(snapshot, aborted, wanted && !committed, first_error);
        vmsnap_record_update(snapshot->record_fd, snapshot->record);
    }
    gboolean released = !first_error;
    if (first_error)
        g_propagate_error(error, g_steal_pointer(&first_error));
    return released;
}

static gboolean machine_thaw(const VmsnapRecord *record, GError **error) {
    return vmsnap_libvirt_thaw(NULL, record->connect_uri, record->machine_uuid, error);
}

static gboolean recover_thaw(VmsnapRecord *record, GError **error) {
    if (!record->frozen)
        return TRUE;
    record->frozen = !machine_thaw(record, error);
    for (unsigned i = 0; i < N_SETTLING_THAWS && !record->frozen; i++) {
        g_usleep(FREEZE_SETTLE_US);
        record->frozen = !machine_thaw(record, error);
    }
    return !record->frozen;
}

/* Returns: FALSE with @error set if it is to be tried again; what can never be committed is to be deleted from then on.
 */
static gboolean recover_commit(VmsnapRecord *record, GError **error) {
    const VmsnapUnsettled unsettled = unsettled_of(record, NULL, 0);
    g_autoptr(GError) commit_error = NULL;
    if (vmsnap_libvirt_settle_checkpoint(&unsettled, &commit_error)) {
        record_clear_checkpoint(record);
        return TRUE;
    }
    if (!g_error_matches(commit_error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN)) {
        g_propagate_error(error, g_steal_pointer(&commit_error));
        return FALSE;
    }
    g_clear_pointer(&record->commit, g_free);
    g_free(record->outcome);
    g_free(record->reason);
    record->outcome = g_strdup(VMSNAP_OUTCOME_UNCOMMITTED);
    record->reason = g_strdup(commit_error->message);
    return TRUE;
}

static gboolean recover_checkpoint(VmsnapRecord *record, GError **error) {
    if (!record->checkpoint || record->job)
        return !record->checkpoint;
    if (record->commit && !recover_commit(record, error))
        return FALSE;
    if (!record->checkpoint)
        return TRUE;
    const VmsnapUnsettled unsettled = unsettled_of(record, NULL, 0);
    if (vmsnap_libvirt_settle_checkpoint(&unsettled, error))
        record_clear_checkpoint(record);
    return !record->checkpoint;
}

/* The guest first; of that the job, since an agent may take for ever to answer. */
gboolean vmsnap_libvirt_recover(VmsnapRecord *record, GError **error) {
    g_autoptr(GError) first_error = NULL;
    VmsnapJob job = vmsnap_libvirt_job_of(record, NULL, (unsigned)CLAMP(record->timeout_ms, 1, G_MAXINT));
    job.may_be_beginning = TRUE;
    job.pause_lag_ms = PAUSE_LAG_MS;
    record->job = record->job && vmsnap_libvirt_end_job(&job, &first_error) == VMSNAP_JOB_FAILED;
    (void)recover_thaw(record, first_error ? NULL : &first_error);
    (void)recover_checkpoint(record, first_error ? NULL : &first_error);
    if (!vmsnap_record_has_left(record))
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&first_error));
    return FALSE;
}
