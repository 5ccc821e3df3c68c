/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A libnbd handle locks itself during every call, and while it receives a megabyte nobody else gets in. So here is a
 * lock around the handle that only one I/O thread waits for. Whoever reads puts a request into a queue; if the handle
 * is free, he starts by himself what is in there, since to wake another thread first takes longer than all else. If it
 * is not, the I/O thread does. So nobody ever waits for the socket.
 *
 * A request is in exactly one list: submitted, then started, then done. When the connection is lost or freed, what is
 * left in the lists fails. One that libnbd fails waits in a third list until the I/O thread knows whether the
 * connection is lost: then its user is told that first.
 */
#include "nbd_connection.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    VmsnapNbdConnection *connection;
    GList link;              /* in submitted, started or failed; its data is the request */
    void *buffer;            /* NULL in a question for extents */
    uint8_t *aligned_buffer; /* owned; where the server wants blocks and the range is not made of them */
    size_t length;
    uint64_t offset;
    uint64_t received_bytes; /* of a read, without a gap from its beginning */
    gboolean unfragmented;   /* asked for in one piece, after the server has sent pieces out of order, or too few */
    GArray *extents;         /* of VmsnapExtent, owned; NULL in a read */
    uint64_t told_bytes;     /* how far the extents reach */
    gboolean *completed;     /* while it is being started: set when libnbd completes it already */
    VmsnapDoneFunc read_done;
    VmsnapExtentsFunc extents_done;
    gpointer user_data;
} Request;

struct VmsnapNbdConnection {
    GSource source;
    GMainContext *context; /* of the I/O thread; not owned */
    gpointer fd_tag;
    GIOCondition events;      /* the I/O thread's */
    VmsnapSnapshot *snapshot; /* not owned */

    /* GMutex leaves open what it does when its owner tries to get it once more: here, that fails. */
    pthread_mutex_t handle_lock;
    struct nbd_handle *nbd; /* guarded by handle_lock once attached; NULL after close */
    GQueue started;         /* guarded by handle_lock, as failed */
    GQueue failed;
    char *death_reason;  /* guarded by handle_lock; owned; what killed the handle while a request was started */
    int needs_io_thread; /* atomic; there is something that whoever had the handle could not do */

    uint64_t size_bytes; /* these four are immutable */
    uint64_t block_bytes;
    gboolean is_multi_conn;
    gboolean has_allocation;

    int load;         /* atomic */
    GMutex lock;      /* held for moments only, also with handle_lock */
    GQueue submitted; /* guarded by lock */
    gboolean closed;  /* guarded by lock */
};

static void request_finish(Request *request, int error) {
    (void)g_atomic_int_add(&request->connection->load, -1);
    if (request->extents_done)
        request->extents_done(error, error ? NULL : &g_array_index(request->extents, VmsnapExtent, 0),
                              error ? 0 : request->extents->len, request->user_data);
    else
        request->read_done(error, request->user_data);
    if (request->extents)
        g_array_unref(request->extents);
    g_free(request->aligned_buffer);
    g_free(request);
}

static void requests_fail(GQueue *requests) {
    GList *link;
    while ((link = g_queue_pop_head_link(requests)))
        request_finish(link->data, -EIO);
}

static void request_note_completed(Request *request) {
    if (request->completed)
        *request->completed = TRUE;
    request->completed = NULL;
}

static void request_fail_later(Request *request) {
    g_queue_unlink(&request->connection->started, &request->link);
    g_queue_push_tail_link(&request->connection->failed, &request->link);
}

/*
 * Whoever breaks a snapshot does so before he ends its job, and QEMU drops copy-before-write before the export: what
 * comes after the break may be of the present.
 */
static void request_succeed(Request *request) {
    g_queue_unlink(&request->connection->started, &request->link);
    request_finish(request, vmsnap_snapshot_is_broken(request->connection->snapshot) ? -EIO : 0);
}

/* The range of a request in whole blocks of the server. */
static void request_align(const Request *request, uint64_t *ret_start, uint64_t *ret_end) {
    uint64_t block_bytes = request->connection->block_bytes;
    uint64_t end = (request->offset + request->length + block_bytes - 1) / block_bytes * block_bytes;
    *ret_start = request->offset / block_bytes * block_bytes;
    *ret_end = MIN(end, request->connection->size_bytes);
}

static int read_received(void *user_data, const void *data, size_t length, uint64_t offset, unsigned status,
                         int *error) {
    (void)data;
    (void)error;
    Request *request = user_data;
    uint64_t start, end;
    request_align(request, &start, &end);
    if (status != LIBNBD_READ_ERROR && offset == start + request->received_bytes)
        request->received_bytes += length;
    return 0;
}

