/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A snapshot of a libvirt domain is a pull-mode backup job: QEMU exports the instant over NBD and copies old data to
 * scratch files before the guest overwrites it.
 *
 * States, and what exists in each:
 *
 *   prepared   record (locked), private runtime and scratch directories
 *   begun      and the job, its socket and its scratch files
 *   open       and connections, I/O threads, configuration files: only this state is seen by others
 *   ended      nothing; the record, without its name, tells the outcome to those who have it open
 *
 * A begin that fails goes back through the same release as an end. A NULL field or an unset flag is a step that was
 * never tried; what was tried is undone even if it failed, since libvirt may fail to tell that it has begun.
 */
#include "libvirt_backend.h"

#include "config.h"
#include "config_file.h"
#include "dirs.h"
#include "domain.h"
#include "libvirt_domain.h"
#include "nbd_pool.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#define N_IO_THREADS 2
/* With less than this a snapshot would not outlive its first minute. */
#define MIN_SCRATCH_BYTES (UINT64_C(16) << 20)

typedef struct {
    VmsnapDisk base;
    VmsnapNbdPool *pool; /* owned */
} LibvirtDisk;

typedef struct {
    VmsnapSnapshot base;
    virConnectPtr connection;
    virDomainPtr domain;
    VmsnapDomain *facts;
    VmsnapIoThreads *threads;
    VmsnapRecord *record;
    int record_fd;        /* -1 while there is no record */
    gboolean job_may_run; /* from just before begin on, since an error does not tell that nothing began */
    unsigned timeout_ms;
} LibvirtSnapshot;

static void libvirt_free(VmsnapSnapshot *base) {
    LibvirtSnapshot *snapshot = (LibvirtSnapshot *)base;
    for (guint i = 0; i < base->disks->len; i++)
        vmsnap_nbd_pool_free(((LibvirtDisk *)g_ptr_array_index(base->disks, i))->pool);
    vmsnap_io_threads_free(snapshot->threads);
    vmsnap_domain_free(snapshot->facts);
    vmsnap_record_free(snapshot->record);
    if (snapshot->domain)
        (void)virDomainFree(snapshot->domain);
    if (snapshot->connection)
        (void)virConnectClose(snapshot->connection);
    vmsnap_snapshot_clear(base);
    g_free(snapshot);
}

static LibvirtSnapshot *snapshot_new(const VmsnapBeginOptions *options) {
    LibvirtSnapshot *snapshot = g_new0(LibvirtSnapshot, 1);
    vmsnap_snapshot_init(&snapshot->base, &vmsnap_libvirt_backend);
    snapshot->base.uuid = g_uuid_string_random();
    snapshot->timeout_ms = options->timeout_ms;
    snapshot->record_fd = -1;
    snapshot->record = vmsnap_record_new();
    snapshot->record->uuid = g_strdup(snapshot->base.uuid);
    snapshot->record->mount_point = g_strdup(options->mount_point);
    snapshot->record->pid = getpid();
    snapshot->record->timeout_ms = (int)options->timeout_ms;
    return snapshot;
}

static void take_versions(LibvirtSnapshot *snapshot) {
    unsigned long version;
    vmsnap_snapshot_add_version(&snapshot->base, "vmsnap", g_strdup(VMSNAP_VERSION));
    if (virConnectGetLibVersion(snapshot->connection, &version) == 0)
        vmsnap_snapshot_add_version(&snapshot->base, "libvirt", vmsnap_libvirt_format_version(version));
    if (virConnectGetVersion(snapshot->connection, &version) == 0)
        vmsnap_snapshot_add_version(&snapshot->base, "qemu", vmsnap_libvirt_format_version(version));
}

