/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From nothing to a snapshot that is open: qmp_snapshot.h has the states. */
#include "agent.h"
#include "config.h"
#include "dirs.h"
#include "drive.h"
#include "qmp_backend.h"
#include "qmp_look.h"
#include "qmp_machine.h"
#include "qmp_server.h"
#include "qmp_snapshot.h"
#include "scratch.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define N_IO_THREADS 2
#define LISTEN_BACKLOG 64
/*
 * Copy-before-write keeps clusters of this size, or of a multiple. QEMU (7.2: hbitmap_status) takes a range that begins
 * with kept clusters and goes on with others for one that is not kept, and gives the present for it. Within one cluster
 * it is right.
 */
#define CLUSTER_BYTES (UINT64_C(64) << 10)

static VmsnapQmpSnapshot *snapshot_new(const VmsnapBeginOptions *options) {
    VmsnapQmpSnapshot *snapshot = g_new0(VmsnapQmpSnapshot, 1);
    vmsnap_snapshot_init(&snapshot->base, &vmsnap_qmp_backend);
    snapshot->base.uuid = g_strdup(options->uuid);
    snapshot->graph = vmsnap_qmp_graph_new(options->uuid);
    snapshot->timeout_ms = options->timeout_ms;
    snapshot->scratch_reserve_bytes = options->scratch_reserve_bytes;
    snapshot->scratch_max_bytes = options->scratch_max_bytes;
    snapshot->clear = options->clear;
    snapshot->clear_data = options->clear_data;
    snapshot->scratch_fd = -1;
    snapshot->record_fd = options->record_fd;
    snapshot->record = vmsnap_record_new();
    snapshot->record->uuid = g_strdup(options->uuid);
    snapshot->record->backend = g_strdup(vmsnap_qmp_backend.name);
    snapshot->record->mount_point = g_strdup(options->mount_point);
    snapshot->record->source = g_strdup(options->source);
    snapshot->record->connect_uri = g_strdup(options->source + strlen(VMSNAP_QMP_SCHEME));
    snapshot->record->agent = g_strdup(options->agent);
    snapshot->record->pid = getpid();
    snapshot->record->timeout_ms = (int)options->timeout_ms;
    return snapshot;
}

/* What QEMU says tells what, not of whom, nor what to do about it. */
static void prefix_error(const VmsnapQmpSnapshot *snapshot, const char *what, const char *disk, GError **error) {
    if (!error || !*error)
        return;
    const char *message = (*error)->message;
    const char *remedy = "";
    if (strstr(message, "NBD server already running"))
        remedy = "; a QEMU has only one: end the export that it serves";
    else if (strstr(message, "Parameter 'driver'") || strstr(message, "not whitelisted"))
        remedy = "; QEMU 7.1 or newer is needed, with its drivers copy-before-write and snapshot-access";
    else if (disk && strstr(message, "onflict"))
        remedy = "; another job or export uses the disk: end that, or leave the disk out with -o exclude=";
    GError *whole =
        g_error_new(VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to %s%s%s%s machine '%s': %s%s", what, disk ? " '" : "",
                    disk ? disk : "", disk ? "' of" : "", snapshot->base.machine, message, remedy);
    g_clear_error(error);
    *error = whole;
}

static void snapshot_add_disks(VmsnapQmpSnapshot *snapshot, const GPtrArray *selected, gboolean can_release) {
    for (guint i = 0; i < selected->len; i++) {
        const VmsnapQmpDrive *drive = g_ptr_array_index(selected, i);
        VmsnapQmpDisk *disk = g_new0(VmsnapQmpDisk, 1);
        disk->base.snapshot = &snapshot->base;
        disk->base.name = g_strdup(drive->base.name);
        disk->base.source = g_strdup(drive->base.source);
        disk->base.size_bytes = drive->size_bytes;
        disk->base.can_release = can_release;
        disk->base.boundary_bytes = CLUSTER_BYTES;
        disk->scratch_name = g_strconcat(drive->base.name, ".qcow2", NULL);
        g_ptr_array_add(snapshot->base.disks, disk);
        vmsnap_qmp_graph_add(snapshot->graph, drive->base.name, drive->device, drive->node, drive->base.source);
    }
}

