/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A libnbd handle locks itself during every call, and while it receives a megabyte nobody else gets in. So here is a
 * lock around the handle that only one I/O thread waits for. Whoever reads puts a request into a queue; if the handle
 * is free, he starts by himself what is in there, since to wake another thread first takes longer than all else. If it
 * is not, the I/O thread does. So nobody ever waits for the socket.
 *
 * A request is in exactly one list: submitted, then started, then done. One that the server fails waits in a third list
 * until the I/O thread knows whether the connection is lost.
 */
#include "nbd_connection.h"

#include "nbd_handle.h"
#include "nbd_request.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <pthread.h>

struct VmsnapNbdConnection {
    GSource source;
    GMainContext *context;    /* of the I/O thread; not owned; immutable once attached */
    VmsnapSnapshot *snapshot; /* not owned; immutable, as all down to export */
    int socket_fd;            /* not owned */
    char *export_name;        /* owned */
    unsigned timeout_ms;
    VmsnapNbdExport export;

    gpointer fd_tag; /* the I/O thread's, as events */
    GIOCondition events;

    /* GMutex leaves open what it does when its owner tries to get it once more: here, that fails. */
    pthread_mutex_t handle_lock;
    struct nbd_handle *nbd; /* guarded by handle_lock once attached; NULL once lost or closed */
    GQueue started;         /* guarded by handle_lock, as all down to death_reason */
    GQueue failed;
    char *death_reason;  /* owned; what killed the handle while a request was started */
    int needs_io_thread; /* atomic; there is something that whoever had the handle could not do */

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
 * comes after the break may be of the present.
 */
static void request_answered(VmsnapNbdRequest *request, VmsnapNbdAnswer answer, gpointer owner) {
    VmsnapNbdConnection *connection = owner;
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
    g_queue_push_tail_link(&connection->started, &request->link);
    gboolean sent = vmsnap_nbd_request_send(request, connection->nbd);
    /* libnbd keeps its errors for the thread that met them. */
    if (nbd_aio_is_dead(connection->nbd) && !connection->death_reason)
        connection->death_reason = g_strdup(nbd_get_error());
    if (!sent) {
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

/* nbd_close() drops commands without a callback: they are in started, and fail here. */
static void connection_fail_all(VmsnapNbdConnection *connection) {
    GQueue submitted;
    connection_refuse_more(connection, &submitted);
    connection_unwatch_handle(connection);
    g_clear_pointer(&connection->nbd, nbd_close);
    requests_fail(&connection->failed);
    requests_fail(&connection->started);
    requests_fail(&submitted);
}

/* Returns: FALSE, that the connection does not live any more. */
static gboolean connection_lose(VmsnapNbdConnection *connection, const char *reason) {
    vmsnap_snapshot_break(connection->snapshot,
                          "QEMU closed the NBD connection (%s): the guest was stopped, or somebody else ended "
                          "the backup job",
                          reason ? reason : "the server closed the connection");
    connection_fail_all(connection);
    return FALSE;
}

/* Sends, receives and answers. Returns: whether the connection still lives. */
static gboolean connection_serve(VmsnapNbdConnection *connection, GIOCondition events) {
    connection_start_submitted(connection);
    if (connection->death_reason)
        return connection_lose(connection, connection->death_reason);
    if (vmsnap_nbd_handle_notify(connection->nbd, events) != 0)
        return connection_lose(connection, nbd_get_error());
    if (nbd_aio_is_dead(connection->nbd) || nbd_aio_is_closed(connection->nbd))
        return connection_lose(connection, NULL);
    connection_update_events(connection, connection->nbd);
    requests_fail(&connection->failed);
    return TRUE;
}

static gboolean connection_has_work(GSource *source) {
    VmsnapNbdConnection *connection = (VmsnapNbdConnection *)source;
    if (g_atomic_int_get(&connection->needs_io_thread))
        return TRUE;
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
    (void)pthread_mutex_lock(&connection->handle_lock);
    g_atomic_int_set(&connection->needs_io_thread, FALSE);
    gboolean lives = connection_serve(connection, g_source_query_unix_fd(source, connection->fd_tag));
    (void)pthread_mutex_unlock(&connection->handle_lock);
    return lives ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

/* A ready time would do as well, but GLib wakes the loop once more each time that one is taken back. */
static GSourceFuncs connection_funcs = {
    .prepare = connection_prepare,
    .check = connection_has_work,
    .dispatch = connection_dispatch,
};

/* Returns: NULL if the server has let us in, or why not. */
static const char *connection_connect(VmsnapNbdConnection *connection) {
    connection->nbd = vmsnap_nbd_handle_new(connection->socket_fd, connection->export_name);
    if (connection->nbd && vmsnap_nbd_handle_wait(connection->nbd, connection->timeout_ms) &&
        vmsnap_nbd_handle_get_export(connection->nbd, &connection->export))
        return NULL;
    const char *reason = nbd_get_error();
    gboolean too_late = connection->nbd && nbd_aio_is_connecting(connection->nbd);
    return reason && !too_late ? reason : "no answer";
}

VmsnapNbdConnection *vmsnap_nbd_connection_new(VmsnapSnapshot *snapshot, int socket_fd, const char *export_name,
                                               unsigned timeout_ms, GError **error) {
    g_autoptr(VmsnapNbdConnection) connection =
        (VmsnapNbdConnection *)g_source_new(&connection_funcs, sizeof(VmsnapNbdConnection));
    g_mutex_init(&connection->lock);
    (void)pthread_mutex_init(&connection->handle_lock, NULL);
    connection->snapshot = snapshot;
    connection->socket_fd = socket_fd;
    connection->export_name = g_strdup(export_name);
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
        done = !connection->death_reason && g_queue_is_empty(&connection->failed) &&
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

void vmsnap_nbd_connection_extents(VmsnapNbdConnection *connection, uint64_t offset, uint64_t length,
                                   VmsnapExtentsFunc done, gpointer user_data) {
    connection_submit(connection, vmsnap_nbd_request_new_extents(offset, length, done, user_data));
}

void vmsnap_nbd_connection_close(VmsnapNbdConnection *connection) {
    (void)pthread_mutex_lock(&connection->handle_lock);
    connection_fail_all(connection);
    (void)pthread_mutex_unlock(&connection->handle_lock);
}

void vmsnap_nbd_connection_free(VmsnapNbdConnection *connection) {
    if (!connection)
        return;
    vmsnap_nbd_connection_close(connection);
    g_free(connection->death_reason);
    g_free(connection->export_name);
    g_mutex_clear(&connection->lock);
    (void)pthread_mutex_destroy(&connection->handle_lock);
    g_source_destroy(&connection->source);
    g_source_unref(&connection->source);
}