static gboolean read_is_whole(const Request *request) {
    uint64_t start, end;
    request_align(request, &start, &end);
    return request->received_bytes == end - start;
}

static void request_queue(Request *request);

/* libnbd's completion callbacks; 1 tells it to forget the command. */
static int read_completed(void *user_data, int *error) {
    Request *request = user_data;
    request_note_completed(request);
    gboolean whole = read_is_whole(request);
    if (*error || (!whole && request->unfragmented)) {
        request_fail_later(request);
    } else if (!whole) {
        g_queue_unlink(&request->connection->started, &request->link);
        request->unfragmented = TRUE;
        request->received_bytes = 0;
        request_queue(request);
    } else {
        if (request->aligned_buffer)
            memcpy(request->buffer, request->aligned_buffer + request->offset % request->connection->block_bytes,
                   request->length);
        request_succeed(request);
    }
    return 1;
}

static int extents_completed(void *user_data, int *error) {
    Request *request = user_data;
    request_note_completed(request);
    if (*error || request->extents->len == 0)
        request_fail_later(request);
    else
        request_succeed(request);
    return 1;
}

/* Only ZERO tells content; HOLE tells how it is stored. Entries are pairs of length and flags. */
static int extents_received(void *user_data, const char *context, uint64_t offset, uint32_t *entries, size_t n_entries,
                            int *error) {
    (void)error;
    Request *request = user_data;
    if (!g_str_equal(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
        return 0;
    /* A server may send more than one answer, and only the first may say what a byte is. */
    uint64_t skip = request->offset + request->told_bytes - MIN(request->offset, offset);
    uint64_t left = request->length - request->told_bytes;
    for (size_t i = 0; i + 1 < n_entries && left > 0; i += 2) {
        uint64_t skipped = MIN(entries[i], skip);
        gboolean zero = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;
        VmsnapExtent extent = {
            .length_bytes = MIN(entries[i] - skipped, left),
            .kind = zero ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA,
        };
        skip -= skipped;
        left -= extent.length_bytes;
        request->told_bytes += extent.length_bytes;
        if (extent.length_bytes > 0)
            g_array_append_val(request->extents, extent);
    }
    return 0;
}

static int64_t request_start_extents(Request *request) {
    uint64_t start, end;
    request_align(request, &start, &end);
    nbd_extent_callback received = {.callback = extents_received, .user_data = request};
    nbd_completion_callback completed = {.callback = extents_completed, .user_data = request};
    return nbd_aio_block_status(request->connection->nbd, end - start, start, received, completed, 0);
}

/*
 * libnbd would clear each buffer before the answer comes, since that may leave gaps; which costs a third of what the
 * receiving does, and makes wrong bytes of them. Here gaps are noticed, and the read fails.
 */
static int64_t request_start_read(Request *request) {
    uint64_t start, end;
    request_align(request, &start, &end);
    if (end - start != request->length && !request->aligned_buffer)
        request->aligned_buffer = g_malloc(end - start);
    void *buffer = request->aligned_buffer ? request->aligned_buffer : request->buffer;
    uint32_t flags = request->unfragmented ? LIBNBD_CMD_FLAG_DF : 0;
    nbd_chunk_callback received = {.callback = read_received, .user_data = request};
    nbd_completion_callback completed = {.callback = read_completed, .user_data = request};
    return nbd_aio_pread_structured(request->connection->nbd, buffer, end - start, start, received, completed, flags);
}

/* A server that does not tell extents has only data. */
static void request_answer_data(Request *request) {
    VmsnapExtent extent = {.length_bytes = request->length, .kind = VMSNAP_EXTENT_DATA};
    g_array_append_val(request->extents, extent);
    request_finish(request, 0);
}

static void request_start(Request *request) {
    VmsnapNbdConnection *connection = request->connection;
    if (request->extents && !connection->has_allocation) {
        request_answer_data(request);
        return;
    }
    /*
     * libnbd may complete it before the call returns. The request may be gone then, and the cookie means nothing:
     * libnbd takes it from the command, which it has freed by that time.
     */
    gboolean completed = FALSE;
    request->completed = &completed;
    g_queue_push_tail_link(&connection->started, &request->link);
    int64_t cookie = request->extents ? request_start_extents(request) : request_start_read(request);
    /* libnbd keeps its errors for the thread that met them. */
    if (nbd_aio_is_dead(connection->nbd) && !connection->death_reason)
        connection->death_reason = g_strdup(nbd_get_error());
    if (completed)
        return;
    request->completed = NULL;
    if (cookie < 0)
        request_fail_later(request);
}

/* From here on every new request fails. @ret_submitted gets those that were not started. */
static void connection_refuse_more(VmsnapNbdConnection *connection, GQueue *ret_submitted) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&connection->lock);
    connection->closed = TRUE;
    *ret_submitted = connection->submitted;
    g_queue_init(&connection->submitted);
}

