/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From nothing to a snapshot that is open: libvirt_snapshot.h has the states. */
#include "libvirt_snapshot.h"

#include "config.h"
#include "config_file.h"
#include "dirs.h"
#include "increment.h"
#include "libvirt_backend.h"
#include "libvirt_checkpoint.h"
#include "scratch.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define N_IO_THREADS 2
/* How long libvirt may see an agent that is gone. */
#define AGENT_LAG_US 500000

static VmsnapLibvirtSnapshot *snapshot_new(const VmsnapBeginOptions *options) {
    VmsnapLibvirtSnapshot *snapshot = g_new0(VmsnapLibvirtSnapshot, 1);
    vmsnap_snapshot_init(&snapshot->base, &vmsnap_libvirt_backend);
    snapshot->base.uuid = g_strdup(options->uuid);
    snapshot->timeout_ms = options->timeout_ms;
    snapshot->scratch_reserve_bytes = options->scratch_reserve_bytes;
    snapshot->scratch_max_bytes = options->scratch_max_bytes;
    snapshot->keep_checkpoints = options->keep_checkpoints;
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

static void take_versions(VmsnapLibvirtSnapshot *snapshot) {
    unsigned long version;
    vmsnap_snapshot_add_version(&snapshot->base, "vmsnap", g_strdup(VMSNAP_VERSION));
    if (virConnectGetLibVersion(snapshot->connection, &version) == 0)
        vmsnap_snapshot_add_version(&snapshot->base, "libvirt", vmsnap_libvirt_format_version(version));
    if (virConnectGetVersion(snapshot->connection, &version) == 0)
        vmsnap_snapshot_add_version(&snapshot->base, "qemu", vmsnap_libvirt_format_version(version));
}

/* libvirt counts a major version as a million. One that is not known counts as old. */
static void refuse_unsafe_disks(VmsnapLibvirtSnapshot *snapshot) {
    unsigned long version = 0;
    (void)virConnectGetVersion(snapshot->connection, &version);
    if (version / 1000000 < VMSNAP_QEMU_IOTHREAD_MAJOR)
        vmsnap_domain_refuse_iothreads(snapshot->facts);
}

/* Finds the domain and learns about it. Both XML files come from before the instant, as the disks do. */
static gboolean snapshot_look_up(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
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
    refuse_unsafe_disks(snapshot);
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

static uid_t qemu_uid(const VmsnapLibvirtSnapshot *snapshot) {
    return snapshot->facts->has_owner ? snapshot->facts->uid : geteuid();
}

static gid_t qemu_gid(const VmsnapLibvirtSnapshot *snapshot) {
    return snapshot->facts->has_owner ? snapshot->facts->gid : getegid();
}

/* Makes the record and the private directories. The record goes first: it tells whose the directories are. */
static gboolean snapshot_prepare(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
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

static void error_append_text(GError **error, const char *text) {
    g_autofree char *message = g_strconcat((*error)->message, text, NULL);
    g_clear_error(error);
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, message);
}

/* libvirt's message names a file or a disk; what the user can change is the scratch directory or the choice of disks.
 */
static void begin_error_add_remedy(const VmsnapLibvirtSnapshot *snapshot, const GPtrArray *selected, GError **error) {
    if (!error || !*error)
        return;
    if (strstr((*error)->message, "different sizes")) {
        error_append_text(error, "; try again if a disk has just been resized");
        return;
    }
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
        g_autofree char *quoted = g_strdup_printf("disk '%s'", disk->base.name);
        if (!strstr((*error)->message, quoted))
            continue;
        g_autofree char *message =
            g_strdup_printf("%s; leave it out with -o exclude=%s", (*error)->message, disk->base.name);
        g_clear_error(error);
        g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, message);
        return;
    }
}

/* What is not in the record would not be undone after a crash, and so must not be begun. */
static gboolean record_promise(VmsnapLibvirtSnapshot *snapshot, gboolean *what, GError **error) {
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
static gboolean can_thaw_during_job(VmsnapLibvirtSnapshot *snapshot) {
    if (vmsnap_quiesce_is_over(snapshot->quiesce))
        return TRUE;
    /* That the agent is gone comes by another way than that it does not answer. */
    g_usleep(AGENT_LAG_US);
    return vmsnap_libvirt_agent_is_connected(snapshot->domain);
}

/* Returns: FALSE with @error set if the guest is not frozen although it must be, or could not be thawed. */
static gboolean snapshot_freeze(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
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
        vmsnap_libvirt_clear_frozen(snapshot);
    if (options->quiesce == VMSNAP_QUIESCE_TRY && can_thaw_during_job(snapshot)) {
        snapshot->base.quiesce_error = g_strdup(freeze_error->message);
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&freeze_error));
    return FALSE;
}