/* Finds the domain and learns about it. Both XML files come from before the instant, as the disks do. */
static gboolean snapshot_look_up(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    snapshot->connection = vmsnap_libvirt_connect(options->connect_uri, error);
    if (!snapshot->connection)
        return FALSE;
    snapshot->domain = vmsnap_libvirt_find(snapshot->connection, options->source, error);
    if (!snapshot->domain || !vmsnap_libvirt_check_idle(snapshot->domain, error))
        return FALSE;
    char *inactive = vmsnap_libvirt_get_xml(snapshot->domain, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE, error);
    if (!inactive)
        return FALSE;
    vmsnap_snapshot_add_file(base, "domain.xml", g_bytes_new_take(inactive, strlen(inactive)), FALSE);
    char *live = vmsnap_libvirt_get_xml(snapshot->domain, VIR_DOMAIN_XML_SECURE, error);
    if (!live)
        return FALSE;
    vmsnap_snapshot_add_file(base, "live.xml", g_bytes_new_take(live, strlen(live)), FALSE);
    snapshot->facts = vmsnap_domain_parse(live, error);
    if (!snapshot->facts)
        return FALSE;
    base->machine = g_strdup(snapshot->facts->name);
    base->machine_uuid = g_strdup(snapshot->facts->uuid);
    take_versions(snapshot);
    return TRUE;
}

static gboolean scratch_check(const char *directory, GError **error) {
    static const char remedy[] = "name another directory with -o scratch=DIR";
    struct statvfs filesystem;
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    gboolean usable = fd >= 0 && fstatvfs(fd, &filesystem) == 0;
    int code = errno;
    if (fd >= 0)
        (void)close(fd);
    if (!usable) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to use scratch directory '%s': %s; %s", directory,
                    g_strerror(code), remedy);
        return FALSE;
    }
    uint64_t left_bytes = (uint64_t)filesystem.f_bavail * filesystem.f_frsize;
    if (left_bytes >= MIN_SCRATCH_BYTES)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use scratch directory '%s': its filesystem is full, with %" G_GUINT64_FORMAT
                " MiB left; free some space or %s",
                directory, left_bytes >> 20, remedy);
    return FALSE;
}

/* Returns: (transfer full): where to put this snapshot's scratch directory, or NULL with @error set. */
static char *scratch_choose(const VmsnapBeginOptions *options, const char *uuid, GError **error) {
    g_autofree char *base = options->scratch_dir ? g_strdup(options->scratch_dir) : vmsnap_dirs_get_state();
    if (!options->scratch_dir && !vmsnap_dirs_make_base(base, error))
        return NULL;
    if (!scratch_check(base, error))
        return NULL;
    g_autofree char *name = g_strconcat("vmsnap-", uuid, NULL);
    return g_build_filename(base, name, NULL);
}

static gboolean socket_check(const char *socket, GError **error) {
    if (strlen(socket) < sizeof((struct sockaddr_un *)NULL)->sun_path)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use socket '%s': the path is too long; set XDG_RUNTIME_DIR to a shorter one", socket);
    return FALSE;
}

static uid_t qemu_uid(const LibvirtSnapshot *snapshot) {
    return snapshot->facts->has_owner ? snapshot->facts->uid : geteuid();
}

static gid_t qemu_gid(const LibvirtSnapshot *snapshot) {
    return snapshot->facts->has_owner ? snapshot->facts->gid : getegid();
}

/* Makes the record and the private directories. The record goes first: it tells whose the directories are. */
static gboolean snapshot_prepare(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    VmsnapRecord *record = snapshot->record;
    g_autofree char *runtime_base = vmsnap_dirs_get_runtime();
    g_autofree char *runtime_dir = g_build_filename(runtime_base, record->uuid, NULL);
    g_autofree char *scratch_dir = scratch_choose(options, record->uuid, error);
    g_autofree char *uri = virConnectGetURI(snapshot->connection);
    record->machine = g_strdup(snapshot->base.machine);
    record->machine_uuid = g_strdup(snapshot->base.machine_uuid);
    record->connect_uri = g_strdup(uri);
    record->socket = g_build_filename(runtime_dir, "nbd.sock", NULL);
    record->runtime_dir = g_steal_pointer(&runtime_dir);
    record->scratch_dir = g_strdup(scratch_dir);
    if (!scratch_dir || !socket_check(record->socket, error))
        return FALSE;

    snapshot->record_fd = vmsnap_record_write(record, error);
    return snapshot->record_fd >= 0 &&
           vmsnap_dirs_make_private(record->runtime_dir, qemu_uid(snapshot), qemu_gid(snapshot), error) &&
           vmsnap_dirs_make_passage(record->scratch_dir, qemu_gid(snapshot), error);
}

