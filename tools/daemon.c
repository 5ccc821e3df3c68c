/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The process that serves the mount, the daemon, is forked before it has any thread or connection, and stays in its
 * caller's session until the mount is made: automount lets only its own process group pass to the directory that it is
 * about to cover. Until then its stderr is the caller's, so that it says itself what goes wrong, and tells its parent
 * only the exit code. Its first act is to fork its guardian. Once it has mounted, it gives up its rights: what needs
 * them at the end is done by the guardian.
 *
 * The ending signals are blocked from the beginning, so that one that comes early waits until there is something whole
 * to end. The threads made meanwhile inherit that; only this one lets them through, in the session's loop.
 */
#include "daemon.h"

#include "cleanup.h"
#include "extra_files.h"
#include "fs/session.h"
#include "guardian.h"
#include "privileges.h"
#include "report.h"
#include "utab.h"
#include "vmsnap/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const int ending_signals[] = {SIGINT, SIGTERM, SIGHUP};

/* Left alone, they would end the process and not the snapshot. */
static const int ignored_signals[] = {SIGPIPE, SIGQUIT, SIGALRM, SIGUSR2};

/* umount's helper announces a forced unmount, which nothing else would tell from one in order. */
static volatile sig_atomic_t forced;

static void force_note(int number) {
    (void)number;
    forced = TRUE;
}

static void ending_signals_set(sigset_t *ret_set) {
    sigemptyset(ret_set);
    for (size_t i = 0; i < G_N_ELEMENTS(ending_signals); i++)
        sigaddset(ret_set, ending_signals[i]);
}

static void ending_signals_block(int how) {
    sigset_t set;
    ending_signals_set(&set);
    (void)pthread_sigmask(how, &set, NULL);
}

static gboolean ending_signal_pending(void) {
    sigset_t pending;
    (void)sigpending(&pending);
    for (size_t i = 0; i < G_N_ELEMENTS(ending_signals); i++)
        if (sigismember(&pending, ending_signals[i]))
            return TRUE;
    return FALSE;
}

/* A begin that somebody waits for, but not for ever. */
typedef struct {
    VmsnapBeginOptions options;
    GMutex lock;
    GCond changed;
    gboolean done;            /* guarded by lock */
    VmsnapSnapshot *snapshot; /* these two by done */
    GError *error;
} Begin;

/* What an earlier mount of this machine or on this mount point has left is in the way; the rest only takes up space. */
static gpointer begin_thread(gpointer data) {
    Begin *begin = data;
    g_autoptr(GError) sweep_error = NULL;
    if (!vmsnap_scratch_sweep(&sweep_error))
        g_warning("%s", sweep_error->message);
    if (vmsnap_cleanup_dead(begin->options.source, begin->options.mount_point, &begin->error))
        begin->snapshot = vmsnap_snapshot_begin(&begin->options, &begin->error);
    g_mutex_lock(&begin->lock);
    begin->done = TRUE;
    g_cond_signal(&begin->changed);
    g_mutex_unlock(&begin->lock);
    return NULL;
}

static gboolean begin_wait(Begin *begin) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)begin->options.timeout_ms * 1000;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&begin->lock);
    while (!begin->done)
        if (!g_cond_wait_until(&begin->changed, &begin->lock, deadline_us))
            return begin->done;
    return TRUE;
}

/* How the process that was asked to mount learns how it went. */
typedef struct {
    int ready_fd; /* -1 in the foreground, or once told */
} Starter;

static gboolean starter_tell(Starter *starter, int exit_code) {
    if (starter->ready_fd < 0)
        return TRUE;
    uint8_t byte = (uint8_t)exit_code;
    gboolean told = write(starter->ready_fd, &byte, sizeof byte) == sizeof byte;
    (void)close(starter->ready_fd);
    starter->ready_fd = -1;
    return told;
}

/* Whether there is nobody any more who would read it. */
static gboolean starter_is_gone(const Starter *starter) {
    struct pollfd pipe_end = {.fd = starter->ready_fd};
    return starter->ready_fd >= 0 && poll(&pipe_end, 1, 0) > 0 && (pipe_end.revents & POLLERR);
}

/* Whoever reads what the starter says waits until nobody can say more: so this lets go of it before it tells. */
static void starter_leave(Starter *starter, int exit_code) {
    if (starter->ready_fd >= 0)
        vmsnap_report_detach();
    (void)starter_tell(starter, exit_code);
}

