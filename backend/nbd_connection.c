/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A libnbd handle locks itself during every call, and while it receives a megabyte nobody else gets in. So here is a
 * lock around the handle that only one I/O thread waits for. Whoever reads puts a request into a queue; if the handle
 * is free, he starts by himself what is in there, since to wake another thread first takes longer than all else. If it
 * is not, the I/O thread does. So nobody ever waits for the socket.
 *
 * A request is in exactly one list: submitted, then started, then done. One that the server fails waits in a third list
 * until the I/O thread knows whether the connection is lost.
 *
 * States, all changes of which are made by the I/O thread:
 *
 *   connected   there is a handle (nbd) that requests are started with
 *   connecting  the handle is gone; another one (next) shakes hands. Requests wait in submitted, those first that were
 *               started with the handle before: whoever reads does not notice
 *   pausing     there is no handle, after a try that failed, until the next try
 *   closed      the connection is lost for good and the snapshot broken, or it was closed: all requests fail
 *
 * A connection that is cut is tried again at once, then after pauses, for timeout_ms. Unless nobody listens: then the
 * server, or QEMU's job, is gone. Likewise a connection is of no use on which the server has left us without an answer
 * for timeout_ms: without the one to the request that has waited for longest, or a server that trickles, or forgets one
 * request while it answers others, would keep a reader waiting for ever. What a server does after it let us in may be
 * the same each time, so that only answers count as success.
 */
#include "nbd_connection.h"

#include "nbd_handle.h"
#include "nbd_request.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <pthread.h>

#define MIN_PAUSE_MS 100
#define MAX_PAUSE_MS 1000
/* How often one looks, at most, whether there was an answer, and whether somebody else broke the snapshot. */
#define LOOK_MS 1000
/* A server may be too busy to let us in soon; to try again too early would fill its queue. */
#define MIN_HANDSHAKE_MS 5000

struct VmsnapNbdConnection {
    GSource source;
    GMainContext *context;         /* of the I/O thread; not owned; immutable once attached */
    VmsnapSnapshot *snapshot;      /* not owned; immutable, as all down to export */
    const VmsnapNbdServer *server; /* not owned */
    char *export_name;             /* owned */
    char *context_name;            /* owned */
    unsigned timeout_ms;
    VmsnapNbdExport export;

    /* These are the I/O thread's. */
    gpointer fd_tag; /* of the handle's descriptor; NULL while there is no handle */
    GIOCondition events;
    uint64_t head_number;    /* of the oldest request in started at the last look; 0 if there was none */
    unsigned head_looks;     /* how many looks after the one that found it first have found it again */
    uint64_t looked_number;  /* last_number at the last look */
    struct nbd_handle *next; /* owned; NULL unless connecting */
    char *loss_reason;       /* owned; of the first loss after the last answer */
    gint64 lost_us;          /* when that was */
    gint64 connected_us;     /* when the server let us in; 0 at the first time */
    gint64 attempt_us;       /* when to try next */
    gint64 attempt_end_us;   /* when to give up on this try */
    unsigned pause_ms;       /* before that; 0 after an answer */

    /* GMutex leaves open what it does when its owner tries to get it once more: here, that fails. */
    pthread_mutex_t handle_lock;
    /*
     * NULL unless connected; owned. Guarded by handle_lock once attached, as all down to watched; but nobody else
     * changes it, so the I/O thread may look whether it is there without the lock.
     */
    struct nbd_handle *nbd;
    GQueue started; /* the oldest first */
    GQueue failed;
    uint64_t last_number; /* of the requests that were started */
    char *death_reason;   /* owned; what killed the handle while a request was started */
    gboolean answered;    /* the server has answered a request since it let us in */
    gboolean watched;     /* the I/O thread looks whether there are answers */
    int needs_io_thread;  /* atomic; there is something that whoever had the handle could not do */

    int load;         /* atomic */
    GMutex lock;      /* held for moments only, also with handle_lock */
    GQueue submitted; /* guarded by lock */
    gboolean closed;  /* guarded by lock */
};

static void request_finish(VmsnapNbdRequest *request, int error) {
    VmsnapNbdConnection *connection = request->owner;
    (void)g_atomic_int_add(&connection->load, -1);
    vmsnap_nbd_request_finish(request, error);
}