/* Returns: FALSE with @error set if the guest was thawed too early, and that is no snapshot to keep; or not at all. */
static gboolean snapshot_thaw(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    if (!snapshot->base.quiesced)
        return TRUE;
    g_autoptr(GError) thaw_error = NULL;
    if (vmsnap_quiesce_thaw(snapshot->quiesce, options->freeze_timeout_ms, &thaw_error)) {
        vmsnap_libvirt_clear_frozen(snapshot);
        return TRUE;
    }
    snapshot->base.quiesced = FALSE;
    if (options->quiesce == VMSNAP_QUIESCE_TRY && vmsnap_quiesce_is_over(snapshot->quiesce)) {
        vmsnap_libvirt_clear_frozen(snapshot);
        snapshot->base.quiesce_error = g_strdup(thaw_error->message);
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&thaw_error));
    return FALSE;
}

/* Taken before the job begins and not after, so that what the guest had written by this time is surely in. */
static void snapshot_note_instant(VmsnapSnapshot *base) {
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    base->instant_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* @ret_since_is_bad: as for vmsnap_libvirt_begin_job() */
static gboolean snapshot_try_begin_job(VmsnapLibvirtSnapshot *snapshot, const GPtrArray *selected,
                                       gboolean *ret_since_is_bad, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    g_autofree char *description = vmsnap_checkpoint_describe(base, FALSE);
    g_autofree char *checkpoint_xml =
        base->checkpoint ? vmsnap_checkpoint_build_xml(base->checkpoint, description, snapshot->facts, selected) : NULL;
    g_autofree char *xml = vmsnap_domain_build_backup_xml(snapshot->facts, base->disks, snapshot->record->socket,
                                                          snapshot->record->scratch_dir);
    snapshot_note_instant(base);
    if (!vmsnap_libvirt_begin_job(snapshot->domain, xml, checkpoint_xml, ret_since_is_bad, error))
        return FALSE;
    size_t length = strlen(xml);
    vmsnap_snapshot_add_file(base, "backup.xml", g_bytes_new_take(g_steal_pointer(&xml), length), VMSNAP_FILE_HIDDEN);
    return TRUE;
}

/*
 * Whether changes can be had, and noted from now on, turns out only when the job begins. Returns: whether it is worth
 * another try, for which less is wanted.
 */
static gboolean snapshot_want_less(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                   const GPtrArray *selected, gboolean since_is_bad, const GError *reason) {
    if (!options->incremental)
        return FALSE;
    return since_is_bad ? vmsnap_increment_drop(&snapshot->base, reason->message)
                        : vmsnap_increment_untrack(&snapshot->base, selected, reason->message);
}

static gboolean snapshot_begin_job(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                   const GPtrArray *selected, GError **error) {
    snapshot->record->checkpoint = g_strdup(snapshot->base.checkpoint);
    if (!record_promise(snapshot, &snapshot->record->job, error)) {
        g_clear_pointer(&snapshot->record->checkpoint, g_free);
        return FALSE;
    }
    for (;;) {
        g_autoptr(GError) begin_error = NULL;
        gboolean since_is_bad;
        if (snapshot_try_begin_job(snapshot, selected, &since_is_bad, &begin_error)) {
            if (!snapshot->base.checkpoint)
                g_clear_pointer(&snapshot->record->checkpoint, g_free);
            return TRUE;
        }
        if (snapshot_want_less(snapshot, options, selected, since_is_bad, begin_error))
            continue;
        if (since_is_bad)
            error_append_text(&begin_error, "; mount with -o incremental, which takes that disk in full");
        else if (snapshot->base.checkpoint && strstr(begin_error->message, "bitmap"))
            error_append_text(&begin_error, "; leave that disk out with -o exclude=, or mount with -o incremental");
        else
            begin_error_add_remedy(snapshot, selected, &begin_error);
        g_propagate_error(error, g_steal_pointer(&begin_error));
        return FALSE;
    }
}

/*
 * libvirt would have QEMU make them, for which it needs jobs: while these run, QEMU (7.2) fails an assertion and ends
 * if anybody asks it about its block nodes, and libvirtd (9.0) crashes if the guest ends. Here the record keeps other
 * mounts away, but not jobs of others.
 */
static gboolean snapshot_make_scratch(VmsnapLibvirtSnapshot *snapshot, GError **error) {
    if (!vmsnap_libvirt_check_idle(snapshot->domain, error))
        return FALSE;
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        VmsnapLibvirtDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        if (!vmsnap_libvirt_get_size(snapshot->domain, disk->base.name, &disk->base.size_bytes, error) ||
            !vmsnap_scratch_make_image(snapshot->scratch_fd, disk->scratch_name, disk->base.size_bytes,
                                       qemu_uid(snapshot), qemu_gid(snapshot), error))
            return FALSE;
    }
    return TRUE;
}

