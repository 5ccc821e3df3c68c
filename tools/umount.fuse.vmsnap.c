/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * umount.fuse.vmsnap: what umount(8) calls for a vmsnap mount. The kernel is done with an unmount long before the
 * daemon has ended the backup job; this waits for it, and says so if the snapshot was lost while it was mounted.
 */
#include "cleanup.h"
#include "mount_point.h"
#include "report.h"
#include "vmsnap/backend.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/xattr.h>
#include <unistd.h>

/* For what the daemon does beside waiting for the source. */
#define GRACE_MS 5000
#define POLL_US 10000

typedef struct {
    gboolean lazy;
    gboolean force;
    char **operands;
} Arguments;

static gboolean arguments_parse(int argc, char **argv, Arguments *ret_arguments, GError **error) {
    gboolean ignored = FALSE;
    g_autofree char *ignored_type = NULL, *ignored_namespace = NULL;
    const GOptionEntry entries[] = {
        {"lazy", 'l', 0, G_OPTION_ARG_NONE, &ret_arguments->lazy, "Detach now, end when nobody uses it", NULL},
        {"force", 'f', 0, G_OPTION_ARG_NONE, &ret_arguments->force, "Fail the reads under way", NULL},
        {"no-mtab", 'n', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &ignored, NULL, NULL},
        {"read-only", 'r', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &ignored, NULL, NULL},
        {"verbose", 'v', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &ignored, NULL, NULL},
        {"types", 't', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_STRING, &ignored_type, NULL, NULL},
        {"namespace", 'N', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_STRING, &ignored_namespace, NULL, NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &ret_arguments->operands, NULL, NULL},
        {NULL},
    };
    g_autoptr(GOptionContext) context = g_option_context_new("MOUNTPOINT - end a vmsnap mount");
    g_option_context_add_main_entries(context, entries, NULL);
    g_autoptr(GError) parse_error = NULL;
    if (!g_option_context_parse(context, &argc, &argv, &parse_error)) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE, "failed to read the command line: %s",
                    parse_error->message);
        return FALSE;
    }
    if (ret_arguments->operands && g_strv_length(ret_arguments->operands) == 1)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE, "usage: umount.fuse.vmsnap [-fl] MOUNTPOINT");
    return FALSE;
}

/*
 * A forced unmount fails all requests, but the files that are open keep the mount: it is dead, and can be detached. The
 * daemon, which sees that, may be faster with it.
 */
static gboolean detach_dead(const char *mount_point) {
    return !vmsnap_mount_point_is_vmsnap(mount_point) || umount2(mount_point, UMOUNT_NOFOLLOW | MNT_DETACH) == 0 ||
           errno == EINVAL;
}

static gboolean unmount_as_root(const char *mount_point, const Arguments *arguments, GError **error) {
    int flags = UMOUNT_NOFOLLOW | (arguments->lazy ? MNT_DETACH : 0) | (arguments->force ? MNT_FORCE : 0);
    if (umount2(mount_point, flags) == 0 || (arguments->force && errno == EBUSY && detach_dead(mount_point)))
        return TRUE;
    const char *remedy = errno == EBUSY ? "; see who uses it with 'fuser -vm', or detach it with umount -l" : "";
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to unmount '%s': %s%s", mount_point,
                g_strerror(errno), remedy);
    return FALSE;
}

/* Only root may call umount2(); fusermount3 is allowed to, for mounts of the user who asks. */
static gboolean unmount_as_user(const char *mount_point, const Arguments *arguments, GError **error) {
    const char *lazy_argv[] = {"fusermount3", "-u", "-z", "--", mount_point, NULL};
    const char *plain_argv[] = {"fusermount3", "-u", "--", mount_point, NULL};
    g_autofree char *messages = NULL;
    g_autoptr(GError) spawn_error = NULL;
    int status = 0;
    if (g_spawn_sync(NULL, (char **)(arguments->lazy ? lazy_argv : plain_argv), NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                     NULL, &messages, &status, &spawn_error) &&
        g_spawn_check_wait_status(status, &spawn_error))
        return TRUE;
    gboolean said = messages && g_strstrip(messages)[0];
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to unmount '%s': %s", mount_point,
                said ? messages : spawn_error->message);
    return FALSE;
}

static void set_unended_error(const VmsnapRecord *record, GError **error) {
    const VmsnapWords *words = vmsnap_backend_get_words(record->backend);
    g_autofree char *inspect =
        words->inspect ? g_strdup_printf(", and '%s %s'", words->inspect, record->machine) : g_strdup("");
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to see the end of the snapshot of '%s': process %d is still at it after %d s; see whether %s "
                "is well%s",
                record->machine, (int)record->pid, (record->timeout_ms + GRACE_MS) / 1000, words->host, inspect);
}

static gboolean outcome_check(const VmsnapRecord *record, GError **error) {
    if (!record->outcome)
        set_unended_error(record, error);
    else if (g_str_equal(record->outcome, VMSNAP_OUTCOME_BROKEN))
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN,
                    "failed to keep the snapshot of '%s': %s; do not trust what was copied from '%s'", record->machine,
                    record->reason, record->mount_point);
    else if (g_str_equal(record->outcome, VMSNAP_OUTCOME_UNCOMMITTED))
        g_set_error(
            error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
            "failed to keep the checkpoint of '%s': %s; what was copied is whole, but the next backup begins from "
            "an earlier checkpoint",
            record->machine, record->reason);
    else if (record->checkpoint && record->commit)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to see checkpoint '%s' of '%s' committed: vmsnap's guardian goes on trying; see 'virsh "
                    "checkpoint-list %s'",
                    record->checkpoint, record->machine, record->machine);
    else if (g_str_equal(record->outcome, VMSNAP_OUTCOME_LEFTOVER))
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to clear up after the snapshot of '%s', which was whole: %s", record->machine,
                    record->reason);
    else
        return TRUE;
    return FALSE;
}