static void requests_fail(GQueue *requests) {
    GList *link;
    while ((link = g_queue_pop_head_link(requests)))
        request_finish(link->data, -EIO);
}

static void request_queue(VmsnapNbdRequest *request);

/*
 * Whoever breaks a snapshot does so before he ends its job, and QEMU drops copy-before-write before the export: what
 * comes after the break may be of the present. A request whose answer is lost stays started, until the I/O thread sees
 * to it.
 */
static void request_answered(VmsnapNbdRequest *request, VmsnapNbdAnswer answer, gpointer owner) {
    VmsnapNbdConnection *connection = owner;
    if (answer == VMSNAP_NBD_ANSWER_LOST)
        return;
    connection->answered = TRUE;
    g_queue_unlink(&connection->started, &request->link);
    if (answer == VMSNAP_NBD_ANSWER_ERROR)
        g_queue_push_tail_link(&connection->failed, &request->link);
    else if (answer == VMSNAP_NBD_ANSWER_AGAIN)
        request_queue(request);
    else
        request_finish(request, vmsnap_snapshot_is_broken(connection->snapshot) ? -EIO : 0);
}

static void request_start(VmsnapNbdRequest *request) {
    VmsnapNbdConnection *connection = request->owner;
    request->number = ++connection->last_number;
    g_queue_push_tail_link(&connection->started, &request->link);
    gboolean sent = vmsnap_nbd_request_send(request, connection->nbd);
    /* libnbd keeps its errors for the thread that met them. */
    if (nbd_aio_is_dead(connection->nbd)) {
        if (!connection->death_reason)
            connection->death_reason = g_strdup(nbd_get_error());
    } else if (!sent) {
        g_queue_unlink(&connection->started, &request->link);
        g_queue_push_tail_link(&connection->failed, &request->link);
    }
}

static void connection_start_submitted(VmsnapNbdConnection *connection) {
    g_mutex_lock(&connection->lock);
    GQueue submitted = connection->submitted;
    g_queue_init(&connection->submitted);
    g_mutex_unlock(&connection->lock);
    GList *link;
    while ((link = g_queue_pop_head_link(&submitted)))
        request_start(link->data);
}

/* From here on every new request fails. @ret_submitted gets those that were not started. */
static void connection_refuse_more(VmsnapNbdConnection *connection, GQueue *ret_submitted) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&connection->lock);
    connection->closed = TRUE;
    *ret_submitted = connection->submitted;
    g_queue_init(&connection->submitted);
}

static void connection_watch_handle(VmsnapNbdConnection *connection, struct nbd_handle *nbd) {
    connection->events = vmsnap_nbd_handle_get_events(nbd);
    connection->fd_tag = g_source_add_unix_fd(&connection->source, nbd_aio_get_fd(nbd), connection->events);
}

/* Before a handle is closed, or its descriptor would be polled when it is another file already. */
static void connection_unwatch_handle(VmsnapNbdConnection *connection) {
    if (connection->fd_tag)
        g_source_remove_unix_fd(&connection->source, g_steal_pointer(&connection->fd_tag));
}

static void connection_update_events(VmsnapNbdConnection *connection, struct nbd_handle *nbd) {
    GIOCondition events = vmsnap_nbd_handle_get_events(nbd);
    if (events == connection->events)
        return;
    connection->events = events;
    g_source_modify_unix_fd(&connection->source, connection->fd_tag, events);
}

/*
 * libnbd fails all commands when it loses the connection, and nbd_close() drops those that it has not failed, without a
 * callback: they are in started, either way.
 */
static void connection_drop_handles(VmsnapNbdConnection *connection) {
    connection_unwatch_handle(connection);
    g_clear_pointer(&connection->nbd, nbd_close);
    g_clear_pointer(&connection->next, nbd_close);
}

/* For a snapshot that is broken. Returns: FALSE, that the connection does not live any more. */
static gboolean connection_give_up(VmsnapNbdConnection *connection) {
    GQueue submitted;
    connection_refuse_more(connection, &submitted);
    connection_drop_handles(connection);
    requests_fail(&connection->failed);
    requests_fail(&connection->started);
    requests_fail(&submitted);
    return FALSE;
}

static unsigned timeout_s(const VmsnapNbdConnection *connection) {
    return (connection->timeout_ms + 999) / 1000;
}

