/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From any state back to where only the record and the directories are left: qmp_snapshot.h has the states. */
#include "agent.h"
#include "json_socket.h"
#include "qmp_server.h"
#include "qmp_snapshot.h"
#include "scratch_probe.h"
#include "vmsnap/error.h"

#include <errno.h>

static gboolean is_nobody(int code) {
    return code == ENOENT || code == ECONNREFUSED;
}

/* Only the name of the monitor's socket may be gone: as long as our NBD server listens, QEMU lives. */
static gboolean qemu_is_gone(const VmsnapRecord *record) {
    int code;
    g_autoptr(VmsnapJsonSocket) monitor = vmsnap_json_socket_connect(record->connect_uri, 1, 0, &code);
    return !monitor && is_nobody(code) && vmsnap_qmp_server_look(record->socket) == VMSNAP_QMP_SERVER_NONE;
}

static VmsnapQmpClearing clearing_of_errno(const VmsnapRecord *record, int code) {
    if (is_nobody(code) && qemu_is_gone(record))
        return VMSNAP_QMP_GONE;
    return code == EACCES ? VMSNAP_QMP_DENIED : VMSNAP_QMP_FAILED;
}

static gboolean check_scratch(const VmsnapRecord *record, unsigned timeout_ms, GError **error) {
    if (!record->scratch_dir || vmsnap_scratch_answers(record->scratch_dir, timeout_ms))
        return TRUE;
    g_set_error(
        error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
        "failed to end the snapshot in machine '%s': scratch directory '%s' does not answer; it is tried again, "
        "since until then the machine would stand still for it; see what is wrong with that filesystem",
        record->machine, record->scratch_dir);
    return FALSE;
}

VmsnapQmpClearing vmsnap_qmp_clear(const VmsnapRecord *record, unsigned timeout_ms, GError **error) {
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_from_text(record->uuid, record->graph, error);
    if (!graph || !check_scratch(record, timeout_ms, error))
        return VMSNAP_QMP_FAILED;
    int code;
    vmsnap_qmp_graph_sync_images(graph, timeout_ms);
    g_autoptr(VmsnapQmp) qmp = vmsnap_qmp_connect(record->connect_uri, timeout_ms, &code, error);
    if (!qmp)
        return clearing_of_errno(record, code);
    if (vmsnap_qmp_graph_remove(graph, qmp, error) && vmsnap_qmp_server_stop(qmp, record->socket, error))
        return VMSNAP_QMP_CLEARED;
    g_prefix_error(error, "failed to end the snapshot in machine '%s': ", record->machine);
    return VMSNAP_QMP_FAILED;
}

static void error_add_leftovers(const VmsnapRecord *record, GError **error) {
    if (!error || !*error)
        return;
    g_autofree char *message =
        g_strdup_printf("%s; nodes in QEMU, '%s' and '%s' remain, and vmsnap's guardian goes on trying to clear them: "
                        "see 'journalctl -t vmsnap'",
                        (*error)->message, record->runtime_dir, record->scratch_dir);
    g_clear_error(error);
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, message);
}

/*
 * Where this process has given up the right to connect, the record still says that there is something to clear, and the
 * guardian does it. Returns: FALSE with @error set if it must be tried again.
 */
static gboolean snapshot_clear(VmsnapQmpSnapshot *snapshot, GError **error) {
    if (!snapshot->record->job)
        return TRUE;
    g_autoptr(GError) clear_error = NULL;
    VmsnapQmpClearing clearing = vmsnap_qmp_clear(snapshot->record, snapshot->timeout_ms, &clear_error);
    if (clearing == VMSNAP_QMP_GONE)
        vmsnap_snapshot_break(&snapshot->base, "the guest was stopped");
    snapshot->record->job = clearing == VMSNAP_QMP_FAILED || clearing == VMSNAP_QMP_DENIED;
    if (!snapshot->record->job)
        vmsnap_qmp_remove_scratch(snapshot);
    if (clearing != VMSNAP_QMP_FAILED)
        return TRUE;
    error_add_leftovers(snapshot->record, &clear_error);
    g_propagate_error(error, g_steal_pointer(&clear_error));
    return FALSE;
}

static void snapshot_close_disks(VmsnapQmpSnapshot *snapshot) {
    if (snapshot->threads)
        vmsnap_io_threads_stop(snapshot->threads);
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        VmsnapQmpDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        if (disk->pool)
            vmsnap_nbd_pool_close(disk->pool);
        if (disk->scratch)
            vmsnap_nbd_pool_close(disk->scratch);
    }
}

static void record_note_outcome(VmsnapQmpSnapshot *snapshot, gboolean aborted, const GError *error) {
    VmsnapRecord *record = snapshot->record;
    record->reason = vmsnap_snapshot_dup_break_reason(&snapshot->base);
    if (record->reason) {
        record->outcome = g_strdup(VMSNAP_OUTCOME_BROKEN);
    } else if (error) {
        record->outcome = g_strdup(VMSNAP_OUTCOME_LEFTOVER);
        record->reason = g_strdup(error->message);
    } else {
        record->outcome = g_strdup(aborted ? VMSNAP_OUTCOME_ABORTED : VMSNAP_OUTCOME_COMPLETE);
    }
}

/* Whether QEMU has kept the snapshot to the end is asked when nobody reads any more, and before it is taken out. */
gboolean vmsnap_qmp_snapshot_release(VmsnapQmpSnapshot *snapshot, gboolean aborted, GError **error) {
    g_autoptr(GError) clear_error = NULL;
    gboolean was_started = snapshot->watch != NULL;
    vmsnap_qmp_watch_free(g_steal_pointer(&snapshot->watch));
    if (was_started)
        vmsnap_qmp_check_kept(snapshot);
    snapshot_close_disks(snapshot);
    gboolean cleared = snapshot_clear(snapshot, &clear_error);
    if (snapshot->published) {
        record_note_outcome(snapshot, aborted, clear_error);
        (void)vmsnap_record_update(snapshot->record_fd, snapshot->record);
    }
    if (clear_error)
        g_propagate_error(error, g_steal_pointer(&clear_error));
    return cleared;
}

/* Returns: FALSE with @error set if the guest may still be frozen. Without a QEMU there is no guest. */
static gboolean recover_thaw(VmsnapRecord *record, unsigned timeout_ms, GError **error) {
    if (!record->frozen)
        return TRUE;
    int code;
    g_autoptr(VmsnapAgent) agent = vmsnap_agent_connect(record->agent, timeout_ms, &code, error);
    gboolean gone = !agent && is_nobody(code) && qemu_is_gone(record);
    if (gone)
        g_clear_error(error);
    record->frozen = !gone && !(agent && vmsnap_agent_thaw(agent, error));
    return !record->frozen;
}

/* The guest first: to thaw it takes no more than an answer, to clear it may take scratch to come back. */
gboolean vmsnap_qmp_recover(VmsnapRecord *record, GError **error) {
    unsigned timeout_ms = (unsigned)CLAMP(record->timeout_ms, 1, G_MAXINT);
    g_autoptr(GError) first_error = NULL, clear_error = NULL;
    (void)recover_thaw(record, timeout_ms, &first_error);
    if (record->job) {
        VmsnapQmpClearing clearing = vmsnap_qmp_clear(record, timeout_ms, &clear_error);
        record->job = clearing == VMSNAP_QMP_FAILED || clearing == VMSNAP_QMP_DENIED;
    }
    if (!vmsnap_record_has_left(record))
        return TRUE;
    g_propagate_error(error, first_error ? g_steal_pointer(&first_error) : g_steal_pointer(&clear_error));
    return FALSE;
}
