/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A snapshot of a libvirt domain is a pull-mode backup job: QEMU exports the instant over NBD and copies old data to
 * scratch files before the guest overwrites it.
 *
 * States, and what exists in each:
 *
 *   prepared   record, private runtime and scratch directories
 *   begun      and the job, its socket and its scratch files; the guest was frozen for that moment, if asked for
 *   open       and connections, configuration files: only this state is seen by others
 *   started    and I/O threads, and the watch
 *   ended      record and directories, whose removal needs rights that the process may have given up
 *
 * A begin that fails goes back through the same release as an end. A NULL field or an unset flag is a step that was
 * never tried; what was tried is undone even if it failed, since libvirt may fail to tell that it has begun. The record
 * says before each step what may have to be undone, so that somebody else can do it after a crash (libvirt_recover).
 */
#include "libvirt_backend.h"

#include "config.h"
#include "config_file.h"
#include "dirs.h"
#include "domain.h"
#include "libvirt_domain.h"
#include "libvirt_quiesce.h"
#include "libvirt_watch.h"
#include "nbd_pool.h"
#include "scratch.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define N_IO_THREADS 2
/* QEMU pauses a guest some time after its write has failed. */
#define PAUSE_LAG_MS 500
/* Nobody saw whether a freeze was still on its way to the agent, or in the guest's kernel. */
#define FREEZE_SETTLE_US 1000000
#define N_SETTLING_THAWS 5
/* How long libvirt may see an agent that is gone. */
#define AGENT_LAG_US 500000
/* For one try of the watch to end the job: it has more of them, and must not keep an end waiting for long. */
#define WATCH_TIMEOUT_MS 5000

typedef struct {
    VmsnapDisk base;
    VmsnapNbdPool *pool; /* owned */
    char *scratch_name;  /* owned; of the file in the scratch directory */
} LibvirtDisk;

typedef struct {
    VmsnapSnapshot base;
    virConnectPtr connection;
    virDomainPtr domain;
    VmsnapDomain *facts;
    VmsnapIoThreads *threads;
    VmsnapQuiesce *quiesce;
    VmsnapLibvirtWatch *watch;
    VmsnapRecord *record;
    int record_fd;      /* not owned */
    gboolean published; /* others see the record */
    int scratch_fd;     /* owned; -1 before it is prepared */
    uint64_t scratch_reserve_bytes;
    uint64_t scratch_max_bytes;
    unsigned timeout_ms;
} LibvirtSnapshot;