static gint64 timeout_us(const VmsnapNbdConnection *connection) {
    return (gint64)connection->timeout_ms * 1000;
}

static gboolean connection_give_up_silent(VmsnapNbdConnection *connection) {
    vmsnap_snapshot_break(connection->snapshot, "%s has not answered for %u s", connection->server->who,
                          timeout_s(connection));
    return connection_give_up(connection);
}

static gboolean connection_give_up_closed(VmsnapNbdConnection *connection) {
    vmsnap_snapshot_break(connection->snapshot, "%s closed the NBD connection (%s): %s", connection->server->who,
                          connection->loss_reason, connection->server->cause);
    return connection_give_up(connection);
}

/*
 * Puts back what was started, ahead of all that came later. Returns: FALSE if something has been put back before, and
 * that so long ago that its sender must not wait any longer.
 */
static gboolean connection_take_back(VmsnapNbdConnection *connection, gint64 now_us) {
    gboolean in_time = TRUE;
    GList *link;
    while ((link = g_queue_pop_tail_link(&connection->failed)))
        g_queue_push_head_link(&connection->started, link);
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&connection->lock);
    while ((link = g_queue_pop_tail_link(&connection->started))) {
        VmsnapNbdRequest *request = link->data;
        if (!request->interrupted_us)
            request->interrupted_us = now_us;
        in_time = in_time && now_us - request->interrupted_us < timeout_us(connection);
        vmsnap_nbd_request_reset(request);
        g_queue_push_head_link(&connection->submitted, link);
    }
    return in_time;
}

static void connection_pause(VmsnapNbdConnection *connection, gint64 now_us) {
    connection->pause_ms = connection->pause_ms ? MIN(2 * connection->pause_ms, MAX_PAUSE_MS) : MIN_PAUSE_MS;
    connection->attempt_us = now_us + (gint64)connection->pause_ms * 1000;
}

typedef enum {
    ATTEMPT_WAITS, /* for the server, or for its time to come */
    ATTEMPT_CONNECTED,
    ATTEMPT_FAILED,
    ATTEMPT_FUTILE, /* nobody listens */
} Attempt;

/* ENOENT is also what libnbd makes of a server that has no such export any more. */
static Attempt attempt_judge(const VmsnapNbdConnection *connection, int error) {
    gboolean futile = error == ECONNREFUSED || error == ENOENT || vmsnap_nbd_server_is_gone(connection->server);
    return futile ? ATTEMPT_FUTILE : ATTEMPT_FAILED;
}

static Attempt attempt_begin(VmsnapNbdConnection *connection, gint64 now_us) {
    if (now_us < connection->attempt_us)
        return ATTEMPT_WAITS;
    if (vmsnap_nbd_server_is_gone(connection->server))
        return ATTEMPT_FUTILE;
    connection->next = vmsnap_nbd_handle_new(connection->server, connection->export_name, connection->context_name);
    if (!connection->next)
        return attempt_judge(connection, nbd_get_errno());
    connection_watch_handle(connection, connection->next);
    connection->attempt_end_us = now_us + MAX(timeout_us(connection) / 4, (gint64)MIN_HANDSHAKE_MS * 1000);
    return ATTEMPT_WAITS;
}

static Attempt attempt_go_on(VmsnapNbdConnection *connection, GIOCondition events, gint64 now_us) {
    int error = vmsnap_nbd_handle_notify(connection->next, events) == 0 ? 0 : nbd_get_errno();
    if (error == 0 && nbd_aio_is_ready(connection->next))
        return ATTEMPT_CONNECTED;
    if (error == 0 && nbd_aio_is_connecting(connection->next) && now_us < connection->attempt_end_us) {
        connection_update_events(connection, connection->next);
        return ATTEMPT_WAITS;
    }
    connection_drop_handles(connection);
    return attempt_judge(connection, error);
}

static gboolean connection_resume(VmsnapNbdConnection *connection, gint64 now_us);