/* What earlier mounts could not delete costs a little, and nobody begins from it: no reason to have no backup. */
static void snapshot_delete_uncommitted(VmsnapLibvirtSnapshot *snapshot) {
    g_autoptr(GError) error = NULL;
    if (!vmsnap_libvirt_delete_uncommitted(snapshot->domain, &error))
        g_warning("%s", error->message);
}

/* Thaws whatever became of the job. */
static gboolean snapshot_begin_quiesced(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                        const GPtrArray *selected, GError **error) {
    if (!snapshot_freeze(snapshot, options, error))
        return FALSE;
    gboolean begun = snapshot_begin_job(snapshot, options, selected, error);
    return snapshot_thaw(snapshot, options, begun ? error : NULL) && begun;
}

/* What checkpoints there are is needed even where none is asked for: earlier mounts may have left one. */
static gboolean snapshot_plan_increment(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                        const GPtrArray *selected, GError **error) {
    g_autoptr(GPtrArray) checkpoints = vmsnap_libvirt_list_checkpoints(snapshot->domain, error);
    return checkpoints && vmsnap_increment_plan(options, checkpoints, selected, &snapshot->base, error);
}

/* The files of boot and firmware come after the instant, but their names are known. */
static gboolean snapshot_check(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
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

static void snapshot_add_disks(VmsnapLibvirtSnapshot *snapshot, const GPtrArray *selected) {
    for (guint i = 0; i < selected->len; i++) {
        const VmsnapDomainDisk *source = g_ptr_array_index(selected, i);
        VmsnapLibvirtDisk *disk = g_new0(VmsnapLibvirtDisk, 1);
        disk->base.snapshot = &snapshot->base;
        disk->base.name = g_strdup(source->base.name);
        disk->base.source = g_strdup(source->base.source);
        disk->scratch_name = vmsnap_domain_name_scratch(source->base.name);
        g_ptr_array_add(snapshot->base.disks, disk);
    }
}

/* What has another size is not that disk. */
static gboolean snapshot_open_disks(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                                    GError **error) {
    snapshot->threads = vmsnap_io_threads_new(N_IO_THREADS);
    snapshot->server = vmsnap_nbd_server_new_private(snapshot->record->socket, error);
    if (!snapshot->server)
        return FALSE;
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        VmsnapLibvirtDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        g_autofree char *bitmap = disk->base.since ? vmsnap_domain_name_bitmap(disk->base.name) : NULL;
        disk->pool = vmsnap_nbd_pool_new(snapshot->threads, &snapshot->base, snapshot->server, disk->base.name, bitmap,
                                         options->connections, options->timeout_ms, error);
        if (!disk->pool)
            return FALSE;
        if (!vmsnap_nbd_pool_check_size(disk->pool, &disk->base, error))
            return FALSE;
    }
    return vmsnap_increment_check_sizes(options, &snapshot->base, error);
}

/* The files are a bonus: one that cannot be read is named in the manifest, and no reason to have no backup. */
static void snapshot_add_domain_files(VmsnapLibvirtSnapshot *snapshot) {
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

/* All that is done before anything is made. */
static gboolean snapshot_plan(VmsnapLibvirtSnapshot *snapshot, const VmsnapBeginOptions *options,
                              GPtrArray **ret_selected, GError **error) {
    if (!snapshot_look_up(snapshot, options, error))
        return FALSE;
    *ret_selected = vmsnap_domain_select(snapshot->facts, options->disks, options->exclude, &snapshot->base, error);
    if (!*ret_selected)
        return FALSE;
    snapshot_add_disks(snapshot, *ret_selected);
    return snapshot_plan_increment(snapshot, options, *ret_selected, error) && snapshot_check(snapshot, options, error);
}

VmsnapSnapshot *vmsnap_libvirt_begin(const VmsnapBeginOptions *options, GError **error) {
    VmsnapLibvirtSnapshot *snapshot = snapshot_new(options);
    g_autoptr(GPtrArray) selected = NULL;
    gboolean prepared =
        snapshot_plan(snapshot, options, &selected, error) && snapshot_prepare(snapshot, options, error);
    /* The record is published: now there is no other mount of this user whose checkpoint it could be. */
    if (prepared)
        snapshot_delete_uncommitted(snapshot);
    if (!prepared || !snapshot_make_scratch(snapshot, error) ||
        !snapshot_begin_quiesced(snapshot, options, selected, error) ||
        !snapshot_open_disks(snapshot, options, error)) {
        g_autoptr(GError) release_error = NULL;
        if (!vmsnap_libvirt_release(snapshot, TRUE, FALSE, &release_error))
            vmsnap_error_append(error, release_error);
        vmsnap_libvirt_free(&snapshot->base);
        return NULL;
    }
    snapshot_add_domain_files(snapshot);
    return &snapshot->base;
}