/* libvirt's message names a file or a disk; what the user can change is the scratch directory or the choice of disks.
 */
static void begin_error_add_remedy(const LibvirtSnapshot *snapshot, const GPtrArray *selected, GError **error) {
    if (!error || !*error)
        return;
    if (strstr((*error)->message, snapshot->record->scratch_dir)) {
        g_autofree char *message = g_strdup_printf(
            "%s; QEMU must be able to use the scratch directory, and a filesystem that was mounted after the machine "
            "started may be out of its reach: name another directory with -o scratch=DIR",
            (*error)->message);
        g_clear_error(error);
        g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, message);
        return;
    }
    for (guint i = 0; i < selected->len; i++) {
        const VmsnapDomainDisk *disk = g_ptr_array_index(selected, i);
        g_autofree char *quoted = g_strdup_printf("disk '%s'", disk->target);
        if (!strstr((*error)->message, quoted))
            continue;
        g_autofree char *message =
            g_strdup_printf("%s; leave it out with -o exclude=%s", (*error)->message, disk->target);
        g_clear_error(error);
        g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, message);
        return;
    }
}

static gboolean snapshot_begin_job(LibvirtSnapshot *snapshot, const GPtrArray *selected, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    char *xml = vmsnap_domain_build_backup_xml(snapshot->facts, selected, snapshot->record->socket,
                                               snapshot->record->scratch_dir);
    vmsnap_snapshot_add_file(base, "backup.xml", g_bytes_new_take(xml, strlen(xml)), TRUE);
    /* Taken before and not after, so that what the guest had written by this time is surely in. */
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    base->instant_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    snapshot->job_may_run = TRUE;
    if (vmsnap_libvirt_begin_job(snapshot->domain, xml, error))
        return TRUE;
    begin_error_add_remedy(snapshot, selected, error);
    return FALSE;
}

static void connection_lost(const char *reason, gpointer user_data) {
    vmsnap_snapshot_break(user_data,
                          "QEMU closed the NBD connection (%s): the guest was stopped, or somebody else ended "
                          "the backup job",
                          reason);
}

static gboolean snapshot_open_disks(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                    const GPtrArray *selected, GError **error) {
    snapshot->threads = vmsnap_io_threads_new(N_IO_THREADS);
    for (guint i = 0; i < selected->len; i++) {
        const VmsnapDomainDisk *source = g_ptr_array_index(selected, i);
        LibvirtDisk *disk = g_new0(LibvirtDisk, 1);
        disk->base.snapshot = &snapshot->base;
        disk->base.name = g_strdup(source->target);
        disk->base.source = g_strdup(source->source);
        disk->base.scratch_path = vmsnap_domain_scratch_path(snapshot->record->scratch_dir, source->target);
        g_ptr_array_add(snapshot->base.disks, disk);
        disk->pool = vmsnap_nbd_pool_new(snapshot->threads, snapshot->record->socket, source->target,
                                         options->connections, options->timeout_ms, connection_lost, snapshot, error);
        if (!disk->pool)
            return FALSE;
        disk->base.size_bytes = vmsnap_nbd_pool_get_size(disk->pool);
        if (!vmsnap_libvirt_check_size(snapshot->domain, source->target, disk->base.size_bytes, error))
            return FALSE;
    }
    return TRUE;
}

/* The files are a bonus: one that cannot be read is named in the manifest, and no reason to have no backup. */
static void snapshot_add_domain_files(LibvirtSnapshot *snapshot) {
    for (guint i = 0; i < snapshot->facts->files->len; i++) {
        const VmsnapDomainFile *file = g_ptr_array_index(snapshot->facts->files, i);
        g_autoptr(GError) error = NULL;
        GBytes *content = vmsnap_config_file_load(file->path, qemu_uid(snapshot), qemu_gid(snapshot),
                                                  snapshot->record->scratch_dir, &error);
        if (content)
            vmsnap_snapshot_add_file(&snapshot->base, file->name, content, FALSE);
        else
            vmsnap_snapshot_add_left_out(&snapshot->base, file->name, error->message);
    }
}

