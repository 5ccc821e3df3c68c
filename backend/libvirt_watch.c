/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much room is left is asked in time: not later than the fastest guest would need to use it up. Between these
 * looks, QEMU tells when a scratch file has grown over half of the room (block threshold), and libvirt when the guest
 * was paused. While libvirt is away there are only the looks, and the job is ended as soon as it is back.
 *
 * All runs on one thread, in libvirt's event loop; the others only tell it to stop.
 */
#include "libvirt_watch.h"

#include "domain.h"
#include "room.h"
#include "vmsnap/thread.h"

/* When there is more to do. */
#define SOON_MS 10
/* When scratch could not be looked at. */
#define BLIND_LOOK_MS 1000
/* A libvirtd that hangs must not keep us from the next try. */
#define KEEPALIVE_INTERVAL_S 5
#define KEEPALIVE_COUNT 2
/* QEMU pauses a guest some time after its write has failed. */
#define PAUSE_LAG_MS 500
#define LATE_PAUSE_US 10000000
/* After so many looks in a row at scratch files that are not there, they are surely gone, and nobody would see them
 * grow. */
#define MAX_BLIND_LOOKS 3
/* Below that an announcement would come too late to be of use. */
#define MIN_THRESHOLD_BYTES (UINT64_C(1) << 20)

struct VmsnapLibvirtWatch {
    VmsnapSnapshot *snapshot;
    VmsnapLibvirtWatchOptions options;
    GThread *thread;
    int stopped; /* atomic */
    int timer;   /* of libvirt's event loop; immutable once the thread runs */

    virConnectPtr connection; /* these belong to the thread; owned, or NULL */
    virDomainPtr domain;
    gboolean thresholds_due;
    int lifecycle_id; /* these two of the connection's callbacks; -1 if there is none */
    int threshold_id;
    unsigned blind_looks;
    gboolean job_ended;
    gint64 job_ended_us;
    gboolean warned;
};

/*
 * Readers first: what they read after the job has ended would be of the present. The guest is resumed where it was
 * paused: its failed writes are made again then, without a copy to scratch.
 */
static void job_end(VmsnapLibvirtWatch *watch) {
    VmsnapJob job = watch->options.job;
    job.connection = watch->connection;
    job.pause_lag_ms = PAUSE_LAG_MS;
    g_autoptr(GError) error = NULL;
    watch->job_ended = vmsnap_libvirt_end_job(&job, &error) != VMSNAP_JOB_FAILED;
    watch->job_ended_us = g_get_monotonic_time();
    if (watch->job_ended)
        watch->options.ended(watch->options.user_data);
    else
        g_warning("%s; it is tried again", error->message);
}

static void break_for_room(VmsnapLibvirtWatch *watch, const VmsnapRoom *room) {
    vmsnap_room_break(watch->snapshot, room, "the backup job was ended");
    job_end(watch);
}

static void break_for_pause(VmsnapLibvirtWatch *watch) {
    vmsnap_snapshot_break(watch->snapshot, "the guest was paused by an I/O error, which may have come from scratch, "
                                           "and the backup job was ended so that it can go on");
    job_end(watch);
}

/* A pause that comes soon after the end of the job is still about it; a later one is the guest's own. */
static void guest_suspended(virConnectPtr connection, virDomainPtr domain, int event, int detail, void *user_data) {
    (void)connection;
    VmsnapLibvirtWatch *watch = user_data;
    if (event != VIR_DOMAIN_EVENT_SUSPENDED || detail != VIR_DOMAIN_EVENT_SUSPENDED_IOERROR)
        return;
    g_autoptr(GError) error = NULL;
    if (!watch->job_ended)
        break_for_pause(watch);
    else if (watch->options.job.may_resume && g_get_monotonic_time() - watch->job_ended_us < LATE_PAUSE_US &&
             !vmsnap_libvirt_resume(domain, PAUSE_LAG_MS, &error))
        g_warning("%s", error->message);
}

static void threshold_passed(virConnectPtr connection, virDomainPtr domain, const char *device, const char *path,
                             unsigned long long threshold, unsigned long long excess, void *user_data) {
    (void)connection;
    (void)domain;
    (void)device;
    (void)path;
    (void)threshold;
    (void)excess;
    VmsnapLibvirtWatch *watch = user_data;
    watch->thresholds_due = TRUE;
    virEventUpdateTimeout(watch->timer, 0);
}

/* A write beyond this size of its file is told. */
static void threshold_set(const VmsnapLibvirtWatch *watch, const char *backup_xml, VmsnapDisk *disk,
                          uint64_t room_bytes) {
    uint64_t used_bytes, left_bytes;
    g_autofree char *device = vmsnap_domain_parse_scratch_device(backup_xml, disk->name);
    if (device && vmsnap_disk_get_scratch(disk, &used_bytes, &left_bytes))
        (void)virDomainSetBlockThreshold(watch->domain, device, used_bytes + MAX(room_bytes / 2, MIN_THRESHOLD_BYTES),
                                         0);
}

static void thresholds_set(VmsnapLibvirtWatch *watch, const VmsnapRoom *room) {
    g_autofree char *xml = virDomainBackupGetXMLDesc(watch->domain, 0);
    watch->thresholds_due = FALSE;
    for (guint i = 0; xml && i < watch->snapshot->disks->len; i++)
        threshold_set(watch, xml, g_ptr_array_index(watch->snapshot->disks, i), room->room_bytes);
}