static void connection_lose(VmsnapNbdConnection *connection, const char *reason) {
    GQueue submitted;
    connection_refuse_more(connection, &submitted);
    vmsnap_snapshot_break(connection->snapshot,
                          "QEMU closed the NBD connection (%s): the guest was stopped, or somebody else ended "
                          "the backup job",
                          reason);
    requests_fail(&connection->failed);
    requests_fail(&connection->started);
    requests_fail(&submitted);
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

static int connection_notify(VmsnapNbdConnection *connection, GIOCondition events) {
    unsigned direction = nbd_aio_get_direction(connection->nbd);
    if ((events & ~G_IO_OUT) && (direction & LIBNBD_AIO_DIRECTION_READ))
        return nbd_aio_notify_read(connection->nbd);
    if ((events & ~G_IO_IN) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        return nbd_aio_notify_write(connection->nbd);
    return 0;
}

static void connection_update_events(VmsnapNbdConnection *connection) {
    unsigned direction = nbd_aio_get_direction(connection->nbd);
    GIOCondition events =
        (direction & LIBNBD_AIO_DIRECTION_READ ? G_IO_IN : 0) | (direction & LIBNBD_AIO_DIRECTION_WRITE ? G_IO_OUT : 0);
    if (events == connection->events)
        return;
    connection->events = events;
    g_source_modify_unix_fd(&connection->source, connection->fd_tag, events);
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

/* Returns: whether the connection still lives. */
static gboolean connection_dispatch_locked(VmsnapNbdConnection *connection, GIOCondition events) {
    g_atomic_int_set(&connection->needs_io_thread, FALSE);
    connection_start_submitted(connection);
    int result = connection_notify(connection, events);
    if (result == 0 && !nbd_aio_is_dead(connection->nbd) && !nbd_aio_is_closed(connection->nbd)) {
        connection_update_events(connection);
        requests_fail(&connection->failed);
        return TRUE;
    }
    const char *reason = result != 0 ? nbd_get_error() : connection->death_reason;
    connection_lose(connection, reason ? reason : "the server closed the connection");
    return FALSE;
}

/* Runs on the I/O thread. What is submitted after the queue was taken makes the source ready again. */
static gboolean connection_dispatch(GSource *source, GSourceFunc callback, gpointer user_data) {
    (void)callback;
    (void)user_data;
    VmsnapNbdConnection *connection = (VmsnapNbdConnection *)source;
    (void)pthread_mutex_lock(&connection->handle_lock);
    gboolean lives = connection_dispatch_locked(connection, g_source_query_unix_fd(source, connection->fd_tag));
    (void)pthread_mutex_unlock(&connection->handle_lock);
    return lives ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

/* A ready time would do as well, but GLib wakes the loop once more each time that one is taken back. */
static GSourceFuncs connection_funcs = {
    .prepare = connection_prepare,
    .check = connection_has_work,
    .dispatch = connection_dispatch,
};

static void set_nbd_error(GError **error, const char *socket, const char *export_name) {
    const char *reason = nbd_get_error();
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to connect to NBD export '%s' on '%s': %s",
                export_name, socket, reason ? reason : "no answer, or no socket");
}

/* A symbolic link would lead to the disk of another machine: the directory belongs to QEMU's user. */
static int socket_open(const char *socket) {
    struct stat status;
    int fd = open(socket, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode))
        return fd;
    if (fd >= 0)
        (void)close(fd);
    return -1;
}

/* Connects, within @timeout_ms: a server may accept and then say nothing. */
static gboolean handle_connect_in_time(struct nbd_handle *nbd, const char *socket, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    if (nbd_aio_connect_unix(nbd, socket) != 0)
        return FALSE;
    while (nbd_aio_is_connecting(nbd)) {
        gint64 left_ms = (deadline_us - g_get_monotonic_time()) / 1000;
        if (left_ms <= 0 || nbd_poll(nbd, (int)MIN(left_ms, G_MAXINT)) < 0)
            return FALSE;
    }
    return nbd_aio_is_ready(nbd) == 1;
}

static struct nbd_handle *handle_connect(const char *socket, const char *export_name, unsigned timeout_ms) {
    int socket_fd = socket_open(socket);
    struct nbd_handle *nbd = socket_fd >= 0 ? nbd_create() : NULL;
    g_autofree char *opened = g_strdup_printf("/proc/self/fd/%d", socket_fd);
    gboolean connected = nbd && nbd_set_pread_initialize(nbd, false) == 0 &&
                         nbd_set_export_name(nbd, export_name) == 0 &&
                         nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
                         handle_connect_in_time(nbd, opened, timeout_ms);
    if (socket_fd >= 0)
        (void)close(socket_fd);
    if (!connected)
        g_clear_pointer(&nbd, nbd_close);
    return nbd;
}

static gboolean connection_read_properties(VmsnapNbdConnection *connection) {
    int64_t size_bytes = nbd_get_size(connection->nbd);
    int64_t block_bytes = nbd_get_block_size(connection->nbd, LIBNBD_SIZE_MINIMUM);
    connection->size_bytes = (uint64_t)size_bytes;
    connection->block_bytes = block_bytes > 0 ? (uint64_t)block_bytes : 1;
    connection->is_multi_conn = nbd_can_multi_conn(connection->nbd) == 1;
    connection->has_allocation = nbd_can_meta_context(connection->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
    return size_bytes >= 0;
}

VmsnapNbdConnection *vmsnap_nbd_connection_new(VmsnapSnapshot *snapshot, const char *socket, const char *export_name,
                                               unsigned timeout_ms, GError **error) {
    g_autoptr(VmsnapNbdConnection) connection =
        (VmsnapNbdConnection *)g_source_new(&connection_funcs, sizeof(VmsnapNbdConnection));
    g_mutex_init(&connection->lock);
    (void)pthread_mutex_init(&connection->handle_lock, NULL);
    connection->snapshot = snapshot;
    connection->nbd = handle_connect(socket, export_name, timeout_ms);
    if (!connection->nbd || !connection_read_properties(connection)) {
        set_nbd_error(error, socket, export_name);
        return NULL;
    }
    return g_steal_pointer(&connection);
}

uint64_t vmsnap_nbd_connection_get_size(const VmsnapNbdConnection *connection) {
    return connection->size_bytes;
}

gboolean vmsnap_nbd_connection_is_multi_conn(const VmsnapNbdConnection *connection) {
    return connection->is_multi_conn;
}

void vmsnap_nbd_connection_attach(VmsnapNbdConnection *connection, VmsnapIoThreads *threads) {
    connection->events = G_IO_IN;
    connection->fd_tag = g_source_add_unix_fd(&connection->source, nbd_aio_get_fd(connection->nbd), G_IO_IN);
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
        done = g_queue_is_empty(&connection->failed) &&
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
static void request_queue(Request *request) {
    VmsnapNbdConnection *connection = request->connection;
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

static void request_submit(Request *request) {
    g_assert(request->read_done || request->extents_done);
    request->link.data = request;
    g_atomic_int_inc(&request->connection->load);
    request_queue(request);
}

void vmsnap_nbd_connection_read(VmsnapNbdConnection *connection, void *buffer, size_t length, uint64_t offset,
                                VmsnapDoneFunc done, gpointer user_data) {
    Request *request = g_new0(Request, 1);
    request->connection = connection;
    request->buffer = buffer;
    request->length = length;
    request->offset = offset;
    request->read_done = done;
    request->user_data = user_data;
    request_submit(request);
}

void vmsnap_nbd_connection_extents(VmsnapNbdConnection *connection, uint64_t offset, uint64_t length,
                                   VmsnapExtentsFunc done, gpointer user_data) {
    Request *request = g_new0(Request, 1);
    request->connection = connection;
    request->extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    request->length = length;
    request->offset = offset;
    request->extents_done = done;
    request->user_data = user_data;
    request_submit(request);
}

/* nbd_close() drops commands without a callback: they are in started, and fail here. */
void vmsnap_nbd_connection_close(VmsnapNbdConnection *connection) {
    GQueue submitted;
    connection_refuse_more(connection, &submitted);
    (void)pthread_mutex_lock(&connection->handle_lock);
    g_clear_pointer(&connection->nbd, nbd_close);
    requests_fail(&connection->failed);
    requests_fail(&connection->started);
    (void)pthread_mutex_unlock(&connection->handle_lock);
    requests_fail(&submitted);
}

void vmsnap_nbd_connection_free(VmsnapNbdConnection *connection) {
    if (!connection)
        return;
    vmsnap_nbd_connection_close(connection);
    g_free(connection->death_reason);
    g_mutex_clear(&connection->lock);
    (void)pthread_mutex_destroy(&connection->handle_lock);
    g_source_destroy(&connection->source);
    g_source_unref(&connection->source);
}