static void snapshot_end_quietly(VmsnapSnapshot *snapshot) {
    g_autoptr(GError) error = NULL;
    if (!vmsnap_snapshot_end(snapshot, TRUE, FALSE, &error))
        g_warning("%s", error->message);
    vmsnap_snapshot_free(snapshot);
}

static int report_timeout(const VmsnapBeginOptions *options) {
    g_autoptr(GError) error = g_error_new(
        VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
        "failed to mount '%s': no answer within %u s; see whether %s is well, or raise -o timeout=", options->source,
        options->timeout_ms / 1000, vmsnap_source_get_words(options->source)->host);
    return vmsnap_report_error(error);
}

/* From here on a signal ends the process, and the guardian ends what it had begun. */
static void ending_signals_let_through(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(ending_signals); i++)
        (void)signal(ending_signals[i], SIG_DFL);
    ending_signals_block(SIG_UNBLOCK);
}

/*
 * What a begin waits for cannot be cancelled. When time is up the caller is told, and this process stays until the call
 * returns, so that a job which begins after all is ended again.
 * Returns: the snapshot, or NULL after the error was reported.
 */
static VmsnapSnapshot *begin_in_time(const VmsnapBeginOptions *options, Starter *starter, int *ret_exit_code) {
    Begin begin = {.options = *options};
    g_mutex_init(&begin.lock);
    g_cond_init(&begin.changed);
    GThread *thread = vmsnap_thread_try_new("vmsnap-begin", begin_thread, &begin, &begin.error);
    gboolean in_time = !thread || begin_wait(&begin);
    if (!in_time) {
        *ret_exit_code = report_timeout(options);
        starter_leave(starter, *ret_exit_code);
        ending_signals_let_through();
    }
    if (thread)
        (void)g_thread_join(thread);
    if (!in_time && begin.snapshot)
        snapshot_end_quietly(g_steal_pointer(&begin.snapshot));
    if (in_time && begin.error)
        *ret_exit_code = vmsnap_report_error(begin.error);
    g_clear_error(&begin.error);
    g_cond_clear(&begin.changed);
    g_mutex_clear(&begin.lock);
    return begin.snapshot;
}

static VmsnapViewOptions view_options(const VmsnapOptions *options) {
    return (VmsnapViewOptions){
        .readahead_bytes = options->readahead_bytes,
        .speed_bytes_per_s = options->speed_bytes_per_s,
        .format = options->format,
        .takes_commit = options->commit == VMSNAP_COMMIT_EXPLICIT,
        .release = options->release,
    };
}

static gboolean check_snapshot(VmsnapSnapshot *snapshot, gpointer user_data, GError **error) {
    const VmsnapOptions *options = user_data;
    const VmsnapViewOptions view = view_options(options);
    vmsnap_extra_files_add(snapshot, (const char *const *)options->config_paths, options->config_contents);
    return vmsnap_view_check(&view, snapshot, error);
}

static gboolean clear_by_guardian(gpointer user_data) {
    return vmsnap_guardian_clear(user_data);
}

static VmsnapBeginOptions begin_options(const VmsnapOptions *options, VmsnapGuardian *guardian) {
    return (VmsnapBeginOptions){
        .uuid = guardian->uuid,
        .record_fd = guardian->record_fd,
        .source = options->source,
        .connect_uri = options->connect_uri,
        .disks = (const char *const *)options->disks,
        .exclude = (const char *const *)options->exclude,
        .scratch_dir = options->scratch_dir,
        .mount_point = guardian->mount_point,
        .connections = options->connections,
        .timeout_ms = options->timeout_ms,
        .quiesce = options->quiesce,
        .agent = options->agent,
        .freeze_timeout_ms = options->freeze_timeout_ms,
        .scratch_reserve_bytes = options->scratch_reserve_bytes,
        .scratch_max_bytes = options->scratch_max_bytes,
        .checkpoint = options->checkpoint,
        .since = options->since,
        .incremental = options->incremental,
        .keep_checkpoints = options->keep_checkpoints,
        .release = options->release,
        .check = check_snapshot,
        .check_data = (gpointer)options,
        .clear = clear_by_guardian,
        .clear_data = guardian,
    };
}