static void callback_deregister(const VmsnapLibvirtWatch *watch, int *id) {
    if (*id >= 0)
        (void)virConnectDomainEventDeregisterAny(watch->connection, *id);
    *id = -1;
}

/* A callback holds the connection. */
static void disconnect(VmsnapLibvirtWatch *watch) {
    callback_deregister(watch, &watch->lifecycle_id);
    callback_deregister(watch, &watch->threshold_id);
    if (watch->domain)
        (void)virDomainFree(g_steal_pointer(&watch->domain));
    if (watch->connection)
        (void)virConnectClose(g_steal_pointer(&watch->connection));
}

static gboolean events_register(VmsnapLibvirtWatch *watch) {
    watch->lifecycle_id =
        virConnectDomainEventRegisterAny(watch->connection, watch->domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                         VIR_DOMAIN_EVENT_CALLBACK(guest_suspended), watch, NULL);
    watch->threshold_id =
        virConnectDomainEventRegisterAny(watch->connection, watch->domain, VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD,
                                         VIR_DOMAIN_EVENT_CALLBACK(threshold_passed), watch, NULL);
    return watch->lifecycle_id >= 0 && watch->threshold_id >= 0;
}

/* What happens while there is no connection is not told: a new one has to ask. */
static void reconnect(VmsnapLibvirtWatch *watch) {
    if (watch->connection && virConnectIsAlive(watch->connection) > 0)
        return;
    disconnect(watch);
    g_autoptr(GError) error = NULL;
    watch->connection = vmsnap_libvirt_connect(watch->options.job.uri, &error);
    if (watch->connection)
        (void)virConnectSetKeepAlive(watch->connection, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT);
    if (watch->connection)
        watch->domain = virDomainLookupByUUIDString(watch->connection, watch->options.job.domain_uuid);
    gboolean connected = watch->domain && events_register(watch);
    if (!connected && !watch->warned)
        g_warning("the connection to libvirt is lost: %s", error ? error->message : virGetLastErrorMessage());
    else if (connected && watch->warned)
        g_message("the connection to libvirt is back");
    watch->warned = !connected;
    watch->thresholds_due = connected;
    if (!connected)
        disconnect(watch);
    else if (watch->options.job.may_resume && vmsnap_libvirt_is_paused_by_error(watch->domain))
        break_for_pause(watch);
}

/* Returns: when to look again. */
static int look_once(VmsnapLibvirtWatch *watch) {
    VmsnapRoom room = {0};
    watch->options.settle(watch->options.user_data);
    reconnect(watch);
    if (watch->job_ended)
        return -1;
    if (vmsnap_snapshot_is_broken(watch->snapshot)) {
        /* For whatever reason: from now on the job only costs the guest. */
        job_end(watch);
        return SOON_MS;
    }
    if (!vmsnap_room_measure(watch->snapshot, watch->options.reserve_bytes, watch->options.max_bytes, &room)) {
        if (++watch->blind_looks >= MAX_BLIND_LOOKS)
            vmsnap_snapshot_break(watch->snapshot, "the scratch files are gone, or cannot be looked at");
        return BLIND_LOOK_MS;
    }
    watch->blind_looks = 0;
    if (room.room_bytes == 0) {
        break_for_room(watch, &room);
        return SOON_MS;
    }
    if (watch->domain && watch->thresholds_due)
        thresholds_set(watch, &room);
    return (int)vmsnap_room_get_interval_ms(&room);
}

/* Called by libvirt's event loop: when the timer is due, or a threshold was passed. */
static void look(int timer, void *user_data) {
    VmsnapLibvirtWatch *watch = user_data;
    gboolean over = watch->job_ended || g_atomic_int_get(&watch->stopped);
    virEventUpdateTimeout(timer, over ? -1 : look_once(watch));
}

static gpointer watch_run(gpointer data) {
    VmsnapLibvirtWatch *watch = data;
    while (!g_atomic_int_get(&watch->stopped))
        (void)virEventRunDefaultImpl();
    virEventRemoveTimeout(watch->timer);
    disconnect(watch);
    return NULL;
}

VmsnapLibvirtWatch *vmsnap_libvirt_watch_new(VmsnapSnapshot *snapshot, const VmsnapLibvirtWatchOptions *options,
                                             GError **error) {
    VmsnapLibvirtWatch *watch = g_new0(VmsnapLibvirtWatch, 1);
    watch->snapshot = snapshot;
    watch->options = *options;
    watch->lifecycle_id = watch->threshold_id = -1;
    (void)virEventRegisterDefaultImpl();
    watch->timer = virEventAddTimeout(0, look, watch, NULL);
    watch->thread = vmsnap_thread_try_new("vmsnap-watch", watch_run, watch, error);
    if (watch->thread)
        return watch;
    virEventRemoveTimeout(watch->timer);
    g_free(watch);
    return NULL;
}

void vmsnap_libvirt_watch_free(VmsnapLibvirtWatch *watch) {
    if (!watch)
        return;
    g_atomic_int_set(&watch->stopped, TRUE);
    virEventUpdateTimeout(watch->timer, 0);
    (void)g_thread_join(watch->thread);
    g_free(watch);
}
