/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Exports that somebody else has begun: nothing is begun, and nothing is ended. What they show is for him to know, also
 * whether it is an instant; here it is only seen to that all is read from the same server.
 *
 * States: listed (what there is and is wanted is known), published (the record), open (connections), started (I/O
 * threads), ended. The record is only for who unmounts, and for how it ended: there is nothing that it has to undo. So
 * it names no machine that only one mount may have at a time.
 */
#include "export_backend.h"

#include "config.h"
#include "drive.h"
#include "export_names.h"
#include "io_threads.h"
#include "nbd_list.h"
#include "nbd_pool.h"
#include "nbd_uri.h"
#include "vmsnap/error.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define N_IO_THREADS 2
/* Each has connections, and memory for what is where on it. */
#define MAX_DISKS 256

/** An export of the server. The source of its base is a URI that names it. */
typedef struct {
    VmsnapDrive base;
    char *export_name;
} ExportDrive;

typedef struct {
    VmsnapDisk base;
    char *export_name;   /* owned */
    VmsnapNbdPool *pool; /* owned */
} ExportDisk;

typedef struct {
    VmsnapSnapshot base;
    VmsnapNbdServer *server;
    GPtrArray *drives;   /* of ExportDrive */
    gboolean lists_none; /* the server tells of no export; so there is only the one without a name to try */
    VmsnapIoThreads *threads;
    VmsnapRecord *record;
    int record_fd;      /* not owned */
    gboolean published; /* others see the record */
    gint64 deadline_us; /* of the begin */
    unsigned timeout_ms;
} ExportSnapshot;

static void drive_free(gpointer data) {
    ExportDrive *drive = data;
    vmsnap_drive_clear(&drive->base);
    g_free(drive->export_name);
    g_free(drive);
}

/* A name that is made of another, in the way of RFC 4122, and so the same each time. */
static char *uuid_of_uri(const char *uri) {
    static const uint8_t url_namespace[] = {0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1,
                                            0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8};
    uint8_t hash[20];
    gsize length = sizeof hash;
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_SHA1);
    g_checksum_update(checksum, url_namespace, sizeof url_namespace);
    g_checksum_update(checksum, (const guchar *)uri, (gssize)strlen(uri));
    g_checksum_get_digest(checksum, hash, &length);
    hash[6] = (hash[6] & 0x0f) | 0x50;
    hash[8] = (hash[8] & 0x3f) | 0x80;
    GString *uuid = g_string_new(NULL);
    for (size_t i = 0; i < 16; i++)
        g_string_append_printf(uuid, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", hash[i]);
    return g_string_free(uuid, FALSE);
}

static ExportSnapshot *snapshot_new(const VmsnapBeginOptions *options) {
    ExportSnapshot *snapshot = g_new0(ExportSnapshot, 1);
    VmsnapSnapshot *base = &snapshot->base;
    vmsnap_snapshot_init(base, &vmsnap_export_backend);
    base->uuid = g_strdup(options->uuid);
    base->machine = g_strdup(options->source);
    base->machine_uuid = uuid_of_uri(options->source);
    vmsnap_snapshot_add_version(base, "vmsnap", g_strdup(VMSNAP_VERSION));
    char *version = vmsnap_nbd_get_version();
    if (version)
        vmsnap_snapshot_add_version(base, "libnbd", version);
    snapshot->drives = g_ptr_array_new_with_free_func(drive_free);
    snapshot->timeout_ms = options->timeout_ms;
    snapshot->deadline_us = g_get_monotonic_time() + (gint64)options->timeout_ms * 1000;
    snapshot->record_fd = options->record_fd;
    snapshot->record = vmsnap_record_new();
    snapshot->record->uuid = g_strdup(options->uuid);
    snapshot->record->backend = g_strdup(vmsnap_export_backend.name);
    snapshot->record->machine = g_strdup(options->source);
    snapshot->record->mount_point = g_strdup(options->mount_point);
    snapshot->record->pid = getpid();
    snapshot->record->timeout_ms = (int)options->timeout_ms;
    return snapshot;
}