static void set_interrupted_error(const char *machine, GError **error) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to mount '%s': interrupted by a signal", machine);
}

/* What is made ready before the mount, for which rights are needed, by a thread that has none any more. */
typedef struct {
    VmsnapView *view;
    const Starter *starter;
    gboolean done;
    GError *error;
} Preparation;

static gboolean nobody_waits(gpointer user_data) {
    return ending_signal_pending() || starter_is_gone(user_data);
}

static gpointer prepare_thread(gpointer data) {
    Preparation *preparation = data;
    VmsnapView *view = preparation->view;
    vmsnap_privileges_drop();
    preparation->done = vmsnap_snapshot_start(view->snapshot, &preparation->error) &&
                        vmsnap_view_start(view, nobody_waits, (gpointer)preparation->starter, &preparation->error);
    return NULL;
}

/* The threads that this leaves have no rights either. */
static gboolean prepare(VmsnapView *view, const Starter *starter, GError **error) {
    Preparation preparation = {.view = view, .starter = starter};
    GThread *thread = vmsnap_thread_try_new("vmsnap-prepare", prepare_thread, &preparation, error);
    if (!thread)
        return FALSE;
    (void)g_thread_join(thread);
    if (preparation.error)
        g_propagate_error(error, preparation.error);
    return preparation.done;
}

static VmsnapSession *session_mount(VmsnapView *view, const VmsnapOptions *options, const char *mount_point,
                                    GError **error) {
    VmsnapSessionOptions session_options = {
        .fs_name = options->source,
        .mount_options = options->mount_options->len > 0 ? options->mount_options->str : NULL,
        .read_only = options->read_only,
        .allow_other = options->allow_other,
        .uid = options->uid,
        .gid = options->gid,
        .file_mode = options->mode,
    };
    if (ending_signal_pending()) {
        set_interrupted_error(options->source, error);
        return NULL;
    }
    return vmsnap_session_mount(view, &session_options, mount_point, error);
}

static void tell_begun(const VmsnapSnapshot *snapshot) {
    for (guint i = 0; i < snapshot->left_out->len; i++) {
        const VmsnapLeftOut *left_out = g_ptr_array_index(snapshot->left_out, i);
        g_info("left out '%s': %s", left_out->name, left_out->reason);
    }
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        if (disk->full_reason)
            g_warning("disk '%s' is taken in full: %s", disk->name, disk->full_reason);
    }
    if (snapshot->quiesce_error)
        g_warning("%s; the snapshot is only as consistent as after a power failure", snapshot->quiesce_error);
}

static void tell_mounted(const VmsnapSnapshot *snapshot, const char *mount_point) {
    static const char *const consistent[] = {
        [VMSNAP_CONSISTENCY_CRASH] = "consistent as after a power failure",
        [VMSNAP_CONSISTENCY_FILESYSTEM] = "consistent as its filesystems were frozen",
        [VMSNAP_CONSISTENCY_UNKNOWN] = "as consistent as what it exports",
    };
    g_message("%s '%s' is mounted on '%s' as snapshot %s, %s", snapshot->backend->words.noun, snapshot->machine,
              mount_point, snapshot->uuid, consistent[vmsnap_snapshot_get_consistency(snapshot)]);
}

static void tell_ended(const VmsnapSnapshot *snapshot, gboolean aborted, gboolean commit, const GError *error) {
    if (error)
        g_warning("%s", error->message);
    else
        g_message("the snapshot of %s '%s' has ended: %s", snapshot->backend->words.noun, snapshot->machine,
                  aborted ? "stopped by a signal" : "complete");
    if (!error && commit)
        g_message("checkpoint '%s' is committed", snapshot->checkpoint);
}

/* What is told when files can be read: to the caller, then to the log, since a daemon leaves its caller in between. */
typedef struct {
    Starter *starter;
    const VmsnapSnapshot *snapshot;
    const char *mount_point;
    gboolean ready;
    gboolean wanted;
} Readiness;

static gboolean readiness_tell(gpointer user_data) {
    Readiness *readiness = user_data;
    readiness->ready = TRUE;
    tell_mounted(readiness->snapshot, readiness->mount_point);
    if (readiness->starter->ready_fd >= 0) {
        vmsnap_report_detach();
        tell_begun(readiness->snapshot);
        tell_mounted(readiness->snapshot, readiness->mount_point);
    }
    /* Whoever waited may have been killed. */
    readiness->wanted = starter_tell(readiness->starter, 0);
    return readiness->wanted;
}

