/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What libvirt's snapshots are to others: the table, and what is done while one lives. */
#include "libvirt_backend.h"

#include "libvirt_snapshot.h"
#include "scratch.h"
#include "vmsnap/error.h"

#include <string.h>
#include <unistd.h>

/* For one try of the watch to end the job: it has more of them, and must not keep an end waiting for long. */
#define WATCH_TIMEOUT_MS 5000

void vmsnap_libvirt_free(VmsnapSnapshot *base) {
    VmsnapLibvirtSnapshot *snapshot = (VmsnapLibvirtSnapshot *)base;
    for (guint i = 0; i < base->disks->len; i++) {
        VmsnapLibvirtDisk *disk = g_ptr_array_index(base->disks, i);
        vmsnap_nbd_pool_free(disk->pool);
        g_free(disk->scratch_name);
    }
    vmsnap_io_threads_free(snapshot->threads);
    vmsnap_nbd_server_free(snapshot->server);
    if (snapshot->scratch_fd >= 0)
        (void)close(snapshot->scratch_fd);
    vmsnap_domain_free(snapshot->facts);
    vmsnap_record_free(snapshot->record);
    if (snapshot->domain)
        (void)virDomainFree(snapshot->domain);
    if (snapshot->connection)
        (void)virConnectClose(snapshot->connection);
    vmsnap_snapshot_clear(base);
    g_free(snapshot);
}

void vmsnap_libvirt_remove_scratch(VmsnapLibvirtSnapshot *snapshot) {
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        const VmsnapLibvirtDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        vmsnap_scratch_remove_image(snapshot->scratch_fd, disk->scratch_name);
    }
}

/* A guest that was frozen too late may be thawed only now; then nobody needs to do it any more. Called by the watch. */
static void quiesce_settle(gpointer user_data) {
    VmsnapLibvirtSnapshot *snapshot = user_data;
    if (snapshot->record->frozen && vmsnap_quiesce_is_over(snapshot->quiesce))
        vmsnap_libvirt_clear_frozen(snapshot);
}

/* Whoever ran out of room needs it now, and the mount may stay for long. Called by the watch. */
static void scratch_free(gpointer user_data) {
    vmsnap_libvirt_remove_scratch(user_data);
}

static gboolean libvirt_start(VmsnapSnapshot *base, GError **error) {
    VmsnapLibvirtSnapshot *snapshot = (VmsnapLibvirtSnapshot *)base;
    const VmsnapLibvirtWatchOptions watch_options = {
        .job = vmsnap_libvirt_job_of(snapshot->record, NULL, MIN(snapshot->timeout_ms, WATCH_TIMEOUT_MS)),
        .reserve_bytes = snapshot->scratch_reserve_bytes,
        .max_bytes = snapshot->scratch_max_bytes,
        .settle = quiesce_settle,
        .ended = scratch_free,
        .user_data = snapshot,
    };
    if (!vmsnap_io_threads_start(snapshot->threads, error))
        return FALSE;
    snapshot->watch = vmsnap_libvirt_watch_new(base, &watch_options, error);
    return snapshot->watch != NULL;
}

static gboolean libvirt_end(VmsnapSnapshot *base, gboolean aborted, gboolean commit, GError **error) {
    VmsnapLibvirtSnapshot *snapshot = (VmsnapLibvirtSnapshot *)base;
    if (!vmsnap_libvirt_release(snapshot, aborted, commit, error))
        return FALSE;
    g_autofree char *break_reason = vmsnap_snapshot_dup_break_reason(base);
    if (!break_reason)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN, "the snapshot of domain '%s' broke while it was mounted: %s",
                base->machine, break_reason);
    return FALSE;
}

/* Whatever no other backend claims is the name, UUID or id of a domain. */
static gboolean libvirt_handles(const char *source) {
    return !strstr(source, "://");
}

static void libvirt_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                         gpointer user_data) {
    vmsnap_nbd_pool_read(((VmsnapLibvirtDisk *)disk)->pool, buffer, length, offset, done, user_data);
}

static void libvirt_extents(VmsnapDisk *disk, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                            VmsnapExtentsFunc done, gpointer user_data) {
    vmsnap_nbd_pool_extents(((VmsnapLibvirtDisk *)disk)->pool, question, offset, length, done, user_data);
}

static gboolean libvirt_scratch(VmsnapDisk *disk, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes) {
    const VmsnapLibvirtSnapshot *snapshot = (const VmsnapLibvirtSnapshot *)disk->snapshot;
    return vmsnap_scratch_measure(snapshot->scratch_fd, ((VmsnapLibvirtDisk *)disk)->scratch_name, ret_used_bytes,
                                  ret_left_bytes);
}

static const VmsnapRefusal refuses[] = {
    {"agent", "libvirt knows where it is"},
    {"release", "libvirt's exports can only be read; it needs qmp:SOCKET"},
    {NULL, NULL},
};

const VmsnapBackend vmsnap_libvirt_backend = {
    .name = "libvirt",
    .words = {.noun = "domain", .host = "libvirt", .inspect = "virsh domjobinfo"},
    .refuses = refuses,
    .handles = libvirt_handles,
    .begin = vmsnap_libvirt_begin,
    .start = libvirt_start,
    .end = libvirt_end,
    .recover = vmsnap_libvirt_recover,
    .free = vmsnap_libvirt_free,
    .read = libvirt_read,
    .extents = libvirt_extents,
    .scratch = libvirt_scratch,
};