static void export_free(VmsnapSnapshot *base) {
    ExportSnapshot *snapshot = (ExportSnapshot *)base;
    for (guint i = 0; i < base->disks->len; i++) {
        ExportDisk *disk = g_ptr_array_index(base->disks, i);
        vmsnap_nbd_pool_free(disk->pool);
        g_free(disk->export_name);
    }
    vmsnap_io_threads_free(snapshot->threads);
    vmsnap_nbd_server_free(snapshot->server);
    g_ptr_array_unref(snapshot->drives);
    vmsnap_record_free(snapshot->record);
    vmsnap_snapshot_clear(base);
    g_free(snapshot);
}

/* Returns: (transfer full): the names of what can be had, or NULL with @error set. */
static GPtrArray *export_names_find(ExportSnapshot *snapshot, GError **error) {
    char *named = vmsnap_nbd_uri_get_export(snapshot->server->uri);
    if (named) {
        GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
        g_ptr_array_add(names, named);
        return names;
    }
    GPtrArray *names = vmsnap_nbd_list(snapshot->server, snapshot->timeout_ms, error);
    snapshot->lists_none = names && names->len == 0;
    if (snapshot->lists_none)
        g_ptr_array_add(names, g_strdup(""));
    return names;
}

static int names_compare(gconstpointer a, gconstpointer b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* In an order that is the same from one mount to the next: the server's may be that of a directory. */
static gboolean snapshot_list(ExportSnapshot *snapshot, GError **error) {
    g_autoptr(GPtrArray) names = export_names_find(snapshot, error);
    if (names)
        g_ptr_array_sort(names, names_compare);
    for (guint i = 0; names && i < names->len; i++) {
        ExportDrive *drive = g_new0(ExportDrive, 1);
        drive->export_name = g_strdup(g_ptr_array_index(names, i));
        drive->base.name = vmsnap_export_name_disk(drive->export_name, names);
        drive->base.source = vmsnap_nbd_uri_build(snapshot->server->uri, drive->export_name, NULL);
        g_ptr_array_add(snapshot->drives, drive);
    }
    return names != NULL;
}

static gboolean snapshot_select(ExportSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    g_autofree char *owner = g_strdup_printf("server '%s'", base->machine);
    g_autoptr(GPtrArray) selected =
        vmsnap_drives_select(snapshot->drives, owner, options->disks, options->exclude, base, error);
    for (guint i = 0; selected && i < selected->len; i++) {
        const ExportDrive *drive = g_ptr_array_index(selected, i);
        ExportDisk *disk = g_new0(ExportDisk, 1);
        disk->base.snapshot = base;
        disk->base.name = g_strdup(drive->base.name);
        disk->base.source = g_strdup(drive->base.source);
        disk->export_name = g_strdup(drive->export_name);
        g_ptr_array_add(base->disks, disk);
    }
    if (selected && selected->len > MAX_DISKS)
        g_set_error(
            error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
            "failed to mount '%s': it has %u exports, and more than %d are too many; choose some with -o disks=",
            base->machine, selected->len, MAX_DISKS);
    return selected && selected->len <= MAX_DISKS;
}

/* All together have the time of the begin. One that is begun in time has its own, since by then the caller was told. */
static gboolean disk_open(ExportSnapshot *snapshot, ExportDisk *disk, unsigned connections, GError **error) {
    if (g_get_monotonic_time() >= snapshot->deadline_us) {
        vmsnap_nbd_server_set_error(snapshot->server, "open all exports of", "it takes too long", error);
        return FALSE;
    }
    disk->pool = vmsnap_nbd_pool_new(snapshot->threads, &snapshot->base, snapshot->server, disk->export_name, NULL,
                                     connections, snapshot->timeout_ms, error);
    if (!disk->pool && snapshot->lists_none)
        g_prefix_error(error, "failed to mount '%s': it lists no export; ", snapshot->base.machine);
    if (disk->pool)
        disk->base.size_bytes = vmsnap_nbd_pool_get_size(disk->pool);
    return disk->pool != NULL;
}

static gboolean snapshot_open_disks(ExportSnapshot *snapshot, unsigned connections, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    base->instant_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    snapshot->threads = vmsnap_io_threads_new(N_IO_THREADS);
    for (guint i = 0; i < base->disks->len; i++)
        if (!disk_open(snapshot, g_ptr_array_index(base->disks, i), connections, error))
            return FALSE;
    return TRUE;
}

static gboolean snapshot_plan(ExportSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    snapshot->server = vmsnap_nbd_server_new_uri(options->source, error);
    return snapshot->server && snapshot_list(snapshot, error) && snapshot_select(snapshot, options, error) &&
           options->check(&snapshot->base, options->check_data, error);
}

static void record_note_outcome(ExportSnapshot *snapshot, gboolean aborted) {
    VmsnapRecord *record = snapshot->record;
    record->reason = vmsnap_snapshot_dup_break_reason(&snapshot->base);
    if (record->reason)
        record->outcome = g_strdup(VMSNAP_OUTCOME_BROKEN);
    else
        record->outcome = g_strdup(aborted ? VMSNAP_OUTCOME_ABORTED : VMSNAP_OUTCOME_COMPLETE);
    if (snapshot->published)
        (void)vmsnap_record_update(snapshot->record_fd, record);
}

static VmsnapSnapshot *export_begin(const VmsnapBeginOptions *options, GError **error) {
    ExportSnapshot *snapshot = snapshot_new(options);
    gboolean planned = snapshot_plan(snapshot, options, error);
    snapshot->published = planned && vmsnap_record_publish(snapshot->record_fd, snapshot->record, error);
    if (snapshot->published && snapshot_open_disks(snapshot, options->connections, error))
        return &snapshot->base;
    record_note_outcome(snapshot, TRUE);
    export_free(&snapshot->base);
    return NULL;
}

static gboolean export_start(VmsnapSnapshot *base, GError **error) {
    return vmsnap_io_threads_start(((ExportSnapshot *)base)->threads, error);
}

static gboolean export_end(VmsnapSnapshot *base, gboolean aborted, gboolean commit, GError **error) {
    (void)commit;
    ExportSnapshot *snapshot = (ExportSnapshot *)base;
    vmsnap_io_threads_stop(snapshot->threads);
    for (guint i = 0; i < base->disks->len; i++)
        vmsnap_nbd_pool_close(((ExportDisk *)g_ptr_array_index(base->disks, i))->pool);
    record_note_outcome(snapshot, aborted);
    if (!snapshot->record->reason)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN, "the snapshot of server '%s' broke while it was mounted: %s",
                base->machine, snapshot->record->reason);
    return FALSE;
}