typedef enum {
    END_IN_ORDER,
    END_STOPPED,     /* by a signal, or forced */
    END_WITH_OTHERS, /* it was unmounted, but somebody could still read: through a copy of the mount, or an open file */
} End;

/* Serves the mounted session until its end. Returns: FALSE with @error set if it could not even begin. */
static gboolean serve(VmsnapSession *session, VmsnapSnapshot *snapshot, Starter *starter, VmsnapGuardian *guardian,
                      End *ret_end, GError **error) {
    uint64_t mount_id = vmsnap_session_get_mount_id(session);
    Readiness readiness = {.starter = starter, .snapshot = snapshot, .mount_point = guardian->mount_point};
    vmsnap_privileges_drop();
    int result = vmsnap_session_run(session, readiness_tell, &readiness, error);
    if (result >= 0 && !readiness.ready)
        set_interrupted_error(snapshot->machine, error);
    /* Who unmounts in order leaves nobody who could read, and may send a signal, too, which may come first. */
    gboolean was_connected = vmsnap_session_is_connected(session);
    gboolean was_mounted = vmsnap_guardian_unmount(guardian, mount_id);
    if (was_mounted || forced || !readiness.wanted)
        *ret_end = END_STOPPED;
    else
        *ret_end = was_connected ? END_WITH_OTHERS : END_IN_ORDER;
    return result >= 0 && readiness.ready;
}

/*
 * A copy for which a read has failed has not become one, so the next backup must not begin from there, unless somebody
 * has said that it is safe; nor one of somebody who was still reading. Then the snapshot counts as broken, so that
 * umount tells: there was to be a checkpoint, and is none.
 */
static gboolean decide_commit(const VmsnapOptions *options, const VmsnapView *view, End end) {
    VmsnapSnapshot *snapshot = view->snapshot;
    gboolean is_explicit = options->commit == VMSNAP_COMMIT_EXPLICIT;
    if (!snapshot->checkpoint || end == END_STOPPED || (is_explicit && !vmsnap_view_has_commit(view)))
        return FALSE;
    const char *reason = NULL;
    if (end == END_WITH_OTHERS)
        reason = "somebody could still read when it was unmounted, in a container for instance";
    else if (!is_explicit && !vmsnap_view_was_read_well(view))
        reason = "a read had failed";
    if (reason)
        vmsnap_snapshot_break(snapshot, "%s, so that checkpoint '%s' was rolled back", reason, snapshot->checkpoint);
    return !reason;
}

static int daemon_life(const VmsnapOptions *options, Starter *starter, VmsnapGuardian *guardian) {
    int exit_code = VMSNAP_EXIT_FAILED;
    VmsnapBeginOptions begin = begin_options(options, guardian);
    g_autoptr(VmsnapSnapshot) snapshot = begin_in_time(&begin, starter, &exit_code);
    if (!snapshot)
        return exit_code;
    vmsnap_report_set_subject(snapshot->uuid, snapshot->machine, guardian->mount_point);
    tell_begun(snapshot);

    g_autoptr(GError) error = NULL;
    /* The view and the session look at the snapshot, and are freed after it has ended. */
    const VmsnapViewOptions how = view_options(options);
    g_autoptr(VmsnapView) view = vmsnap_view_new(snapshot, &how);
    g_autoptr(VmsnapSession) session = NULL;
    if (vmsnap_view_check(&how, snapshot, &error) && prepare(view, starter, &error))
        session = session_mount(view, options, guardian->mount_point, &error);
    End end = END_STOPPED;
    gboolean served = FALSE;
    if (session) {
        vmsnap_utab_add(options->source, guardian->mount_point);
        served = serve(session, snapshot, starter, guardian, &end, &error);
    }
    g_autoptr(GError) end_error = NULL;
    gboolean commit = served && decide_commit(options, view, end);
    (void)vmsnap_snapshot_end(snapshot, end == END_STOPPED, commit, &end_error);
    if (!served) {
        if (end_error)
            g_warning("%s", end_error->message);
        return vmsnap_report_error(error);
    }
    tell_ended(snapshot, end == END_STOPPED, commit, end_error);
    return end_error ? VMSNAP_EXIT_FAILED : 0;
}