/* Goes on towards a new connection as far as it gets without waiting. Returns: whether there is hope. */
static gboolean connection_reconnect(VmsnapNbdConnection *connection, GIOCondition events, gint64 now_us) {
    if (vmsnap_snapshot_is_broken(connection->snapshot))
        return connection_give_up(connection);
    Attempt attempt = connection->next ? attempt_go_on(connection, events, now_us) : attempt_begin(connection, now_us);
    if (attempt == ATTEMPT_CONNECTED)
        return connection_resume(connection, now_us);
    if (attempt == ATTEMPT_FUTILE)
        return connection_give_up_closed(connection);
    if (attempt == ATTEMPT_FAILED)
        connection_pause(connection, now_us);
    gint64 end_us = connection->lost_us + timeout_us(connection);
    if (now_us >= end_us) {
        vmsnap_snapshot_break(connection->snapshot, "no NBD connection to %s for %u s", connection->server->who,
                              timeout_s(connection));
        return connection_give_up(connection);
    }
    gint64 next_us = connection->next ? connection->attempt_end_us : connection->attempt_us;
    next_us = MIN(next_us, now_us + (gint64)LOOK_MS * 1000);
    g_source_set_ready_time(&connection->source, MIN(next_us, end_us));
    return TRUE;
}

/*
 * Another connection follows at once, if this one was of use: it brought an answer, or lived for a while in which
 * nothing was asked. If not, the server may cut us off as soon as it has let us in, and the loss before goes on.
 */
static gboolean connection_interrupt(VmsnapNbdConnection *connection, const char *reason, gint64 now_us) {
    gboolean idle = g_queue_is_empty(&connection->started) && g_queue_is_empty(&connection->failed);
    if (connection->answered || (idle && now_us - connection->connected_us >= (gint64)MAX_PAUSE_MS * 1000) ||
        !connection->loss_reason) {
        g_free(connection->loss_reason);
        connection->loss_reason = g_strdup(reason ? reason : "the server closed the connection");
        connection->lost_us = now_us;
        connection->attempt_us = now_us;
        connection->pause_ms = 0;
    } else {
        connection_pause(connection, now_us);
    }
    connection_drop_handles(connection);
    g_clear_pointer(&connection->death_reason, g_free);
    if (!connection_take_back(connection, now_us))
        return connection_give_up_silent(connection);
    return connection_reconnect(connection, 0, now_us);
}

/*
 * Looks from time to time whether the server answers, as long as there is something to answer. What counts is for how
 * long the same request has been the oldest one under way, not how long ago it was started, since it then stood behind
 * others. A server that does 1 MB/s answers the last of 64 reads of 128 KiB after 8 s, and of 300 later than the 30 s
 * that it has for an answer; but one after the other, each is the oldest for 0.13 s. Where several are served at once,
 * in whatever order, one is the oldest for as long as these take together: QEMU takes up 16 of a connection, which are
 * 2 s. So no queue is too long if each answer comes in its time, which is the time of a whole answer.
 *
 * It is counted in looks, none of which is early: where we were stopped ourselves for a minute, that is one look. Of a
 * broken snapshot no answer is of use. Returns: FALSE if there is nothing to wait for any more.
 */
static gboolean connection_look(VmsnapNbdConnection *connection, gint64 now_us) {
    const VmsnapNbdRequest *head = g_queue_peek_head(&connection->started);
    if (connection->watched ? now_us < g_source_get_ready_time(&connection->source) : !head)
        return TRUE;
    if (head && vmsnap_snapshot_is_broken(connection->snapshot))
        return FALSE;
    gint64 look_us = MIN((gint64)LOOK_MS * 1000, timeout_us(connection) / 4);
    uint64_t head_number = head ? head->number : 0;
    connection->head_looks = head_number == connection->head_number ? connection->head_looks + 1 : 0;
    connection->head_number = head_number;
    if (head && connection->head_looks * look_us >= timeout_us(connection))
        return FALSE;
    connection->watched = head || connection->last_number != connection->looked_number;
    connection->looked_number = connection->last_number;
    g_source_set_ready_time(&connection->source, connection->watched ? now_us + look_us : -1);
    return TRUE;
}

/* Sends, receives and answers. Returns: whether the connection still lives. */
static gboolean connection_serve(VmsnapNbdConnection *connection, GIOCondition events, gint64 now_us) {
    connection_start_submitted(connection);
    if (connection->death_reason) {
        g_autofree char *reason = g_strdup(connection->death_reason);
        return connection_interrupt(connection, reason, now_us);
    }
    int result = vmsnap_nbd_handle_notify(connection->nbd, events);
    if (result != 0)
        return connection_interrupt(connection, nbd_get_error(), now_us);
    if (nbd_aio_is_dead(connection->nbd) || nbd_aio_is_closed(connection->nbd))
        return connection_interrupt(connection, NULL, now_us);
    connection_update_events(connection, connection->nbd);
    requests_fail(&connection->failed);
    return connection_look(connection, now_us) || connection_give_up_silent(connection);
}