static gboolean process_is_gone(int pid_fd) {
    struct pollfd waiting = {.fd = pid_fd, .events = POLLIN};
    return pid_fd < 0 || poll(&waiting, 1, 0) > 0;
}

/* Guardian and daemon let go of the record when all is clear; or the daemon ends, and says what it left to others. */
static void end_wait(int record_fd, int pid_fd, const VmsnapRecord *record) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)(record->timeout_ms + GRACE_MS) * 1000;
    gboolean over = FALSE;
    while (!over && g_get_monotonic_time() < deadline_us) {
        gboolean gone = process_is_gone(pid_fd);
        gboolean held = vmsnap_record_is_held(record_fd);
        g_autoptr(VmsnapRecord) now = vmsnap_record_read(record_fd, NULL);
        gboolean left = now && now->outcome && vmsnap_record_has_left(now);
        over = gone && (!held || left);
        if (!over)
            g_usleep(POLL_US);
    }
}

/*
 * Where daemon and guardian were killed, or lacked the right, this process does what they could not. Returns: FALSE
 * with
 * @error set, which says what became of the snapshot, and then what is left.
 */
static gboolean left_clear(const VmsnapRecord *record, int record_fd, GError **error) {
    g_autoptr(GError) left = NULL;
    (void)vmsnap_cleanup_dead_in_time(NULL, record->mount_point, &left);
    g_autoptr(VmsnapRecord) ended = vmsnap_record_read(record_fd, error);
    if (!ended)
        return FALSE;
    gboolean leftover = g_strcmp0(ended->outcome, VMSNAP_OUTCOME_LEFTOVER) == 0;
    if (!outcome_check(ended, error)) {
        if (left && !leftover)
            vmsnap_error_append(error, left);
        return FALSE;
    }
    if (!left)
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&left));
    return FALSE;
}

/*
 * SIGTERM is for a daemon that still serves: a container may have a copy of the mount, which nobody sees here, and
 * would keep the job as long as it lives. SIGUSR1 tells that what was read is not to be relied on, and ends nothing.
 */
static gboolean unmount_and_wait(const char *mount_point, const Arguments *arguments, const VmsnapRecord *record,
                                 int record_fd, int pid_fd, GError **error) {
    if (arguments->force && pid_fd >= 0)
        (void)pidfd_send_signal(pid_fd, SIGUSR1, NULL, 0);
    gboolean unmounted = geteuid() == 0 ? unmount_as_root(mount_point, arguments, error)
                                        : unmount_as_user(mount_point, arguments, error);
    if (!unmounted || !record)
        return unmounted;
    if (pid_fd >= 0) {
        /* A lazy unmount ends when the last reader is gone, which nobody wants to wait for. */
        if (arguments->lazy)
            return TRUE;
        (void)pidfd_send_signal(pid_fd, SIGTERM, NULL, 0);
        end_wait(record_fd, pid_fd, record);
    }
    if (!vmsnap_record_is_held(record_fd) && vmsnap_record_exists(record_fd))
        return left_clear(record, record_fd, error);
    g_autoptr(VmsnapRecord) ended = vmsnap_record_read(record_fd, error);
    return ended && outcome_check(ended, error);
}

/* Once there is an outcome, the number of the daemon's process may be another's. */
static int daemon_open(const VmsnapRecord *record, int record_fd) {
    return !record->outcome && vmsnap_record_is_held(record_fd) ? pidfd_open(record->pid, 0) : -1;
}

/* realpath() fails below a dead daemon; umount(8) gives canonical paths anyway. */
static char *mount_point_resolve(const char *path) {
    char *resolved = realpath(path, NULL);
    char *mount_point = resolved ? g_strdup(resolved) : g_canonicalize_filename(path, NULL);
    free(resolved);
    return mount_point;
}

/* The daemon is asked only where it must be, since it may hang. */
static VmsnapRecord *record_find(const char *mount_point, int *ret_fd) {
    char uuid[64] = "";
    gboolean ambiguous = vmsnap_record_count_by_mount_point(mount_point) > 1;
    gboolean told = ambiguous && getxattr(mount_point, "user.vmsnap.uuid", uuid, sizeof uuid - 1) > 0;
    return vmsnap_record_find_by_mount_point(mount_point, told ? uuid : NULL, ret_fd);
}

static gboolean run(const Arguments *arguments, GError **error) {
    g_autofree char *mount_point = mount_point_resolve(arguments->operands[0]);
    int record_fd = -1;
    g_autoptr(VmsnapRecord) record = record_find(mount_point, &record_fd);
    int pid_fd = record ? daemon_open(record, record_fd) : -1;
    gboolean ended = unmount_and_wait(mount_point, arguments, record, record_fd, pid_fd, error);
    if (pid_fd >= 0)
        (void)close(pid_fd);
    if (record_fd >= 0)
        (void)close(record_fd);
    return ended;
}

int main(int argc, char **argv) {
    g_set_prgname("umount.fuse.vmsnap");
    vmsnap_report_to_stderr(G_LOG_LEVEL_WARNING);
    g_autoptr(GError) error = NULL;
    Arguments arguments = {0};
    gboolean ended = arguments_parse(argc, argv, &arguments, &error) && run(&arguments, &error);
    g_strfreev(arguments.operands);
    return ended ? EXIT_SUCCESS : vmsnap_report_error(error);
}
