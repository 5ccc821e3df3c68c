/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads
 *
 * libfuse's loop reads requests on a few threads. An operation answers at once, or hands its request to a callback and
 * returns: no FUSE thread ever waits for a disk, and none for another request. Callbacks come on threads of the
 * backend and reply from there; libfuse allows a reply from any thread. What the operations look at, the tree and its
 * layouts, is frozen before the loop begins.
 *
 * The end has an order: the loop stops, the mount goes, the snapshot ends (which answers all that its backend has),
 * what the throttle still holds back is answered, and only then the session may be freed, and with it the descriptor
 * that the answers went to.
 */
#define FUSE_USE_VERSION 312
#include "session.h"

#include "ops.h"
#include "refuse.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Operations never wait, so a few threads keep up with all readers. */
#define MAX_LOOP_THREADS 4
#define KERNEL_READAHEAD_KIB 1024

struct VmsnapSession {
    VmsnapOps ops;
    struct fuse_session *fuse;
    VmsnapReadyFunc ready; /* these two while it runs */
    gpointer ready_data;
    uint64_t mount_id; /* the kernel's number of our mount, 0 if it cannot tell */
};

/*
 * libfuse says why it fails only in its log, in pieces of lines. Used by the thread that mounts, while it mounts and
 * until the first request is served.
 */
static char last_fuse_message[256];

static void fuse_message_keep(enum fuse_log_level level, const char *format, va_list arguments) {
    (void)level;
    size_t length = strlen(last_fuse_message);
    if (length > 0 && last_fuse_message[length - 1] == '\n')
        length = 0;
    (void)vsnprintf(last_fuse_message + length, sizeof last_fuse_message - length, format, arguments);
}

static void fuse_message_log(enum fuse_log_level level, const char *format, va_list arguments) {
    g_autofree char *message = g_strdup_vprintf(format, arguments);
    g_log(G_LOG_DOMAIN, level <= FUSE_LOG_WARNING ? G_LOG_LEVEL_WARNING : G_LOG_LEVEL_INFO, "%s", g_strchomp(message));
}

static const char *fuse_message_or(const char *fallback) {
    return last_fuse_message[0] ? g_strchomp(last_fuse_message) : fallback;
}

/* A comma ends an option and a backslash escapes: both must be escaped in a name that users chose. */
static char *option_value_escape(const char *value) {
    GString *escaped = g_string_new(NULL);
    for (const char *c = value; *c; c++) {
        if (*c == ',' || *c == '\\')
            g_string_append_c(escaped, '\\');
        g_string_append_c(escaped, *c);
    }
    return g_string_free(escaped, FALSE);
}

static char *fuse_options_build(const VmsnapSessionOptions *options) {
    g_autofree char *fs_name = option_value_escape(options->fs_name);
    return g_strdup_printf("%s,default_permissions,subtype=vmsnap,fsname=%s%s%s%s", options->read_only ? "ro" : "rw",
                           fs_name, options->allow_other ? ",allow_other" : "", options->mount_options ? "," : "",
                           options->mount_options ? options->mount_options : "");
}

static struct fuse_session *fuse_session_make(VmsnapSession *session, const VmsnapSessionOptions *options) {
    g_autofree char *mount_options = fuse_options_build(options);
    struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
    struct fuse_lowlevel_ops operations = vmsnap_fuse_operations;
    vmsnap_refuse_changes(&operations);
    struct fuse_session *fuse = NULL;
    if (fuse_opt_add_arg(&arguments, "vmsnap") == 0 && fuse_opt_add_arg(&arguments, "-o") == 0 &&
        fuse_opt_add_arg(&arguments, mount_options) == 0)
        fuse = fuse_session_new(&arguments, &operations, sizeof operations, &session->ops);
    fuse_opt_free_args(&arguments);
    return fuse;
}

/* Takes stderr away from what writes to it. Returns: what gives it back, or -1 if it could not be taken. */
static int stderr_redirect(int file_fd) {
    int stderr_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (stderr_fd >= 0 && dup2(file_fd, STDERR_FILENO) >= 0)
        return stderr_fd;
    if (stderr_fd >= 0)
        (void)close(stderr_fd);
    return -1;
}

/* For an ordinary user fusermount3 mounts, and says on stderr why it does not: here an error is said by the caller. */
static int fuse_session_mount_quietly(struct fuse_session *fuse, const char *mount_point) {
    int file_fd = memfd_create("fusermount3", MFD_CLOEXEC);
    int stderr_fd = file_fd >= 0 ? stderr_redirect(file_fd) : -1;
    int result = fuse_session_mount(fuse, mount_point);
    if (stderr_fd >= 0) {
        (void)dup2(stderr_fd, STDERR_FILENO);
        (void)close(stderr_fd);
        char said[sizeof last_fuse_message] = "";
        if (pread(file_fd, said, sizeof said - 1, 0) > 0)
            (void)g_strlcpy(last_fuse_message, g_strchomp(said), sizeof last_fuse_message);
    }
    if (file_fd >= 0)
        (void)close(file_fd);
    return result;
}