static void libvirt_free(VmsnapSnapshot *base) {
    LibvirtSnapshot *snapshot = (LibvirtSnapshot *)base;
    for (guint i = 0; i < base->disks->len; i++) {
        LibvirtDisk *disk = g_ptr_array_index(base->disks, i);
        vmsnap_nbd_pool_free(disk->pool);
        g_free(disk->scratch_name);
    }
    vmsnap_io_threads_free(snapshot->threads);
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

static LibvirtSnapshot *snapshot_new(const VmsnapBeginOptions *options) {
    LibvirtSnapshot *snapshot = g_new0(LibvirtSnapshot, 1);
    vmsnap_snapshot_init(&snapshot->base, &vmsnap_libvirt_backend);
    snapshot->base.uuid = g_strdup(options->uuid);
    snapshot->timeout_ms = options->timeout_ms;
    snapshot->scratch_reserve_bytes = options->scratch_reserve_bytes;
    snapshot->scratch_max_bytes = options->scratch_max_bytes;
    snapshot->scratch_fd = -1;
    snapshot->record_fd = options->record_fd;
    snapshot->record = vmsnap_record_new();
    snapshot->record->uuid = g_strdup(options->uuid);
    snapshot->record->backend = g_strdup(vmsnap_libvirt_backend.name);
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
    vmsnap_snapshot_add_file(base, "domain.xml", g_bytes_new_take(inactive, strlen(inactive)), VMSNAP_FILE_CONFIG);
    char *live = vmsnap_libvirt_get_xml(snapshot->domain, VIR_DOMAIN_XML_SECURE, error);
    if (!live)
        return FALSE;
    vmsnap_snapshot_add_file(base, "live.xml", g_bytes_new_take(live, strlen(live)), VMSNAP_FILE_CONFIG);
    snapshot->facts = vmsnap_domain_parse(live, error);
    if (!snapshot->facts)
        return FALSE;
    snapshot->record->resume = !vmsnap_libvirt_is_paused_by_error(snapshot->domain);
    base->machine = g_strdup(snapshot->facts->name);
    base->machine_uuid = g_strdup(snapshot->facts->uuid);
    take_versions(snapshot);
    return TRUE;
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
    g_autofree char *scratch_dir =
        vmsnap_scratch_choose(options->scratch_dir, record->uuid, options->scratch_reserve_bytes, error);
    g_autofree char *uri = virConnectGetURI(snapshot->connection);
    record->machine = g_strdup(snapshot->base.machine);
    record->machine_uuid = g_strdup(snapshot->base.machine_uuid);
    record->connect_uri = g_strdup(uri);
    record->socket = g_build_filename(runtime_dir, "nbd.sock", NULL);
    record->runtime_dir = g_steal_pointer(&runtime_dir);
    record->scratch_dir = g_strdup(scratch_dir);
    if (!scratch_dir || !socket_check(record->socket, error))
        return FALSE;

    snapshot->published = vmsnap_record_publish(snapshot->record_fd, record, error);
    if (!snapshot->published ||
        !vmsnap_dirs_make_private(record->runtime_dir, qemu_uid(snapshot), qemu_gid(snapshot), error) ||
        !vmsnap_dirs_make_passage(record->scratch_dir, qemu_gid(snapshot), error))
        return FALSE;
    snapshot->scratch_fd = open(record->scratch_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (snapshot->scratch_fd < 0)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to open scratch directory '%s': %s",
                    record->scratch_dir, g_strerror(errno));
    return snapshot->scratch_fd >= 0;
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

static void record_clear_frozen(LibvirtSnapshot *snapshot) {
    snapshot->record->frozen = FALSE;
    (void)vmsnap_record_update(snapshot->record_fd, snapshot->record);
}

/* What is not in the record would not be undone after a crash, and so must not be begun. */
static gboolean record_promise(LibvirtSnapshot *snapshot, gboolean *what, GError **error) {
    *what = TRUE;
    if (vmsnap_record_update(snapshot->record_fd, snapshot->record))
        return TRUE;
    *what = FALSE;
    g_set_error(
        error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
        "failed to begin the snapshot of domain '%s': its record beside '%s' cannot be written; free some space "
        "there",
        snapshot->base.machine, snapshot->record->runtime_dir);
    return FALSE;
}

/*
 * While a backup job runs, libvirt (9.0) does not notice an agent that comes back. So without one, a guest that may be
 * frozen would stay so until the end of the snapshot.
 */
static gboolean can_thaw_during_job(LibvirtSnapshot *snapshot) {
    if (vmsnap_quiesce_is_over(snapshot->quiesce))
        return TRUE;
    /* That the agent is gone comes by another way than that it does not answer. */
    g_usleep(AGENT_LAG_US);
    return vmsnap_libvirt_agent_is_connected(snapshot->domain);
}

/* Returns: FALSE with @error set if the guest is not frozen although it must be, or could not be thawed. */
static gboolean snapshot_freeze(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    if (options->quiesce == VMSNAP_QUIESCE_NO)
        return TRUE;
    g_autoptr(GError) freeze_error = NULL;
    if (!record_promise(snapshot, &snapshot->record->frozen, error))
        return FALSE;
    snapshot->quiesce = vmsnap_quiesce_freeze(snapshot->domain, options->freeze_timeout_ms, &freeze_error);
    snapshot->base.quiesced = !freeze_error;
    if (!freeze_error)
        return TRUE;
    if (vmsnap_quiesce_is_over(snapshot->quiesce))
        record_clear_frozen(snapshot);
    if (options->quiesce == VMSNAP_QUIESCE_TRY && can_thaw_during_job(snapshot)) {
        snapshot->base.quiesce_error = g_strdup(freeze_error->message);
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&freeze_error));
    return FALSE;
}

/* Returns: FALSE with @error set if the guest was thawed too early, and that is no snapshot to keep; or not at all. */
static gboolean snapshot_thaw(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    if (!snapshot->base.quiesced)
        return TRUE;
    g_autoptr(GError) thaw_error = NULL;
    if (vmsnap_quiesce_thaw(snapshot->quiesce, options->freeze_timeout_ms, &thaw_error)) {
        record_clear_frozen(snapshot);
        return TRUE;
    }
    snapshot->base.quiesced = FALSE;
    if (options->quiesce == VMSNAP_QUIESCE_TRY && vmsnap_quiesce_is_over(snapshot->quiesce)) {
        record_clear_frozen(snapshot);
        snapshot->base.quiesce_error = g_strdup(thaw_error->message);
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&thaw_error));
    return FALSE;
}

