/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Daemon and guardian are connected by a pair of sockets. A message from the daemon is a request, the answer a
 * gboolean. The end of the stream is the end of the daemon.
 */
#include "guardian.h"

#include "cleanup.h"
#include "mount_point.h"
#include "report.h"
#include "vmsnap/backend.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* For one try: it has more of them, and each time the mount is taken away only after it. */
#define TRY_TIMEOUT_MS 2000
#define MIN_PAUSE_S 1
#define MAX_PAUSE_S 10
/* For what the daemon has left to it since it lacks the right: that works at once, or not so soon. */
#define FINISH_WAIT_MS 3000

enum {
    REQUEST_UNMOUNT, /* answered: whether the mount was still there */
    REQUEST_CLEAR,   /* the machine; answered: whether that is done */
};

/* Without padding, which would be sent as well. */
typedef struct {
    uint64_t kind;
    uint64_t mount_id; /* of what to unmount */
} Request;

/* What is tried again and again is told when it is new. */
static void warn_of_change(const char *message, char **last_message) {
    if (g_strcmp0(message, *last_message) != 0)
        g_warning("%s", message);
    g_free(*last_message);
    *last_message = g_strdup(message);
}

/* Returns: (transfer full): the record; or NULL with @error set; or NULL without, if nothing was begun. */
static VmsnapRecord *record_read(const VmsnapGuardian *guardian, GError **error) {
    if (vmsnap_record_is_published(guardian->record_fd))
        return vmsnap_record_read(guardian->record_fd, error);
    vmsnap_record_remove(guardian->uuid);
    return NULL;
}

/* The daemon lives, and waits for this: so nobody else writes the record, and an outcome is not for us to note. */
static gboolean machine_clear(const VmsnapGuardian *guardian, char **last_message) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapRecord) record = vmsnap_record_read(guardian->record_fd, &error);
    if (record) {
        record->timeout_ms = MIN(record->timeout_ms, TRY_TIMEOUT_MS);
        vmsnap_report_set_subject(record->uuid, record->machine, record->mount_point);
        if (vmsnap_snapshot_clear_machine(guardian->record_fd, record, &error))
            return TRUE;
    }
    warn_of_change(error->message, last_message);
    return FALSE;
}

static void requests_serve(const VmsnapGuardian *guardian, int fd) {
    g_autofree char *last_message = NULL;
    Request request;
    ssize_t length;
    while ((length = recv(fd, &request, sizeof request, 0)) > 0 || (length < 0 && errno == EINTR)) {
        if (length != sizeof request)
            continue;
        gboolean answer = request.kind == REQUEST_CLEAR
                              ? machine_clear(guardian, &last_message)
                              : vmsnap_mount_point_detach(guardian->mount_point, request.mount_id);
        (void)send(fd, &answer, sizeof answer, MSG_NOSIGNAL);
    }
}

/* A guest must not be left with a job or frozen, however long it takes: everything else is tried once. */
static int left_clear(const VmsnapGuardian *guardian) {
    g_autoptr(GError) read_error = NULL;
    g_autoptr(VmsnapRecord) record = record_read(guardian, &read_error);
    if (!record) {
        if (read_error)
            g_warning("%s", read_error->message);
        return read_error ? EXIT_FAILURE : EXIT_SUCCESS;
    }
    record->timeout_ms = MIN(record->timeout_ms, TRY_TIMEOUT_MS);
    vmsnap_report_set_subject(record->uuid, record->machine, record->mount_point);
    gboolean died = !record->outcome;
    if (died)
        g_warning("the daemon (process %d) died; clearing up after it", (int)record->pid);
    g_autofree char *last_message = NULL;
    for (unsigned pause_s = MIN_PAUSE_S;; pause_s = MIN(pause_s * 2, MAX_PAUSE_S)) {
        g_autoptr(GError) error = NULL;
        if (vmsnap_cleanup_record(guardian->record_fd, record, &error)) {
            if (died)
                g_message("all that it had left is cleared");
            return EXIT_SUCCESS;
        }
        warn_of_change(error->message, &last_message);
        if (!vmsnap_record_has_left(record))
            return EXIT_FAILURE;
        (void)sleep(pause_s);
    }
}

/* When memory runs out, the kernel had better take the daemon, which somebody clears up after. */
static void oom_protect(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "-1000", strlen("-1000"));
    (void)close(fd);
}