/* The record and the guardian are there before anything else, and go last. */
static int daemon_main(const VmsnapOptions *options, const char *mount_point, int ready_fd) {
    Starter starter = {.ready_fd = ready_fd};
    ending_signals_block(SIG_BLOCK);
    for (size_t i = 0; i < G_N_ELEMENTS(ignored_signals); i++)
        (void)signal(ignored_signals[i], SIG_IGN);
    (void)signal(SIGUSR1, force_note);

    g_autoptr(GError) error = NULL;
    g_autofree char *uuid = g_uuid_string_random();
    VmsnapGuardian guardian = {.uuid = uuid, .mount_point = mount_point};
    guardian.record_fd = vmsnap_record_open(uuid, &error);
    if (guardian.record_fd < 0)
        return vmsnap_report_error(error);
    int exit_code;
    if (vmsnap_guardian_start(&guardian, ready_fd < 0, &error)) {
        exit_code = daemon_life(options, &starter, &guardian);
        if (!vmsnap_guardian_finish(&guardian) && exit_code == 0)
            exit_code = VMSNAP_EXIT_FAILED;
    } else {
        exit_code = vmsnap_report_error(error);
        vmsnap_record_remove(uuid);
    }
    (void)close(guardian.record_fd);
    return exit_code;
}

int vmsnap_daemon_run(const VmsnapOptions *options, const char *mount_point) {
    return daemon_main(options, mount_point, -1);
}

static volatile sig_atomic_t daemon_pid, interrupted;

static void signal_forward(int number) {
    interrupted = TRUE;
    (void)kill((pid_t)daemon_pid, number);
}

/* A daemon that stays tells its exit code. One that fails just ends, and is waited for. */
static int daemon_read_exit_code(pid_t pid, int ready_fd) {
    int status;
    uint8_t exit_code;
    ssize_t length;
    do {
        length = read(ready_fd, &exit_code, sizeof exit_code);
    } while (length < 0 && errno == EINTR);
    if (length == sizeof exit_code)
        return exit_code;
    if (waitpid(pid, &status, 0) == pid && WIFEXITED(status))
        return WEXITSTATUS(status);
    (void)fprintf(stderr, "%s: failed to mount: the daemon (process %d) died\n", g_get_prgname(), (int)pid);
    return VMSNAP_EXIT_SYSTEM;
}

/*
 * Whoever interrupts the wait means the mount: the daemon undoes it and tells. If it had told that all is well just
 * before, it ends the mount nevertheless, and this process must not say that there is one.
 */
static int daemon_wait_ready(pid_t pid, int ready_fd) {
    daemon_pid = pid;
    for (size_t i = 0; i < G_N_ELEMENTS(ending_signals); i++)
        (void)signal(ending_signals[i], signal_forward);
    ending_signals_block(SIG_UNBLOCK);
    int exit_code = daemon_read_exit_code(pid, ready_fd);
    ending_signals_block(SIG_BLOCK);
    if (exit_code != 0 || !interrupted)
        return exit_code;
    (void)waitpid(pid, NULL, 0);
    (void)fprintf(stderr, "%s: failed to mount: interrupted by a signal\n", g_get_prgname());
    return VMSNAP_EXIT_FAILED;
}

/* What the caller has open, and maybe locked, must not stay so for as long as the mount lasts. */
static void inherited_files_close(int except_fd) {
    if (except_fd > STDERR_FILENO + 1)
        (void)close_range(STDERR_FILENO + 1, (unsigned)except_fd - 1, 0);
    (void)close_range((unsigned)except_fd + 1, ~0U, 0);
}

int vmsnap_daemon_start(const VmsnapOptions *options, const char *mount_point) {
    g_autoptr(GError) error = NULL;
    int fds[2];
    ending_signals_block(SIG_BLOCK);
    pid_t pid = pipe2(fds, O_CLOEXEC) == 0 ? fork() : -1;
    if (pid == 0) {
        inherited_files_close(fds[1]);
        exit(daemon_main(options, mount_point, fds[1]));
    }
    if (pid > 0) {
        (void)close(fds[1]);
        return daemon_wait_ready(pid, fds[0]);
    }
    g_set_error(&error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to start the daemon: %s", g_strerror(errno));
    return vmsnap_report_error(error);
}