/* No record says that there is something to undo, unless somebody else has written it. */
static gboolean export_recover(VmsnapRecord *record, GError **error) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to end the snapshot of '%s': its record makes no sense; remove it", record->machine);
    return FALSE;
}

static void export_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                        gpointer user_data) {
    vmsnap_nbd_pool_read(((ExportDisk *)disk)->pool, buffer, length, offset, done, user_data);
}

static void export_extents(VmsnapDisk *disk, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                           VmsnapExtentsFunc done, gpointer user_data) {
    vmsnap_nbd_pool_extents(((ExportDisk *)disk)->pool, question, offset, length, done, user_data);
}

#define NO_GUEST "an export has no guest that vmsnap could ask"
#define NO_SCRATCH "whoever made the export keeps what is overwritten"
#define NO_CHANGES "nobody tells vmsnap what has changed in an export"

static const VmsnapRefusal refuses[] = {
    {"connect", "it is no domain of libvirt's"},
    {"quiesce", NO_GUEST},
    {"freeze_timeout", NO_GUEST},
    {"agent", NO_GUEST},
    {"scratch", NO_SCRATCH},
    {"scratch_reserve", NO_SCRATCH},
    {"scratch_max", NO_SCRATCH},
    {"release", "what others have begun is not changed"},
    {"checkpoint", NO_CHANGES},
    {"since", NO_CHANGES},
    {"incremental", NO_CHANGES},
    {"keep_checkpoints", NO_CHANGES},
    {"commit", NO_CHANGES},
    {"backing", NO_CHANGES},
    {"only_changed", NO_CHANGES},
    {NULL, NULL},
};

const VmsnapBackend vmsnap_export_backend = {
    .name = "nbd",
    .words = {.noun = "server", .host = "the server"},
    .refuses = refuses,
    .is_foreign = TRUE,
    .handles = vmsnap_nbd_uri_matches,
    .resolve = vmsnap_nbd_uri_resolve,
    .begin = export_begin,
    .start = export_start,
    .end = export_end,
    .recover = export_recover,
    .free = export_free,
    .read = export_read,
    .extents = export_extents,
};