/*
 * The kernel reads 128 KiB ahead for who reads through the page cache, which is too little to keep QEMU busy; and
 * libfuse can only ask for less. It is no loss where sysfs cannot be written: then only the read-ahead of fs/reader.c
 * is there.
 */
static void kernel_readahead_raise(const struct statx *root) {
    g_autofree char *path =
        g_strdup_printf("/sys/class/bdi/%u:%u/read_ahead_kb", root->stx_dev_major, root->stx_dev_minor);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)dprintf(fd, "%d", KERNEL_READAHEAD_KIB);
    (void)close(fd);
}

/* Looks at the root of the new mount, without a request to it, which nobody would answer yet. */
static void session_note_mount(VmsnapSession *session, const char *mount_point) {
    struct statx root;
    if (statx(AT_FDCWD, mount_point, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_MNT_ID, &root) != 0)
        return;
    if (root.stx_mask & STATX_MNT_ID)
        session->mount_id = root.stx_mnt_id;
    /* Somebody may have mounted another filesystem there by now, one with a device. */
    gboolean is_ours = root.stx_dev_major == 0;
    /* Where files are read once, the kernel reads nothing ahead (fs/ops.c). */
    if (is_ours && !session->ops.view->resources.releases)
        kernel_readahead_raise(&root);
}

VmsnapSession *vmsnap_session_mount(VmsnapView *view, const VmsnapSessionOptions *options, const char *mount_point,
                                    GError **error) {
    g_autoptr(VmsnapSession) session = g_new0(VmsnapSession, 1);
    vmsnap_ops_init(&session->ops, view, options);
    last_fuse_message[0] = '\0';
    fuse_set_log_func(fuse_message_keep);

    session->fuse = fuse_session_make(session, options);
    if (!session->fuse) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE, "failed to use the mount options: %s",
                    fuse_message_or("libfuse gives no reason"));
        return NULL;
    }
    if (fuse_session_mount_quietly(session->fuse, mount_point) != 0) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to mount on '%s': %s", mount_point,
                    fuse_message_or("libfuse gives no reason"));
        return NULL;
    }
    session_note_mount(session, mount_point);
    return g_steal_pointer(&session);
}

uint64_t vmsnap_session_get_mount_id(const VmsnapSession *session) {
    return session->mount_id;
}

static void ending_signals_set_mask(int how) {
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(how, &signals, NULL);
}

/* The first request has come through, so from here on libfuse complains of nothing that keeps the mount from working.
 */
static void session_ready(gpointer user_data) {
    VmsnapSession *session = user_data;
    fuse_set_log_func(fuse_message_log);
    /* A signal to this process might come before its first thread waits for one. */
    if (!session->ready(session->ready_data))
        fuse_session_exit(session->fuse);
}

static int session_loop(VmsnapSession *session) {
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_max_threads(config, MAX_LOOP_THREADS);
    fuse_loop_cfg_set_idle_threads(config, MAX_LOOP_THREADS);
    /* Only while there is a handler: otherwise they would kill the process, and nobody would end the snapshot. */
    ending_signals_set_mask(SIG_UNBLOCK);
    int result = fuse_session_loop_mt(session->fuse, config);
    ending_signals_set_mask(SIG_BLOCK);
    fuse_loop_cfg_destroy(config);
    return result;
}

int vmsnap_session_run(VmsnapSession *session, VmsnapReadyFunc ready, gpointer user_data, GError **error) {
    session->ready = ready;
    session->ready_data = user_data;
    session->ops.ready = session_ready;
    session->ops.ready_data = session;
    last_fuse_message[0] = '\0';
    fuse_set_log_func(fuse_message_keep);
    int result = -1;
    if (fuse_set_signal_handlers(session->fuse) == 0) {
        result = session_loop(session);
        fuse_remove_signal_handlers(session->fuse);
    }
    fuse_set_log_func(fuse_message_log);
    if (result >= 0)
        return result;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to serve the mount: %s",
                fuse_message_or(g_strerror(-result)));
    return -1;
}

gboolean vmsnap_session_is_connected(const VmsnapSession *session) {
    struct pollfd device = {.fd = fuse_session_fd(session->fuse)};
    return !(poll(&device, 1, 0) > 0 && (device.revents & POLLERR));
}

void vmsnap_session_free(VmsnapSession *session) {
    if (!session)
        return;
    vmsnap_view_stop(session->ops.view);
    vmsnap_ops_clear(&session->ops);
    if (session->fuse)
        fuse_session_destroy(session->fuse);
    g_free(session);
}