static gboolean snapshot_take_facts(VmsnapQmpSnapshot *snapshot, const VmsnapQmpFacts *facts,
                                    const VmsnapBeginOptions *options, GError **error) {
    VmsnapSnapshot *base = &snapshot->base;
    base->machine = g_strdup(facts->machine);
    base->machine_uuid = g_strdup(facts->uuid);
    vmsnap_snapshot_add_file(base, "qemu.json", g_bytes_ref(facts->description), VMSNAP_FILE_CONFIG);
    g_autofree char *owner = g_strdup_printf("machine '%s'", facts->machine);
    g_autoptr(GPtrArray) selected =
        vmsnap_drives_select(facts->drives, owner, options->disks, options->exclude, base, error);
    if (!selected)
        return FALSE;
    snapshot_add_disks(snapshot, selected, options->release);
    return TRUE;
}

/* All that is done before anything is made. */
static gboolean snapshot_plan(VmsnapQmpSnapshot *snapshot, VmsnapQmp *qmp, const VmsnapBeginOptions *options,
                              GError **error) {
    g_autoptr(VmsnapQmpFacts) facts = vmsnap_qmp_look(qmp, snapshot->record->connect_uri, error);
    if (!facts || !snapshot_take_facts(snapshot, facts, options, error))
        return FALSE;
    vmsnap_snapshot_add_version(&snapshot->base, "vmsnap", g_strdup(VMSNAP_VERSION));
    vmsnap_snapshot_add_version(&snapshot->base, "qemu", g_strdup(vmsnap_qmp_get_version(qmp)));
    return options->check(&snapshot->base, options->check_data, error);
}

/* Nobody else needs to get at socket and scratch: QEMU gets descriptors. */
static gboolean snapshot_prepare(VmsnapQmpSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    VmsnapRecord *record = snapshot->record;
    g_autofree char *runtime_base = vmsnap_dirs_get_runtime();
    record->runtime_dir = g_build_filename(runtime_base, record->uuid, NULL);
    record->socket = g_build_filename(record->runtime_dir, "nbd.sock", NULL);
    record->scratch_dir =
        vmsnap_scratch_choose(options->scratch_dir, record->uuid, options->scratch_reserve_bytes, error);
    record->machine = g_strdup(snapshot->base.machine);
    record->machine_uuid = g_strdup(snapshot->base.machine_uuid);
    record->graph = vmsnap_qmp_graph_to_text(snapshot->graph);
    if (!record->scratch_dir)
        return FALSE;
    snapshot->published = vmsnap_record_publish(snapshot->record_fd, record, error);
    if (!snapshot->published || !vmsnap_dirs_make_private(record->runtime_dir, geteuid(), getegid(), error) ||
        !vmsnap_dirs_make_private(record->scratch_dir, geteuid(), getegid(), error))
        return FALSE;
    snapshot->scratch_fd = open(record->scratch_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (snapshot->scratch_fd < 0)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to open scratch directory '%s': %s",
                    record->scratch_dir, g_strerror(errno));
    return snapshot->scratch_fd >= 0;
}

/* What is not in the record would not be undone after a crash, and so must not be begun. */
static gboolean record_promise(VmsnapQmpSnapshot *snapshot, gboolean *what, GError **error) {
    *what = TRUE;
    if (vmsnap_record_update(snapshot->record_fd, snapshot->record))
        return TRUE;
    *what = FALSE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to begin the snapshot of machine '%s': its record beside '%s' cannot be written; free some "
                "space there",
                snapshot->base.machine, snapshot->record->runtime_dir);
    return FALSE;
}

/* Returns: a listening socket, to be closed, or -1 with @error set. */
static int socket_listen(const char *path, GError **error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    gboolean fits = g_strlcpy(address.sun_path, path, sizeof address.sun_path) < sizeof address.sun_path;
    errno = ENAMETOOLONG;
    int fd = fits ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 && listen(fd, LISTEN_BACKLOG) == 0)
        return fd;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to make socket '%s': %s%s", path, g_strerror(errno),
                fits ? "" : "; set XDG_RUNTIME_DIR to a shorter path");
    if (fd >= 0)
        (void)close(fd);
    return -1;
}