/* What the caller has open, and the pipe on which it waits for the daemon, must not stay so for the guardian's sake. */
static void files_close_but(int one_fd, int other_fd) {
    int low = MIN(one_fd, other_fd), high = MAX(one_fd, other_fd);
    if (low > STDERR_FILENO + 1)
        (void)close_range(STDERR_FILENO + 1, (unsigned)low - 1, 0);
    if (high > low + 1)
        (void)close_range((unsigned)low + 1, (unsigned)high - 1, 0);
    (void)close_range((unsigned)high + 1, ~0U, 0);
}

static _Noreturn void guardian_main(const VmsnapGuardian *guardian, int fd, gboolean foreground) {
    (void)prctl(PR_SET_NAME, "vmsnap-guardian");
    files_close_but(fd, guardian->record_fd);
    if (foreground)
        (void)setsid();
    else
        vmsnap_report_detach();
    oom_protect();
    requests_serve(guardian, fd);
    _exit(left_clear(guardian));
}

gboolean vmsnap_guardian_start(VmsnapGuardian *guardian, gboolean foreground, GError **error) {
    int fds[2];
    gboolean paired = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0;
    guardian->pid = paired ? fork() : -1;
    if (guardian->pid == 0)
        guardian_main(guardian, fds[1], foreground);
    int code = errno;
    guardian->fd = paired ? fds[0] : -1;
    if (paired)
        (void)close(fds[1]);
    if (guardian->pid > 0) {
        g_mutex_init(&guardian->lock);
        return TRUE;
    }
    if (paired)
        (void)close(g_steal_fd(&guardian->fd));
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to start the guardian process: %s", g_strerror(code));
    return FALSE;
}

/* Returns: FALSE if nobody answers. The watch may still ask when the main thread does. */
static gboolean request_make(VmsnapGuardian *guardian, const Request *request, gboolean *ret_answer) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&guardian->lock);
    return send(guardian->fd, request, sizeof *request, MSG_NOSIGNAL) == sizeof *request &&
           recv(guardian->fd, ret_answer, sizeof *ret_answer, 0) == sizeof *ret_answer;
}

gboolean vmsnap_guardian_unmount(VmsnapGuardian *guardian, uint64_t mount_id) {
    const Request request = {.kind = REQUEST_UNMOUNT, .mount_id = mount_id};
    gboolean was_there;
    if (request_make(guardian, &request, &was_there))
        return was_there;
    return vmsnap_mount_point_detach(guardian->mount_point, mount_id);
}

gboolean vmsnap_guardian_clear(VmsnapGuardian *guardian) {
    const Request request = {.kind = REQUEST_CLEAR};
    gboolean cleared;
    return request_make(guardian, &request, &cleared) && cleared;
}

/* Somebody has killed it. What this process has the rights for is done; umount's helper or a next mount does the rest.
 */
static gboolean finish_without_guardian(const VmsnapGuardian *guardian) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapRecord) record = record_read(guardian, &error);
    if (!record && !error)
        return TRUE;
    if (record && vmsnap_cleanup_record(guardian->record_fd, record, &error))
        return TRUE;
    g_warning("the guardian was killed; %s; clear it with 'mount.vmsnap --cleanup'", error->message);
    return FALSE;
}

/* Returns: whether the guardian has ended. What the daemon has tried in vain takes long, and nobody waits for that. */
static gboolean guardian_takes_over(const VmsnapGuardian *guardian, const VmsnapRecord *record) {
    if (g_strcmp0(record->outcome, VMSNAP_OUTCOME_LEFTOVER) == 0)
        return FALSE;
    struct pollfd waiting = {.fd = pidfd_open(guardian->pid, 0), .events = POLLIN};
    gboolean ended = waiting.fd < 0 || poll(&waiting, 1, FINISH_WAIT_MS) > 0;
    if (waiting.fd >= 0)
        (void)close(waiting.fd);
    return ended;
}

gboolean vmsnap_guardian_finish(VmsnapGuardian *guardian) {
    g_autoptr(VmsnapRecord) record = vmsnap_record_read(guardian->record_fd, NULL);
    (void)close(g_steal_fd(&guardian->fd));
    g_mutex_clear(&guardian->lock);
    if (record && vmsnap_record_has_left(record) && !guardian_takes_over(guardian, record))
        return FALSE;
    int status;
    if (waitpid(guardian->pid, &status, 0) == guardian->pid && WIFEXITED(status))
        return WEXITSTATUS(status) == EXIT_SUCCESS;
    return finish_without_guardian(guardian);
}