static gboolean connection_resume(VmsnapNbdConnection *connection, gint64 now_us) {
    VmsnapNbdExport export = {0};
    (void)vmsnap_nbd_handle_get_export(connection->next, connection->context_name, &export);
    const char *change = vmsnap_nbd_export_find_change(&connection->export, &export);
    if (change) {
        vmsnap_snapshot_break(connection->snapshot, "NBD export '%s' is another one since the connection was cut: %s",
                              connection->export_name, change);
        return connection_give_up(connection);
    }
    connection->nbd = g_steal_pointer(&connection->next);
    connection->connected_us = now_us;
    connection->answered = FALSE;
    connection->watched = FALSE;
    g_source_set_ready_time(&connection->source, -1);
    return connection_serve(connection, 0, now_us);
}

/* Without a connection, what is submitted is no work. */
static gboolean connection_has_work(GSource *source) {
    VmsnapNbdConnection *connection = (VmsnapNbdConnection *)source;
    if (g_atomic_int_get(&connection->needs_io_thread))
        return TRUE;
    if (!connection->nbd)
        return FALSE;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&connection->lock);
    return !g_queue_is_empty(&connection->submitted);
}

static gboolean connection_prepare(GSource *source, int *ret_timeout_ms) {
    *ret_timeout_ms = -1;
    return connection_has_work(source);
}

/* Runs on the I/O thread. What is submitted after the queue was taken makes the source ready again. */
static gboolean connection_dispatch(GSource *source, GSourceFunc callback, gpointer user_data) {
    (void)callback;
    (void)user_data;
    VmsnapNbdConnection *connection = (VmsnapNbdConnection *)source;
    gint64 now_us = g_source_get_time(source);
    (void)pthread_mutex_lock(&connection->handle_lock);
    g_atomic_int_set(&connection->needs_io_thread, FALSE);
    GIOCondition events = connection->fd_tag ? g_source_query_unix_fd(source, connection->fd_tag) : 0;
    gboolean lives = connection->nbd ? connection_serve(connection, events, now_us)
                                     : connection_reconnect(connection, events, now_us);
    (void)pthread_mutex_unlock(&connection->handle_lock);
    return lives ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

/*
 * A ready time, for what is submitted, would do as well, but GLib wakes the loop once more each time that one is taken
 * back. Here one is used for looks, pauses and the ends of tries.
 */
static GSourceFuncs connection_funcs = {
    .prepare = connection_prepare,
    .check = connection_has_work,
    .dispatch = connection_dispatch,
};

/* Returns: NULL if the server has let us in, or why not. */
static const char *connection_connect(VmsnapNbdConnection *connection) {
    connection->nbd = vmsnap_nbd_handle_new(connection->server, connection->export_name, connection->context_name);
    if (connection->nbd && vmsnap_nbd_handle_wait(connection->nbd, connection->timeout_ms) &&
        vmsnap_nbd_handle_get_export(connection->nbd, connection->context_name, &connection->export))
        return NULL;
    return connection->nbd ? vmsnap_nbd_handle_get_failure(connection->nbd) : nbd_get_error();
}

VmsnapNbdConnection *vmsnap_nbd_connection_new(VmsnapSnapshot *snapshot, const VmsnapNbdServer *server,
                                               const char *export_name, const char *context, unsigned timeout_ms,
                                               GError **error) {
    g_autoptr(VmsnapNbdConnection) connection =
        (VmsnapNbdConnection *)g_source_new(&connection_funcs, sizeof(VmsnapNbdConnection));
    g_mutex_init(&connection->lock);
    (void)pthread_mutex_init(&connection->handle_lock, NULL);
    connection->snapshot = snapshot;
    connection->server = server;
    connection->export_name = g_strdup(export_name);
    connection->context_name = g_strdup(context);
    connection->timeout_ms = timeout_ms;
    const char *reason = connection_connect(connection);
    if (!reason)
        return g_steal_pointer(&connection);
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, reason);
    return NULL;
}