/* Ends the job. Returns: FALSE with @error set if it may still run. */
static gboolean snapshot_end_job(LibvirtSnapshot *snapshot, GError **error) {
    VmsnapRecord *record = snapshot->record;
    VmsnapJobEnd end = vmsnap_libvirt_end_job(snapshot->connection, record->connect_uri, record->machine_uuid,
                                              record->socket, snapshot->timeout_ms, error);
    if (end == VMSNAP_JOB_LOST)
        vmsnap_snapshot_break(&snapshot->base, "the guest was stopped");
    else if (end == VMSNAP_JOB_GONE)
        vmsnap_snapshot_break(&snapshot->base, "somebody else ended the backup job");
    return end != VMSNAP_JOB_FAILED;
}

static void snapshot_close_disks(LibvirtSnapshot *snapshot) {
    if (snapshot->threads)
        vmsnap_io_threads_stop(snapshot->threads);
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        LibvirtDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        if (disk->pool)
            vmsnap_nbd_pool_close(disk->pool);
    }
}

static void record_note_outcome(LibvirtSnapshot *snapshot, gboolean aborted, const GError *error) {
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

/*
 * Goes back from any state. While the job may still run, its files are in use: they stay, and the record with them, so
 * that somebody can clear them later.
 */
static gboolean snapshot_release(LibvirtSnapshot *snapshot, gboolean aborted, GError **error) {
    snapshot_close_disks(snapshot);
    g_autoptr(GError) first_error = NULL;
    gboolean job_ended = !snapshot->job_may_run || snapshot_end_job(snapshot, &first_error);
    if (job_ended && snapshot->record_fd >= 0) {
        vmsnap_dirs_remove_private(snapshot->record->runtime_dir, first_error ? NULL : &first_error);
        vmsnap_dirs_remove_private(snapshot->record->scratch_dir, first_error ? NULL : &first_error);
    }
    if (snapshot->record_fd >= 0) {
        record_note_outcome(snapshot, aborted, first_error);
        vmsnap_record_end(snapshot->record_fd, snapshot->record, first_error != NULL);
        snapshot->record_fd = -1;
    }
    gboolean released = !first_error;
    if (first_error)
        g_propagate_error(error, g_steal_pointer(&first_error));
    return released;
}

static VmsnapSnapshot *libvirt_begin(const VmsnapBeginOptions *options, GError **error) {
    LibvirtSnapshot *snapshot = snapshot_new(options);
    g_autoptr(GPtrArray) selected = NULL;
    gboolean begun = snapshot_look_up(snapshot, options, error);
    if (begun) {
        selected = vmsnap_domain_select(snapshot->facts, options->disks, options->exclude, &snapshot->base, error);
        begun = selected && snapshot_prepare(snapshot, options, error) &&
                snapshot_begin_job(snapshot, selected, error) &&
                snapshot_open_disks(snapshot, options, selected, error);
    }
    if (!begun) {
        g_autoptr(GError) release_error = NULL;
        if (!snapshot_release(snapshot, TRUE, &release_error))
            g_warning("%s", release_error->message);
        libvirt_free(&snapshot->base);
        return NULL;
    }
    snapshot_add_domain_files(snapshot);
    return &snapshot->base;
}

static gboolean libvirt_end(VmsnapSnapshot *base, gboolean aborted, GError **error) {
    LibvirtSnapshot *snapshot = (LibvirtSnapshot *)base;
    if (!snapshot_release(snapshot, aborted, error))
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
    return !strstr(source, "://") && !g_str_has_prefix(source, "qmp:");
}

static void libvirt_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                         gpointer user_data) {
    vmsnap_nbd_pool_read(((LibvirtDisk *)disk)->pool, buffer, length, offset, done, user_data);
}

static void libvirt_extents(VmsnapDisk *disk, uint64_t offset, uint64_t length, VmsnapExtentsFunc done,
                            gpointer user_data) {
    vmsnap_nbd_pool_extents(((LibvirtDisk *)disk)->pool, offset, length, done, user_data);
}

const VmsnapBackend vmsnap_libvirt_backend = {
    .name = "libvirt",
    .handles = libvirt_handles,
    .begin = libvirt_begin,
    .end = libvirt_end,
    .free = libvirt_free,
    .read = libvirt_read,
    .extents = libvirt_extents,
};
