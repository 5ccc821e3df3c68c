/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * umount.fuse.vmsnap: what umount(8) calls for a vmsnap mount. The kernel is done with an unmount long before the
 * daemon has ended the backup job; this waits for it, and says so if the snapshot was lost while it was mounted.
 */
#include "report.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <unistd.h>

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

static gboolean unmount_as_root(const char *mount_point, const Arguments *arguments, GError **error) {
    int flags = UMOUNT_NOFOLLOW | (arguments->lazy ? MNT_DETACH : 0) | (arguments->force ? MNT_FORCE : 0);
    if (umount2(mount_point, flags) == 0)
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

static gboolean outcome_check(int record_fd, const char *mount_point, GError **error) {
    g_autoptr(VmsnapRecord) record = vmsnap_record_wait(record_fd, error);
    if (!record)
        return FALSE;
    if (!record->outcome) {
        g_set_error(
            error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN,
            "failed to end the snapshot of '%s': its daemon died; see 'virsh domjobinfo %s', and do not trust the "
            "last reads",
            mount_point, record->machine);
        return FALSE;
    }
    if (!g_str_equal(record->outcome, "broken"))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN,
                "failed to keep the snapshot of '%s': %s; what was copied "
                "from '%s' may be incomplete",
                record->machine, record->reason, mount_point);
    return FALSE;
}

/* The record is let go a moment before the daemon exits. */
static void process_wait(int pid_fd) {
    struct pollfd waiting = {.fd = pid_fd, .events = POLLIN};
    while (poll(&waiting, 1, -1) < 0 && errno == EINTR)
        ;
}

static gboolean run(const Arguments *arguments, GError **error) {
    /* realpath() fails below a dead daemon; umount(8) gives canonical paths anyway. */
    g_autofree char *mount_point = g_canonicalize_filename(arguments->operands[0], NULL);
    char *resolved = realpath(mount_point, NULL);
    if (resolved) {
        g_free(mount_point);
        mount_point = g_strdup(resolved);
        free(resolved);
    }
    int record_fd = -1;
    g_autoptr(VmsnapRecord) record = vmsnap_record_find_by_mount_point(mount_point, &record_fd);
    int pid_fd = record ? pidfd_open(record->pid, 0) : -1;
    gboolean unmounted = geteuid() == 0 ? unmount_as_root(mount_point, arguments, error)
                                        : unmount_as_user(mount_point, arguments, error);
    /* A lazy unmount ends when the last reader is gone, which nobody wants to wait for. */
    gboolean ended = unmounted && (!record || arguments->lazy || outcome_check(record_fd, mount_point, error));
    if (pid_fd >= 0 && unmounted && !arguments->lazy)
        process_wait(pid_fd);
    if (pid_fd >= 0)
        (void)close(pid_fd);
    if (record_fd >= 0)
        (void)close(record_fd);
    return ended;
}

int main(int argc, char **argv) {
    g_set_prgname("umount.fuse.vmsnap");
    vmsnap_report_to_stderr();
    g_autoptr(GError) error = NULL;
    Arguments arguments = {0};
    gboolean ended = arguments_parse(argc, argv, &arguments, &error) && run(&arguments, &error);
    g_strfreev(arguments.operands);
    return ended ? EXIT_SUCCESS : vmsnap_report_error(error);
}