static gboolean snapshot_begin_job(LibvirtSnapshot *snapshot, const GPtrArray *selected, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    char *xml = vmsnap_domain_build_backup_xml(snapshot->facts, selected, snapshot->record->socket,
                                               snapshot->record->scratch_dir);
    vmsnap_snapshot_add_file(base, "backup.xml", g_bytes_new_take(xml, strlen(xml)), VMSNAP_FILE_HIDDEN);
    if (!record_promise(snapshot, &snapshot->record->job, error))
        return FALSE;
    /* Taken before and not after, so that what the guest had written by this time is surely in. */
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    base->instant_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (vmsnap_libvirt_begin_job(snapshot->domain, xml, error))
        return TRUE;
    begin_error_add_remedy(snapshot, selected, error);
    return FALSE;
}

/* Thaws whatever became of the job. */
static gboolean snapshot_begin_quiesced(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                        const GPtrArray *selected, GError **error) {
    if (!snapshot_freeze(snapshot, options, error))
        return FALSE;
    gboolean begun = snapshot_begin_job(snapshot, selected, error);
    return snapshot_thaw(snapshot, options, begun ? error : NULL) && begun;
}

/* The files of boot and firmware come after the instant, but their names are known. */
static gboolean snapshot_check(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    if (!options->check(&snapshot->base, options->check_data, error))
        return FALSE;
    for (guint i = 0; i < snapshot->facts->files->len; i++) {
        const VmsnapDomainFile *file = g_ptr_array_index(snapshot->facts->files, i);
        if (!vmsnap_snapshot_find_file(&snapshot->base, file->name))
            continue;
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use '%s' for two files: domain '%s' has one of that name; rename the other", file->name,
                    snapshot->base.machine);
        return FALSE;
    }
    return TRUE;
}

/*
 * Their sizes are learnt when the job has begun. Before, somebody else's may just be beginning, and QEMU (7.2) ends
 * with a failed assertion if it is asked about its block nodes while it makes a qcow2 image for scratch.
 */
static void snapshot_add_disks(LibvirtSnapshot *snapshot, const GPtrArray *selected) {
    for (guint i = 0; i < selected->len; i++) {
        const VmsnapDomainDisk *source = g_ptr_array_index(selected, i);
        LibvirtDisk *disk = g_new0(LibvirtDisk, 1);
        disk->base.snapshot = &snapshot->base;
        disk->base.name = g_strdup(source->target);
        disk->base.source = g_strdup(source->source);
        g_ptr_array_add(snapshot->base.disks, disk);
    }
}

static gboolean snapshot_open_disks(LibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    snapshot->threads = vmsnap_io_threads_new(N_IO_THREADS);
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        LibvirtDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        g_autofree char *scratch_path = vmsnap_domain_scratch_path(snapshot->record->scratch_dir, disk->base.name);
        disk->scratch_name = g_path_get_basename(scratch_path);
        disk->pool = vmsnap_nbd_pool_new(snapshot->threads, &snapshot->base, snapshot->record->socket, disk->base.name,
                                         options->connections, options->timeout_ms, error);
        if (!disk->pool)
            return FALSE;
        disk->base.size_bytes = vmsnap_nbd_pool_get_size(disk->pool);
        if (!vmsnap_libvirt_check_size(snapshot->domain, disk->base.name, disk->base.size_bytes, error))
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
            vmsnap_snapshot_add_file(&snapshot->base, file->name, content, VMSNAP_FILE_BOOT);
        else
            vmsnap_snapshot_add_left_out(&snapshot->base, file->name, error->message);
    }
}