uint64_t vmsnap_nbd_connection_get_size(const VmsnapNbdConnection *connection) {
    return connection->export.size_bytes;
}

gboolean vmsnap_nbd_connection_is_multi_conn(const VmsnapNbdConnection *connection) {
    return connection->export.is_multi_conn;
}

gboolean vmsnap_nbd_connection_has_extents(const VmsnapNbdConnection *connection) {
    return connection->export.has_extents;
}

void vmsnap_nbd_connection_attach(VmsnapNbdConnection *connection, VmsnapIoThreads *threads) {
    connection_watch_handle(connection, connection->nbd);
    /* It looks once, and so sees all that was written here. */
    g_atomic_int_set(&connection->needs_io_thread, TRUE);
    connection->context = vmsnap_io_threads_attach(threads, &connection->source);
}

int vmsnap_nbd_connection_get_load(const VmsnapNbdConnection *connection) {
    return g_atomic_int_get(&connection->load);
}

/* Returns: FALSE if the I/O thread must see to what is in the queue, or to what came of it. */
static gboolean connection_start_at_once(VmsnapNbdConnection *connection) {
    if (pthread_mutex_trylock(&connection->handle_lock) != 0)
        return FALSE;
    gboolean done = TRUE;
    if (connection->nbd) {
        connection_start_submitted(connection);
        done = connection->watched && !connection->death_reason && g_queue_is_empty(&connection->failed) &&
               !(nbd_aio_get_direction(connection->nbd) & LIBNBD_AIO_DIRECTION_WRITE);
    }
    if (!done)
        g_atomic_int_set(&connection->needs_io_thread, TRUE);
    (void)pthread_mutex_unlock(&connection->handle_lock);
    return done;
}

/*
 * Whoever finds the queue empty sees to it that it is served. Answers about extents that need no server come at once:
 * not on the thread that asks, or questions would nest.
 */
static void request_queue(VmsnapNbdRequest *request) {
    VmsnapNbdConnection *connection = request->owner;
    gboolean is_read = !request->extents;
    g_mutex_lock(&connection->lock);
    gboolean closed = connection->closed;
    gboolean first = g_queue_is_empty(&connection->submitted);
    if (!closed)
        g_queue_push_tail_link(&connection->submitted, &request->link);
    g_mutex_unlock(&connection->lock);
    if (closed)
        request_finish(request, -EIO);
    else if (first && !(is_read && connection_start_at_once(connection)))
        g_main_context_wakeup(connection->context);
}

static void connection_submit(VmsnapNbdConnection *connection, VmsnapNbdRequest *request) {
    request->owner = connection;
    request->answered = request_answered;
    request->export = &connection->export;
    g_atomic_int_inc(&connection->load);
    request_queue(request);
}

void vmsnap_nbd_connection_read(VmsnapNbdConnection *connection, void *buffer, size_t length, uint64_t offset,
                                VmsnapDoneFunc done, gpointer user_data) {
    connection_submit(connection, vmsnap_nbd_request_new_read(buffer, length, offset, done, user_data));
}

void vmsnap_nbd_connection_discard(VmsnapNbdConnection *connection, uint64_t offset, uint64_t length,
                                   VmsnapDoneFunc done, gpointer user_data) {
    connection_submit(connection, vmsnap_nbd_request_new_discard(offset, length, done, user_data));
}

void vmsnap_nbd_connection_extents(VmsnapNbdConnection *connection, uint64_t offset, uint64_t length,
                                   VmsnapExtentsFunc done, gpointer user_data) {
    connection_submit(connection, vmsnap_nbd_request_new_extents(offset, length, done, user_data));
}

void vmsnap_nbd_connection_close(VmsnapNbdConnection *connection) {
    (void)pthread_mutex_lock(&connection->handle_lock);
    (void)connection_give_up(connection);
    (void)pthread_mutex_unlock(&connection->handle_lock);
}

void vmsnap_nbd_connection_free(VmsnapNbdConnection *connection) {
    if (!connection)
        return;
    vmsnap_nbd_connection_close(connection);
    g_free(connection->loss_reason);
    g_free(connection->death_reason);
    g_free(connection->export_name);
    g_free(connection->context_name);
    g_mutex_clear(&connection->lock);
    (void)pthread_mutex_destroy(&connection->handle_lock);
    g_source_destroy(&connection->source);
    g_source_unref(&connection->source);
}
