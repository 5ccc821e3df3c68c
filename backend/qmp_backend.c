/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What snapshots of a QEMU without libvirt are to others: the table, and what is done while one lives. */
#include "qmp_backend.h"

#include "qmp_snapshot.h"
#include "scratch.h"
#include "vmsnap/error.h"

#include <string.h>
#include <unistd.h>

void vmsnap_qmp_snapshot_free(VmsnapSnapshot *base) {
    VmsnapQmpSnapshot *snapshot = (VmsnapQmpSnapshot *)base;
    for (guint i = 0; i < base->disks->len; i++) {
        VmsnapQmpDisk *disk = g_ptr_array_index(base->disks, i);
        vmsnap_nbd_pool_free(disk->pool);
        g_free(disk->scratch_name);
    }
    vmsnap_io_threads_free(snapshot->threads);
    vmsnap_nbd_server_free(snapshot->server);
    if (snapshot->scratch_fd >= 0)
        (void)close(snapshot->scratch_fd);
    vmsnap_qmp_graph_free(snapshot->graph);
    vmsnap_record_free(snapshot->record);
    vmsnap_snapshot_clear(base);
    g_free(snapshot);
}

void vmsnap_qmp_remove_scratch(VmsnapQmpSnapshot *snapshot) {
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        const VmsnapQmpDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        vmsnap_scratch_remove_image(snapshot->scratch_fd, disk->scratch_name);
    }
}

static gboolean qmp_start(VmsnapSnapshot *base, GError **error) {
    VmsnapQmpSnapshot *snapshot = (VmsnapQmpSnapshot *)base;
    if (!vmsnap_io_threads_start(snapshot->threads, error))
        return FALSE;
    snapshot->watch = vmsnap_qmp_watch_new(snapshot, error);
    return snapshot->watch != NULL;
}

static gboolean qmp_end(VmsnapSnapshot *base, gboolean aborted, gboolean commit, GError **error) {
    (void)commit;
    if (!vmsnap_qmp_snapshot_release((VmsnapQmpSnapshot *)base, aborted, error))
        return FALSE;
    g_autofree char *break_reason = vmsnap_snapshot_dup_break_reason(base);
    if (!break_reason)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN, "the snapshot of machine '%s' broke while it was mounted: %s",
                base->machine, break_reason);
    return FALSE;
}

static gboolean qmp_handles(const char *source) {
    return g_str_has_prefix(source, VMSNAP_QMP_SCHEME);
}

static void qmp_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                     gpointer user_data) {
    vmsnap_nbd_pool_read(((VmsnapQmpDisk *)disk)->pool, buffer, length, offset, done, user_data);
}

static void qmp_extents(VmsnapDisk *disk, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                        VmsnapExtentsFunc done, gpointer user_data) {
    vmsnap_nbd_pool_extents(((VmsnapQmpDisk *)disk)->pool, question, offset, length, done, user_data);
}

static void qmp_release(VmsnapDisk *disk, uint64_t offset, uint64_t length, VmsnapDoneFunc done, gpointer user_data) {
    vmsnap_nbd_pool_discard(((VmsnapQmpDisk *)disk)->pool, offset, length, done, user_data);
}

static gboolean qmp_scratch(VmsnapDisk *disk, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes) {
    const VmsnapQmpSnapshot *snapshot = (const VmsnapQmpSnapshot *)disk->snapshot;
    return vmsnap_scratch_measure(snapshot->scratch_fd, ((VmsnapQmpDisk *)disk)->scratch_name, ret_used_bytes,
                                  ret_left_bytes);
}

static char *qmp_resolve(const char *source) {
    g_autofree char *path = g_canonicalize_filename(source + strlen(VMSNAP_QMP_SCHEME), NULL);
    return g_strconcat(VMSNAP_QMP_SCHEME, path, NULL);
}

#define NO_CHANGES "what has changed is only known of libvirt's domains"

static const VmsnapRefusal refuses[] = {
    {"connect", "it is no domain of libvirt's"},
    {"checkpoint", NO_CHANGES},
    {"since", NO_CHANGES},
    {"incremental", NO_CHANGES},
    {"keep_checkpoints", NO_CHANGES},
    {"commit", NO_CHANGES},
    {"backing", NO_CHANGES},
    {"only_changed", NO_CHANGES},
    {NULL, NULL},
};

const VmsnapBackend vmsnap_qmp_backend = {
    .name = "qmp",
    .words = {.noun = "machine", .host = "QEMU"},
    .refuses = refuses,
    .handles = qmp_handles,
    .resolve = qmp_resolve,
    .begin = vmsnap_qmp_begin,
    .start = qmp_start,
    .end = qmp_end,
    .recover = vmsnap_qmp_recover,
    .free = vmsnap_qmp_snapshot_free,
    .read = qmp_read,
    .extents = qmp_extents,
    .scratch = qmp_scratch,
    .release = qmp_release,
};