static VmsnapJob job_of(const VmsnapRecord *record, virConnectPtr connection, unsigned timeout_ms) {
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
static gboolean snapshot_end_job(LibvirtSnapshot *snapshot, GError **error) {
    if (!snapshot->record->job)
        return TRUE;
    VmsnapJob job = job_of(snapshot->record, snapshot->connection, snapshot->timeout_ms);
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
    return !snapshot->record->job;
}

static gboolean snapshot_end_quiesce(LibvirtSnapshot *snapshot, GError **error) {
    if (vmsnap_quiesce_free(g_steal_pointer(&snapshot->quiesce)))
        snapshot->record->frozen = FALSE;
    if (snapshot->record->frozen)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to see the filesystems of domain '%s' thawed: the guest agent does not answer; it is tried "
                    "again, or thaw them with 'virsh domfsthaw %s'",
                    snapshot->base.machine, snapshot->base.machine);
    return !snapshot->record->frozen;
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
 * Goes back from any state to one where only the record and the directories are left, which need rights to remove that
 * this process may have given up.
 */
static gboolean snapshot_release(LibvirtSnapshot *snapshot, gboolean aborted, GError **error) {
    vmsnap_libvirt_watch_free(g_steal_pointer(&snapshot->watch));
    snapshot_close_disks(snapshot);
    g_autoptr(GError) first_error = NULL;
    (void)snapshot_end_job(snapshot, &first_error);
    (void)snapshot_end_quiesce(snapshot, first_error ? NULL : &first_error);
    if (snapshot->published) {
        record_note_outcome(snapshot, aborted, first_error);
        vmsnap_record_update(snapshot->record_fd, snapshot->record);
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
    if (begun)
        selected = vmsnap_domain_select(snapshot->facts, options->disks, options->exclude, &snapshot->base, error);
    if (selected)
        snapshot_add_disks(snapshot, selected);
    begun = selected && snapshot_check(snapshot, options, error) && snapshot_prepare(snapshot, options, error) &&
            snapshot_begin_quiesced(snapshot, options, selected, error) &&
            snapshot_open_disks(snapshot, options, error);
    if (!begun) {
        g_autoptr(GError) release_error = NULL;
        if (!snapshot_release(snapshot, TRUE, &release_error))
            vmsnap_error_append(error, release_error);
        libvirt_free(&snapshot->base);
        return NULL;
    }
    snapshot_add_domain_files(snapshot);
    return &snapshot->base;
}

/* A guest that was frozen too late may be thawed only now; then nobody needs to do it any more. Called by the watch. */
static void quiesce_settle(gpointer user_data) {
    LibvirtSnapshot *snapshot = user_data;
    if (snapshot->record->frozen && vmsnap_quiesce_is_over(snapshot->quiesce))
        record_clear_frozen(snapshot);
}

static gboolean libvirt_start(VmsnapSnapshot *base, GError **error) {
    LibvirtSnapshot *snapshot = (LibvirtSnapshot *)base;
    const VmsnapLibvirtWatchOptions watch_options = {
        .job = job_of(snapshot->record, NULL, MIN(snapshot->timeout_ms, WATCH_TIMEOUT_MS)),
        .reserve_bytes = snapshot->scratch_reserve_bytes,
        .max_bytes = snapshot->scratch_max_bytes,
        .settle = quiesce_settle,
        .settle_data = snapshot,
    };
    if (!vmsnap_io_threads_start(snapshot->threads, error))
        return FALSE;
    snapshot->watch = vmsnap_libvirt_watch_new(base, &watch_options, error);
    return snapshot->watch != NULL;
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

static gboolean machine_thaw(const VmsnapRecord *record, GError **error) {
    return vmsnap_libvirt_thaw(NULL, record->connect_uri, record->machine_uuid, error);
}

/* The job first, since an agent may take for ever to answer. */
static gboolean libvirt_recover(VmsnapRecord *record, GError **error) {
    VmsnapJob job = job_of(record, NULL, (unsigned)CLAMP(record->timeout_ms, 1, G_MAXINT));
    job.may_be_beginning = TRUE;
    job.pause_lag_ms = PAUSE_LAG_MS;
    record->job = record->job && vmsnap_libvirt_end_job(&job, error) == VMSNAP_JOB_FAILED;
    if (!record->frozen)
        return !record->job;
    GError **thaw_error = record->job ? NULL : error;
    record->frozen = !machine_thaw(record, thaw_error);
    for (unsigned i = 0; i < N_SETTLING_THAWS && !record->frozen; i++) {
        g_usleep(FREEZE_SETTLE_US);
        record->frozen = !machine_thaw(record, thaw_error);
    }
    return !record->job && !record->frozen;
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

static gboolean libvirt_scratch(VmsnapDisk *disk, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes) {
    const LibvirtSnapshot *snapshot = (const LibvirtSnapshot *)disk->snapshot;
    return vmsnap_scratch_measure(snapshot->scratch_fd, ((LibvirtDisk *)disk)->scratch_name, ret_used_bytes,
                                  ret_left_bytes);
}

const VmsnapBackend vmsnap_libvirt_backend = {
    .name = "libvirt",
    .handles = libvirt_handles,
    .begin = libvirt_begin,
    .start = libvirt_start,
    .end = libvirt_end,
    .recover = libvirt_recover,
    .free = libvirt_free,
    .read = libvirt_read,
    .extents = libvirt_extents,
    .scratch = libvirt_scratch,
};