static gboolean snapshot_start_server(VmsnapQmpSnapshot *snapshot, VmsnapQmp *qmp, GError **error) {
    int fd = socket_listen(snapshot->record->socket, error);
    if (fd < 0)
        return FALSE;
    gboolean started = vmsnap_qmp_server_start(qmp, fd, error);
    (void)close(fd);
    if (!started)
        prefix_error(snapshot, "start an NBD server in", NULL, error);
    return started;
}

static gboolean disk_insert(VmsnapQmpSnapshot *snapshot, guint place, VmsnapQmp *qmp, GError **error) {
    const VmsnapQmpDisk *disk = g_ptr_array_index(snapshot->base.disks, place);
    if (!vmsnap_scratch_make_image(snapshot->scratch_fd, disk->scratch_name, disk->base.size_bytes, geteuid(),
                                   getegid(), error))
        return FALSE;
    int fd = openat(snapshot->scratch_fd, disk->scratch_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to open '%s' in the scratch directory: %s",
                    disk->scratch_name, g_strerror(errno));
        return FALSE;
    }
    gboolean inserted = vmsnap_qmp_graph_insert(snapshot->graph, place, qmp, fd, error);
    (void)close(fd);
    if (!inserted)
        prefix_error(snapshot, "put copy-before-write under disk", disk->base.name, error);
    return inserted;
}

static gboolean snapshot_insert(VmsnapQmpSnapshot *snapshot, VmsnapQmp *qmp, GError **error) {
    for (guint i = 0; i < snapshot->base.disks->len; i++)
        if (!disk_insert(snapshot, i, qmp, error))
            return FALSE;
    return TRUE;
}

static void record_clear_frozen(VmsnapQmpSnapshot *snapshot) {
    snapshot->record->frozen = FALSE;
    (void)vmsnap_record_update(snapshot->record_fd, snapshot->record);
}

/*
 * Returns: (transfer full): the agent if the guest is frozen. Else NULL, with @error set if nothing is to be begun:
 * what may be frozen is thawed at once, and only where that has not worked is it left to the guardian.
 */
static VmsnapAgent *snapshot_freeze(VmsnapQmpSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    if (options->quiesce == VMSNAP_QUIESCE_NO || !record_promise(snapshot, &snapshot->record->frozen, error))
        return NULL;
    g_autoptr(GError) freeze_error = NULL;
    gboolean unknown = FALSE;
    g_autoptr(VmsnapAgent) agent =
        vmsnap_agent_connect(snapshot->record->agent, options->freeze_timeout_ms, NULL, &freeze_error);
    if (agent && vmsnap_agent_freeze(agent, &unknown, &freeze_error))
        return g_steal_pointer(&agent);
    gboolean thawed = !unknown || vmsnap_agent_thaw(agent, NULL);
    if (thawed)
        record_clear_frozen(snapshot);
    if (thawed && options->quiesce == VMSNAP_QUIESCE_TRY)
        snapshot->base.quiesce_error = g_strdup(freeze_error->message);
    else
        g_propagate_error(error, g_steal_pointer(&freeze_error));
    return NULL;
}

/* Taken before the instant and not after, so that what the guest had written by this time is surely in. */
static void snapshot_note_instant(VmsnapSnapshot *base) {
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    base->instant_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A frozen guest is thawed when its time is up, whatever has become of the switch. */
static gboolean snapshot_switch(VmsnapQmpSnapshot *snapshot, VmsnapQmp *qmp, const VmsnapBeginOptions *options,
                                GError **error) {
    g_autoptr(GError) freeze_error = NULL;
    g_autoptr(VmsnapAgent) agent = snapshot_freeze(snapshot, options, &freeze_error);
    if (freeze_error) {
        g_propagate_error(error, g_steal_pointer(&freeze_error));
        return FALSE;
    }
    snapshot->base.quiesced = agent != NULL;
    snapshot_note_instant(&snapshot->base);
    if (agent)
        vmsnap_qmp_set_timeout(qmp, MIN(options->freeze_timeout_ms, options->timeout_ms));
    gboolean switched = vmsnap_qmp_graph_switch(snapshot->graph, qmp, error);
    vmsnap_qmp_set_timeout(qmp, options->timeout_ms);
    if (!switched)
        prefix_error(snapshot, "begin the snapshot of", NULL, error);
    if (!agent)
        return switched;
    gboolean thawed = vmsnap_agent_thaw(agent, switched ? error : NULL);
    if (thawed)
        record_clear_frozen(snapshot);
    return switched && thawed;
}

static gboolean snapshot_export(VmsnapQmpSnapshot *snapshot, VmsnapQmp *qmp, GError **error) {
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        if (vmsnap_qmp_graph_export(snapshot->graph, i, qmp, disk->can_release, error))
            continue;
        prefix_error(snapshot, "export disk", disk->name, error);
        return FALSE;
    }
    return TRUE;
}

