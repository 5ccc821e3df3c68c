/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What snapshots of a QEMU without libvirt are to others: the table, and what is done while one lives. */
#include "qmp_backend.h"

#include "extents.h"
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
        vmsnap_nbd_pool_free(disk->scratch);
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

/* A question about content, and what has come of it so far. */
typedef struct {
    VmsnapQmpDisk *disk;
    uint64_t offset;
    GArray *content; /* of VmsnapExtent, owned */
    VmsnapExtentsFunc done;
    gpointer user_data;
} Question;

static void question_free(Question *question) {
    g_array_unref(question->content);
    g_free(question);
}

static void scratch_told(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data) {
    Question *question = user_data;
    if (error) {
        question->done(error, NULL, 0, question->user_data);
    } else {
        const VmsnapExtent *content = (const VmsnapExtent *)(void *)question->content->data;
        g_autoptr(GArray) all = vmsnap_extents_overlay(content, question->content->len, extents, n_extents);
        question->done(0, (const VmsnapExtent *)(void *)all->data, all->len, question->user_data);
    }
    question_free(question);
}

static void content_told(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data) {
    Question *question = user_data;
    uint64_t length = 0;
    for (size_t i = 0; i < n_extents; i++)
        length += extents[i].length_bytes;
    if (error) {
        question->done(error, NULL, 0, question->user_data);
        question_free(question);
        return;
    }
    g_array_append_vals(question->content, extents, (guint)n_extents);
    vmsnap_nbd_pool_extents(question->disk->scratch, VMSNAP_EXTENTS_OF_CONTENT, question->offset, length, scratch_told,
                            question);
}

/*
 * QEMU tells of the present where the guest has written (see CLUSTER_BYTES in qmp_begin.c), so that zeroes of now could
 * hide data of the instant. These are in scratch then, which is asked after it: what was kept as data was data.
 */
static void qmp_extents(VmsnapDisk *disk, VmsnapExtentsQuestion kind, uint64_t offset, uint64_t length,
                        VmsnapExtentsFunc done, gpointer user_data) {
    Question *question = g_new0(Question, 1);
    question->disk = (VmsnapQmpDisk *)disk;
    question->offset = offset;
    question->content = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    question->done = done;
    question->user_data = user_data;
    vmsnap_nbd_pool_extents(question->disk->pool, kind, offset, length, content_told, question);
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