/* A job that somebody has begun meanwhile would not see what the guest writes. */
static gboolean snapshot_put_into_qemu(VmsnapQmpSnapshot *snapshot, VmsnapQmp *qmp, const VmsnapBeginOptions *options,
                                       GError **error) {
    if (!record_promise(snapshot, &snapshot->record->job, error) || !snapshot_start_server(snapshot, qmp, error) ||
        !snapshot_insert(snapshot, qmp, error))
        return FALSE;
    vmsnap_qmp_graph_sync_images(snapshot->graph, options->timeout_ms / 2);
    return vmsnap_qmp_check_idle(qmp, snapshot->base.machine, error) &&
           snapshot_switch(snapshot, qmp, options, error) && snapshot_export(snapshot, qmp, error);
}

/* What has another size is not that disk. */
static gboolean snapshot_open_disks(VmsnapQmpSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    snapshot->threads = vmsnap_io_threads_new(N_IO_THREADS);
    snapshot->server = vmsnap_nbd_server_new_private(snapshot->record->socket, error);
    if (!snapshot->server)
        return FALSE;
    for (guint i = 0; i < snapshot->base.disks->len; i++) {
        VmsnapQmpDisk *disk = g_ptr_array_index(snapshot->base.disks, i);
        disk->pool = vmsnap_nbd_pool_new(snapshot->threads, &snapshot->base, snapshot->server, disk->base.name, NULL,
                                         options->connections, options->timeout_ms, error);
        if (!disk->pool || !vmsnap_nbd_pool_check_size(disk->pool, &disk->base, error))
            return FALSE;
        g_autofree char *scratch = vmsnap_qmp_graph_name_scratch(snapshot->graph, i);
        disk->scratch = vmsnap_nbd_pool_new(snapshot->threads, &snapshot->base, snapshot->server, scratch, NULL, 1,
                                            options->timeout_ms, error);
        if (!disk->scratch)
            return FALSE;
    }
    return TRUE;
}

static gboolean check_options(const VmsnapBeginOptions *options, GError **error) {
    if (options->quiesce == VMSNAP_QUIESCE_NO || options->agent)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE,
                "failed to use option 'quiesce' with '%s': nobody tells where its guest agent is; add agent=PATH, the "
                "socket of its chardev",
                options->source);
    return FALSE;
}

/* The monitor is for others again when this returns. */
static gboolean snapshot_begin(VmsnapQmpSnapshot *snapshot, const VmsnapBeginOptions *options, GError **error) {
    if (!check_options(options, error))
        return FALSE;
    /* Whoever waits for us is to hear why the monitor does not let us in, and not just that time is up. */
    g_autoptr(VmsnapQmp) qmp =
        vmsnap_qmp_connect(snapshot->record->connect_uri, options->timeout_ms / 4 * 3, NULL, error);
    if (!qmp)
        return FALSE;
    vmsnap_qmp_set_timeout(qmp, options->timeout_ms);
    return snapshot_plan(snapshot, qmp, options, error) && snapshot_prepare(snapshot, options, error) &&
           snapshot_put_into_qemu(snapshot, qmp, options, error);
}

VmsnapSnapshot *vmsnap_qmp_begin(const VmsnapBeginOptions *options, GError **error) {
    VmsnapQmpSnapshot *snapshot = snapshot_new(options);
    if (snapshot_begin(snapshot, options, error) && snapshot_open_disks(snapshot, options, error))
        return &snapshot->base;
    g_autoptr(GError) release_error = NULL;
    if (!vmsnap_qmp_snapshot_release(snapshot, TRUE, &release_error))
        vmsnap_error_append(error, release_error);
    vmsnap_qmp_snapshot_free(&snapshot->base);
    return NULL;
}
