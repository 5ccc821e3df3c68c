/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connections that are cut, and what is left of them. Between the pool and nbdkit stands somebody who can do that. */
#include "extents.h"
#include "nbd_support.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define DISK_BYTES 10000003
#define N_READS 32
#define N_LINKS 16
/* It takes milliseconds, or a second where one looks each second; but machines are busy, and the timeout is 20 s. */
#define SOON_US ((gint64)5 * G_USEC_PER_SEC)
/* What a client gets of nbdkit before the first answer is less than this. */
#define HANDSHAKE_BYTES 2000

typedef enum {
    PASS_ON,
    PASS_DROPS,  /* a few bytes of the answers at a time */
    HOLD_BACK,   /* the answers, for the time being */
    SAY_NOTHING, /* to those that come now */
    HANG_UP,     /* on those that come now */
} Habit;

typedef struct {
    int client_fd; /* -1 if there is none */
    int server_fd; /* -1 if nothing is said */
    int64_t left;  /* bytes of the server's until it is cut, or -1 */
} Link;

typedef struct {
    char *directory;
    char *socket;
    int listen_fd;
    GThread *thread;
    Link links[N_LINKS]; /* the thread's */
    int n_cuts;          /* the thread's */

    int habit;           /* these are atomic */
    int habit_after_cut; /* what it takes to with the cut */
    int wanted_cuts;     /* how often all links are to be cut */
    int cut_after;       /* bytes of the server's, for links that are made from now on; 0 to leave them alone */
    int closes;          /* whether it is to go away */
    int n_links;         /* how many have been made */
    char *server_socket; /* guarded by lock */
    GMutex lock;
} Proxy;

static int socket_connect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    (void)close(fd);
    return -1;
}

static void link_cut(Link *link) {
    if (link->client_fd >= 0)
        (void)close(link->client_fd);
    if (link->server_fd >= 0)
        (void)close(link->server_fd);
    *link = (Link){.client_fd = -1, .server_fd = -1, .left = -1};
}

/* Returns: whether the link is still whole. */
static gboolean link_pass_on(Link *link, int from, int to, size_t most) {
    uint8_t data[65536];
    gboolean limited = from == link->server_fd && link->left >= 0;
    size_t length = MIN(sizeof data, most);
    if (limited)
        length = MIN(length, (size_t)link->left);
    ssize_t received = recv(from, data, length, 0);
    if (received <= 0 || send(to, data, (size_t)received, MSG_NOSIGNAL) != received)
        return FALSE;
    if (limited)
        link->left -= received;
    return !limited || link->left > 0;
}

static void proxy_accept(Proxy *proxy) {
    int fd = accept4(proxy->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    int habit = g_atomic_int_get(&proxy->habit);
    int cut_after = g_atomic_int_get(&proxy->cut_after);
    Link *link = proxy->links;
    while (link < proxy->links + N_LINKS && link->client_fd >= 0)
        link++;
    g_assert_true(fd >= 0 && link < proxy->links + N_LINKS);
    g_atomic_int_inc(&proxy->n_links);
    if (habit == HANG_UP) {
        (void)close(fd);
        return;
    }
    link->client_fd = fd;
    link->left = cut_after > 0 ? cut_after : -1;
    if (habit == SAY_NOTHING)
        return;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&proxy->lock);
    link->server_fd = socket_connect(proxy->server_socket);
    g_assert_cmpint(link->server_fd, >=, 0);
}

static void proxy_serve_link(const Proxy *proxy, Link *link, const struct pollfd *polled) {
    int habit = g_atomic_int_get(&proxy->habit);
    gboolean whole =
        !polled[0].revents || (link->server_fd >= 0 && link_pass_on(link, link->client_fd, link->server_fd, SIZE_MAX));
    if (whole && polled[1].revents && habit != HOLD_BACK)
        whole = link_pass_on(link, link->server_fd, link->client_fd, habit == PASS_DROPS ? 200 : SIZE_MAX);
    if (!whole)
        link_cut(link);
}

static gpointer proxy_run(gpointer data) {
    Proxy *proxy = data;
    while (!g_atomic_int_get(&proxy->closes)) {
        struct pollfd polled[1 + 2 * N_LINKS] = {{.fd = proxy->listen_fd, .events = POLLIN}};
        gboolean holds = g_atomic_int_get(&proxy->habit) == HOLD_BACK;
        for (int i = 0; i < N_LINKS; i++) {
            polled[1 + 2 * i] = (struct pollfd){.fd = proxy->links[i].client_fd, .events = POLLIN};
            polled[2 + 2 * i] = (struct pollfd){.fd = holds ? -1 : proxy->links[i].server_fd, .events = POLLIN};
        }
        (void)poll(polled, G_N_ELEMENTS(polled), 1);
        for (int i = 0; i < N_LINKS; i++)
            proxy_serve_link(proxy, &proxy->links[i], &polled[1 + 2 * i]);
        if (proxy->n_cuts < g_atomic_int_get(&proxy->wanted_cuts)) {
            proxy->n_cuts++;
            for (int i = 0; i < N_LINKS; i++)
                link_cut(&proxy->links[i]);
            g_atomic_int_set(&proxy->habit, g_atomic_int_get(&proxy->habit_after_cut));
        }
        if (polled[0].revents)
            proxy_accept(proxy);
        if (g_atomic_int_get(&proxy->habit) == PASS_DROPS)
            g_usleep(2000);
    }
    (void)close(proxy->listen_fd);
    for (int i = 0; i < N_LINKS; i++)
        link_cut(&proxy->links[i]);
    return NULL;
}

static int socket_listen(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(fd, 16), ==, 0);
    return fd;
}

static void proxy_start(Proxy *proxy, const Server *server) {
    *proxy = (Proxy){.directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL), .server_socket = g_strdup(server->socket)};
    proxy->socket = g_build_filename(proxy->directory, "socket", NULL);
    proxy->listen_fd = socket_listen(proxy->socket);
    g_mutex_init(&proxy->lock);
    for (int i = 0; i < N_LINKS; i++)
        proxy->links[i].client_fd = proxy->links[i].server_fd = -1;
    proxy->thread = g_thread_new("proxy", proxy_run, proxy);
}

static void proxy_set(Proxy *proxy, Habit habit) {
    g_atomic_int_set(&proxy->habit, (int)habit);
}

/* No answer gets through any more, and those that connect meet that habit. */
static void proxy_cut_and_set(Proxy *proxy, Habit habit) {
    g_atomic_int_set(&proxy->habit_after_cut, (int)habit);
    g_atomic_int_inc(&proxy->wanted_cuts);
}

static void proxy_cut(Proxy *proxy) {
    proxy_cut_and_set(proxy, PASS_ON);
}

static void proxy_lead_to(Proxy *proxy, const char *server_socket) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&proxy->lock);
    g_free(proxy->server_socket);
    proxy->server_socket = g_strdup(server_socket);
}

static void proxy_wait_links(Proxy *proxy, int n_links) {
    gint64 deadline_us = g_get_monotonic_time() + LATCH_TIMEOUT_S * G_USEC_PER_SEC;
    while (g_atomic_int_get(&proxy->n_links) < n_links) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
        g_usleep(1000);
    }
}

/* Nobody listens from then on, but the socket stays. */
static void proxy_stop(Proxy *proxy) {
    g_atomic_int_set(&proxy->closes, TRUE);
    if (proxy->thread)
        (void)g_thread_join(g_steal_pointer(&proxy->thread));
}

static void proxy_clear(Proxy *proxy) {
    proxy_stop(proxy);
    (void)g_unlink(proxy->socket);
    g_assert_cmpint(g_rmdir(proxy->directory), ==, 0);
    g_free(proxy->socket);
    g_free(proxy->directory);
    g_free(proxy->server_socket);
    g_mutex_clear(&proxy->lock);
}

/* A pool that is connected to nbdkit by way of somebody else. */
typedef struct {
    Server server;
    Proxy proxy;
    Client client;
} Setup;

/*
 * Without a thread. nbdkit 1.32 fails an assertion if its client goes while several threads of it answer, so that it
 * gets one.
 */
static void setup_begin_waiting(Setup *setup, const char *words, guint max_connections, unsigned timeout_ms,
                                int cut_after) {
    g_autofree char *more_words = g_strconcat("--threads=1 ", words, NULL);
    server_start(&setup->server, more_words);
    proxy_start(&setup->proxy, &setup->server);
    g_atomic_int_set(&setup->proxy.cut_after, cut_after);
    client_open_within(&setup->client, setup->proxy.socket, max_connections, timeout_ms);
}

static void setup_begin(Setup *setup, const char *words, guint max_connections, unsigned timeout_ms) {
    setup_begin_waiting(setup, words, max_connections, timeout_ms, 0);
    g_assert_true(vmsnap_io_threads_start(setup->client.threads, NULL));
}

static void setup_end(Setup *setup) {
    client_clear(&setup->client);
    proxy_clear(&setup->proxy);
    server_clear(&setup->server);
}

static void calls_start(Call *calls, Client *client, size_t length) {
    for (unsigned i = 0; i < N_READS; i++)
        call_read(&calls[i], client, random_below(DISK_BYTES - length), length);
}

static void calls_check(Call *calls) {
    for (unsigned i = 0; i < N_READS; i++) {
        latch_wait(&calls[i].called, 1);
        call_check_pattern(&calls[i]);
        call_clear(&calls[i]);
    }
}

/* Whoever sees his read fail and asks why must find that the snapshot is broken. */
static void calls_check_failed(Call *calls) {
    for (unsigned i = 0; i < N_READS; i++) {
        latch_wait(&calls[i].called, 1);
        g_assert_cmpint(calls[i].error, ==, -EIO);
        g_assert_true(calls[i].was_broken);
        call_clear(&calls[i]);
    }
}

static void test_a_cut_while_idle_is_mended(void) {
    for (int connections = 1; connections <= 2; connections++) {
        Setup setup;
        setup_begin(&setup, "pattern 10000003", (guint)connections, CONNECT_TIMEOUT_MS);
        for (int i = 1; i <= 3; i++) {
            proxy_cut(&setup.proxy);
            proxy_wait_links(&setup.proxy, connections * (i + 1));
            check_random_pattern_reads(&setup.client, DISK_BYTES, 5);
        }
        g_assert_false(client_is_broken(&setup.client));
        setup_end(&setup);
    }
}

static void test_a_cut_with_reads_in_flight_is_mended(void) {
    for (guint connections = 1; connections <= 2; connections++) {
        Setup setup;
        Call calls[N_READS];
        setup_begin(&setup, "--filter=delay pattern 10000003 delay-read=10ms", connections, CONNECT_TIMEOUT_MS);
        calls_start(calls, &setup.client, 5000);
        g_usleep(20000);
        proxy_cut(&setup.proxy);
        calls_check(calls);
        g_assert_cmpint(g_atomic_int_get(&setup.proxy.n_links), >, (int)connections);
        g_assert_false(client_is_broken(&setup.client));
        setup_end(&setup);
    }
}

static void test_a_question_that_is_cut_is_asked_again(void) {
    Setup setup;
    Call question;
    setup_begin(&setup, "--filter=delay memory 10000003 delay-extents=100ms", 1, CONNECT_TIMEOUT_MS);
    call_extents(&question, &setup.client, 0, DISK_BYTES);
    g_usleep(20000);
    proxy_cut(&setup.proxy);
    latch_wait(&question.called, 1);
    g_assert_cmpint(question.error, ==, 0);
    g_assert_cmpuint(extents_count_zero(question.extents, 0, DISK_BYTES), ==, DISK_BYTES);
    call_clear(&question);
    setup_end(&setup);
}

/* A pool that is connected to qemu-nbd by way of the proxy, and is told what has changed: nothing. */
static void setup_begin_changes(Setup *setup) {
    server_init(&setup->server);
    server_call(&setup->server, "qemu-img create -q -f qcow2 disk 1G");
    server_call(&setup->server, "qemu-img bitmap --add --disable disk cp1");
    server_run_qemu(&setup->server, "disk", "cp1");
    proxy_start(&setup->proxy, &setup->server);
    client_open_bitmap(&setup->client, setup->proxy.socket, "cp1", 1);
}

static void check_nothing_has_changed(Call *call) {
    latch_wait(&call->called, 1);
    g_assert_cmpint(call->error, ==, 0);
    g_assert_cmpuint(extents_count_zero(call->extents, 0, 1 << 20), ==, 1 << 20);
    call_clear(call);
}

/* Its connection comes back with the question that it is for. */
static void test_a_question_about_changes_that_is_cut_is_asked_again(void) {
    Setup setup;
    Call idle, under_way;
    setup_begin_changes(&setup);
    proxy_cut(&setup.proxy);
    proxy_wait_links(&setup.proxy, 4);
    call_changes(&idle, &setup.client, 0, 1 << 20);
    check_nothing_has_changed(&idle);
    proxy_set(&setup.proxy, HOLD_BACK);
    call_changes(&under_way, &setup.client, 1 << 20, 1 << 20);
    g_usleep(20000);
    proxy_cut(&setup.proxy);
    check_nothing_has_changed(&under_way);
    g_assert_false(client_is_broken(&setup.client));
    setup_end(&setup);
}

/* The same disk, but nobody knows any more what of it has changed. */
static void test_a_server_that_forgets_the_changes_breaks(void) {
    Setup setup;
    Server other;
    Call call;
    setup_begin_changes(&setup);
    server_init(&other);
    server_call(&other, "qemu-img create -q -f qcow2 disk 1G");
    server_run_qemu(&other, "disk", NULL);
    proxy_lead_to(&setup.proxy, other.socket);
    proxy_cut(&setup.proxy);
    client_wait_broken(&setup.client, "whether it tells extents changed");
    call_changes(&call, &setup.client, 0, 1 << 20);
    latch_wait(&call.called, 1);
    g_assert_cmpint(call.error, ==, -EIO);
    call_clear(&call);
    setup_end(&setup);
    server_clear(&other);
}

/* Also where the server wants blocks, so that answers go into a buffer of their own. */
static void test_a_cut_in_the_middle_of_an_answer_is_mended(void) {
    static const char *const servers[] = {"pattern 10000003",
                                          "--filter=blocksize-policy pattern 10000003 blocksize-error-policy=error "
                                          "blocksize-minimum=512 blocksize-preferred=4096"};
    for (size_t i = 0; i < G_N_ELEMENTS(servers); i++) {
        Setup setup;
        setup_begin_waiting(&setup, servers[i], 1, CONNECT_TIMEOUT_MS, 700000);
        g_assert_true(vmsnap_io_threads_start(setup.client.threads, NULL));
        for (int n = 0; n < 20; n++)
            check_pattern_read(&setup.client, random_below(DISK_BYTES - 200001), 200001);
        g_assert_cmpint(g_atomic_int_get(&setup.proxy.n_links), >=, 6);
        g_assert_false(client_is_broken(&setup.client));
        setup_end(&setup);
    }
}

static gpointer read_many(gpointer data) {
    Call calls[N_READS];
    for (int i = 0; i < 20; i++) {
        calls_start(calls, data, 5000);
        calls_check(calls);
    }
    return NULL;
}

static void test_cuts_may_come_time_after_time(void) {
    Setup setup;
    GThread *threads[3];
    setup_begin(&setup, "pattern 10000003", 2, CONNECT_TIMEOUT_MS);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", read_many, &setup.client);
    for (int i = 0; i < 40; i++) {
        g_atomic_int_set(&setup.proxy.cut_after, 50000 + (int)random_below(500000));
        g_usleep(random_below(10000));
        proxy_cut(&setup.proxy);
    }
    g_atomic_int_set(&setup.proxy.cut_after, 0);
    proxy_cut(&setup.proxy);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        (void)g_thread_join(threads[i]);
    g_assert_false(client_is_broken(&setup.client));
    setup_end(&setup);
}

/* The name may be gone from the directory; the socket is the same. */
static void test_a_socket_is_found_without_its_directory(void) {
    Setup setup;
    setup_begin(&setup, "pattern 10000003", 1, CONNECT_TIMEOUT_MS);
    g_autofree char *away = g_strconcat(setup.proxy.directory, "-away", NULL);
    g_assert_cmpint(g_rename(setup.proxy.directory, away), ==, 0);
    proxy_cut(&setup.proxy);
    proxy_wait_links(&setup.proxy, 2);
    check_pattern_read(&setup.client, 0, 4096);
    g_assert_cmpint(g_rename(away, setup.proxy.directory), ==, 0);
    setup_end(&setup);
}

static void test_the_socket_is_made_writable_for_everybody(void) {
    Setup setup;
    struct stat status;
    server_start(&setup.server, "pattern 10000003");
    proxy_start(&setup.proxy, &setup.server);
    g_assert_cmpint(g_chmod(setup.proxy.socket, 0755), ==, 0);
    client_open_within(&setup.client, setup.proxy.socket, 1, CONNECT_TIMEOUT_MS);
    g_assert_cmpint(stat(setup.proxy.socket, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 0777, ==, 0666);
    setup_end(&setup);
}

static void test_another_name_of_a_socket_leaves_its_mode_alone(void) {
    Setup setup;
    struct stat status;
    server_start(&setup.server, "pattern 10000003");
    proxy_start(&setup.proxy, &setup.server);
    g_autofree char *link_name = g_build_filename(setup.proxy.directory, "link", NULL);
    g_assert_cmpint(g_chmod(setup.proxy.socket, 0700), ==, 0);
    g_assert_cmpint(link(setup.proxy.socket, link_name), ==, 0);
    client_open_within(&setup.client, link_name, 1, CONNECT_TIMEOUT_MS);
    g_assert_cmpint(stat(setup.proxy.socket, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 0777, ==, 0700);
    g_assert_cmpint(g_unlink(link_name), ==, 0);
    setup_end(&setup);
}

/* Returns: how long it took, in ms, until all reads had failed; after a cut that comes while they are in flight. */
static gint64 cut_and_wait_for_failures(Setup *setup, Habit habit) {
    Call calls[N_READS];
    proxy_set(&setup->proxy, HOLD_BACK);
    calls_start(calls, &setup->client, 5000);
    g_usleep(10000);
    gint64 start_us = g_get_monotonic_time();
    proxy_cut_and_set(&setup->proxy, habit);
    calls_check_failed(calls);
    return (g_get_monotonic_time() - start_us) / 1000;
}

static void test_a_server_that_hangs_up_is_given_up(void) {
    Setup setup;
    setup_begin(&setup, "pattern 10000003", 1, 2000);
    gint64 took_ms = cut_and_wait_for_failures(&setup, HANG_UP);
    g_assert_cmpint(took_ms, >=, 1990);
    g_assert_cmpint(took_ms, <, 10000);
    client_wait_broken(&setup.client, "no NBD connection to QEMU for 2 s");
    /* At first at once, then after 100, 200, 400 and 800 ms. */
    g_assert_cmpint(g_atomic_int_get(&setup.proxy.n_links), >=, 3);
    g_assert_cmpint(g_atomic_int_get(&setup.proxy.n_links), <=, 6);
    g_assert_cmpint(read_error(&setup.client, 0, 4096), ==, -EIO);
    setup_end(&setup);
}

static void test_a_server_that_lets_nobody_in_is_given_up(void) {
    Setup setup;
    setup_begin(&setup, "pattern 10000003", 1, 1000);
    gint64 took_ms = cut_and_wait_for_failures(&setup, SAY_NOTHING);
    g_assert_cmpint(took_ms, >=, 990);
    g_assert_cmpint(took_ms, <, 10000);
    client_wait_broken(&setup.client, "no NBD connection to QEMU for 1 s");
    setup_end(&setup);
}

static void test_a_server_that_hangs_up_for_a_while_is_waited_for(void) {
    Setup setup;
    Call calls[N_READS];
    setup_begin(&setup, "pattern 10000003", 2, CONNECT_TIMEOUT_MS);
    proxy_cut_and_set(&setup.proxy, HANG_UP);
    proxy_wait_links(&setup.proxy, 5);
    calls_start(calls, &setup.client, 5000);
    proxy_set(&setup.proxy, PASS_ON);
    calls_check(calls);
    g_assert_false(client_is_broken(&setup.client));
    setup_end(&setup);
}

/* It lets us in each time, answers nothing and hangs up again. */
static void test_a_server_that_is_cut_before_any_answer_is_given_up(void) {
    Setup setup;
    Call call;
    setup_begin(&setup, "pattern 10000003", 1, 1000);
    g_atomic_int_set(&setup.proxy.cut_after, HANDSHAKE_BYTES);
    proxy_cut(&setup.proxy);
    call_read(&call, &setup.client, 0, 100000);
    latch_wait(&call.called, 1);
    g_assert_cmpint(call.error, ==, -EIO);
    call_clear(&call);
    /* There is no connection, or no answer: it depends on what runs out first. */
    client_wait_broken(&setup.client, " for 1 s");
    g_assert_cmpint(g_atomic_int_get(&setup.proxy.n_links), <=, 7);
    setup_end(&setup);
}

/* Small reads get their answers meanwhile, so that there is a connection, time after time. */
static void test_a_read_that_is_cut_each_time_ends(void) {
    Setup setup;
    Call call;
    setup_begin(&setup, "pattern 10000003", 1, 1000);
    g_atomic_int_set(&setup.proxy.cut_after, 20000);
    proxy_cut(&setup.proxy);
    call_read(&call, &setup.client, 0, 100000);
    while (read_error(&setup.client, 0, 100) == 0)
        ;
    latch_wait(&call.called, 1);
    g_assert_cmpint(call.error, ==, -EIO);
    g_assert_true(client_is_broken(&setup.client));
    call_clear(&call);
    setup_end(&setup);
}

static void test_a_server_that_is_gone_is_noticed_at_once(void) {
    for (int removed = 0; removed < 2; removed++) {
        Setup setup;
        Call calls[N_READS];
        setup_begin(&setup, "pattern 10000003", 2, CONNECT_TIMEOUT_MS);
        proxy_set(&setup.proxy, HOLD_BACK);
        calls_start(calls, &setup.client, 5000);
        gint64 start_us = g_get_monotonic_time();
        if (removed)
            g_assert_cmpint(g_unlink(setup.proxy.socket), ==, 0);
        proxy_stop(&setup.proxy);
        calls_check_failed(calls);
        g_assert_cmpint(g_get_monotonic_time() - start_us, <, SOON_US);
        client_wait_broken(&setup.client, "QEMU closed the NBD connection (");
        setup_end(&setup);
    }
}

/* Somebody still listens, but nobody else will find him. */
static void test_a_socket_that_is_removed_is_gone(void) {
    Setup setup;
    setup_begin(&setup, "pattern 10000003", 1, CONNECT_TIMEOUT_MS);
    g_assert_cmpint(g_unlink(setup.proxy.socket), ==, 0);
    g_assert_cmpint(cut_and_wait_for_failures(&setup, PASS_ON), <, SOON_US / 1000);
    client_wait_broken(&setup.client, "QEMU closed the NBD connection (");
    setup_end(&setup);
}

/* The same path, but another socket. */
static void test_another_server_is_not_taken_for_the_first(void) {
    Setup setup;
    Proxy impostor;
    setup_begin(&setup, "pattern 10000003", 1, CONNECT_TIMEOUT_MS);
    proxy_start(&impostor, &setup.server);
    g_assert_cmpint(g_rename(impostor.socket, setup.proxy.socket), ==, 0);
    proxy_stop(&setup.proxy);
    client_wait_broken(&setup.client, "QEMU closed the NBD connection (");
    g_assert_cmpint(g_atomic_int_get(&impostor.n_links), ==, 0);
    proxy_clear(&impostor);
    setup_end(&setup);
}

static void check_another_server_breaks(const char *words, const char *said) {
    Setup setup;
    Server other;
    setup_begin(&setup, "pattern 10000003", 1, CONNECT_TIMEOUT_MS);
    server_start(&other, words);
    proxy_lead_to(&setup.proxy, other.socket);
    g_assert_cmpint(cut_and_wait_for_failures(&setup, PASS_ON), <, SOON_US / 1000);
    client_wait_broken(&setup.client, said);
    setup_end(&setup);
    server_clear(&other);
}

static void test_an_export_that_changes_breaks(void) {
    check_another_server_breaks("pattern 10000004", "its size changed");
    check_another_server_breaks("--filter=multi-conn pattern 10000003 multi-conn-mode=disable", "several connections");
    check_another_server_breaks("--no-sr pattern 10000003", "extents");
    check_another_server_breaks("--filter=blocksize-policy pattern 10000003 blocksize-minimum=4096 "
                                "blocksize-preferred=4096",
                                "its block size changed");
}

/* The job has ended, but QEMU serves others. */
static void test_an_export_that_is_gone_breaks(void) {
    check_another_server_breaks("--filter=exportname pattern 10000003 exportname-strict=true exportname=vdb",
                                "QEMU closed the NBD connection (");
}

static void test_a_silent_server_is_given_up(void) {
    Setup setup;
    Call calls[N_READS];
    setup_begin(&setup, "pattern 10000003", 2, 2000);
    check_random_pattern_reads(&setup.client, DISK_BYTES, 5);
    proxy_set(&setup.proxy, HOLD_BACK);
    gint64 start_us = g_get_monotonic_time();
    calls_start(calls, &setup.client, 5000);
    latch_wait(&calls[0].called, 1);
    g_assert_cmpint(g_get_monotonic_time() - start_us, >=, 1990 * 1000);
    client_wait_broken(&setup.client, "QEMU has not answered for 2 s");
    calls_check_failed(calls);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 10 * G_USEC_PER_SEC);
    setup_end(&setup);
}

static void test_an_idle_server_may_be_silent(void) {
    Setup setup;
    setup_begin(&setup, "pattern 10000003", 2, 1000);
    for (int i = 0; i < 2; i++) {
        check_random_pattern_reads(&setup.client, DISK_BYTES, 5);
        g_usleep(1500000);
    }
    g_assert_false(client_is_broken(&setup.client));
    setup_end(&setup);
}

/* The queue takes longer than one answer may. */
static void test_a_slow_server_lives(void) {
    Setup setup;
    Call calls[N_READS];
    setup_begin(&setup, "pattern 10000003", 1, 1500);
    proxy_set(&setup.proxy, PASS_DROPS);
    gint64 start_us = g_get_monotonic_time();
    calls_start(calls, &setup.client, 8000);
    calls_check(calls);
    g_assert_cmpint(g_get_monotonic_time() - start_us, >, 2 * G_USEC_PER_SEC);
    g_assert_false(client_is_broken(&setup.client));
    setup_end(&setup);
}

static void test_an_answer_after_the_break_is_an_error(void) {
    Setup setup;
    Call read, question;
    setup_begin(&setup, "memory 10000003", 1, CONNECT_TIMEOUT_MS);
    proxy_set(&setup.proxy, HOLD_BACK);
    call_read(&read, &setup.client, 0, 4096);
    call_extents(&question, &setup.client, 0, 4096);
    g_usleep(20000);
    vmsnap_snapshot_break(&setup.client.snapshot, "a test breaks it");
    proxy_set(&setup.proxy, PASS_ON);
    latch_wait(&read.called, 1);
    latch_wait(&question.called, 1);
    g_assert_cmpint(read.error, ==, -EIO);
    g_assert_cmpint(question.error, ==, -EIO);
    call_clear(&read);
    call_clear(&question);
    client_wait_broken(&setup.client, "a test breaks it");
    setup_end(&setup);
}

/* Whoever waits for a server that is stuck learns of the break all the same. */
static void test_a_break_ends_reads_in_flight(void) {
    Setup setup;
    Call calls[N_READS];
    setup_begin(&setup, "pattern 10000003", 2, CONNECT_TIMEOUT_MS);
    proxy_set(&setup.proxy, HOLD_BACK);
    calls_start(calls, &setup.client, 5000);
    vmsnap_snapshot_break(&setup.client.snapshot, "a test breaks it");
    gint64 start_us = g_get_monotonic_time();
    calls_check_failed(calls);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, SOON_US);
    setup_end(&setup);
}

static void test_a_break_ends_the_search_for_a_connection(void) {
    static const Habit habits[] = {HANG_UP, SAY_NOTHING};
    for (size_t i = 0; i < G_N_ELEMENTS(habits); i++) {
        Setup setup;
        Call calls[N_READS];
        setup_begin(&setup, "pattern 10000003", 1, CONNECT_TIMEOUT_MS);
        proxy_cut_and_set(&setup.proxy, habits[i]);
        proxy_wait_links(&setup.proxy, 2);
        calls_start(calls, &setup.client, 5000);
        vmsnap_snapshot_break(&setup.client.snapshot, "a test breaks it");
        gint64 start_us = g_get_monotonic_time();
        calls_check_failed(calls);
        g_assert_cmpint(g_get_monotonic_time() - start_us, <, SOON_US);
        setup_end(&setup);
    }
}

static void test_close_may_come_while_there_is_no_connection(void) {
    static const Habit habits[] = {HANG_UP, SAY_NOTHING, PASS_ON};
    for (int run = 0; run < 12; run++) {
        Setup setup;
        Call calls[N_READS];
        setup_begin(&setup, "pattern 10000003", 2, CONNECT_TIMEOUT_MS);
        proxy_cut_and_set(&setup.proxy, habits[run % 3]);
        g_usleep(random_below(10000));
        calls_start(calls, &setup.client, 5000);
        g_usleep(random_below(10000));
        client_stop(&setup.client);
        for (unsigned i = 0; i < N_READS; i++) {
            g_assert_true(calls[i].error == -EIO || (calls[i].error == 0 && habits[run % 3] == PASS_ON));
            call_clear(&calls[i]);
        }
        g_assert_false(client_is_broken(&setup.client));
        setup_end(&setup);
    }
}

static void test_requests_wait_for_the_threads(void) {
    Setup setup;
    Call calls[N_READS], question;
    setup_begin_waiting(&setup, "pattern 10000003", 2, CONNECT_TIMEOUT_MS, 0);
    calls_start(calls, &setup.client, 5000);
    call_extents(&question, &setup.client, 0, 4096);
    g_usleep(20000);
    g_assert_cmpuint(latch_get(&question.called), ==, 0);
    g_assert_true(vmsnap_io_threads_start(setup.client.threads, NULL));
    g_assert_true(vmsnap_io_threads_start(setup.client.threads, NULL));
    calls_check(calls);
    latch_wait(&question.called, 1);
    g_assert_cmpint(question.error, ==, 0);
    call_clear(&question);
    setup_end(&setup);
}

static void test_threads_that_never_started_can_be_stopped(void) {
    Setup setup;
    Call calls[N_READS];
    server_start(&setup.server, "pattern 10000003");
    client_open_within(&setup.client, setup.server.socket, 2, CONNECT_TIMEOUT_MS);
    calls_start(calls, &setup.client, 5000);
    client_stop(&setup.client);
    for (unsigned i = 0; i < N_READS; i++) {
        g_assert_cmpint(calls[i].error, ==, -EIO);
        call_clear(&calls[i]);
    }
    client_clear(&setup.client);
    server_clear(&setup.server);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_autofree char *nbdkit = g_find_program_in_path("nbdkit");
    if (!nbdkit) {
        (void)g_printerr("nbdkit is not installed\n");
        return 77;
    }
#define ADD(path, function) g_test_add_func("/nbd-reconnect/" path, function)
    ADD("a-cut-while-idle-is-mended", test_a_cut_while_idle_is_mended);
    ADD("a-cut-with-reads-in-flight-is-mended", test_a_cut_with_reads_in_flight_is_mended);
    ADD("a-question-that-is-cut-is-asked-again", test_a_question_that_is_cut_is_asked_again);
    g_autofree char *qemu_nbd = g_find_program_in_path("qemu-nbd");
    if (qemu_nbd) {
        ADD("a-question-about-changes-that-is-cut-is-asked-again",
            test_a_question_about_changes_that_is_cut_is_asked_again);
        ADD("a-server-that-forgets-the-changes-breaks", test_a_server_that_forgets_the_changes_breaks);
    }
    ADD("a-cut-in-the-middle-of-an-answer-is-mended", test_a_cut_in_the_middle_of_an_answer_is_mended);
    ADD("cuts-may-come-time-after-time", test_cuts_may_come_time_after_time);
    ADD("a-socket-is-found-without-its-directory", test_a_socket_is_found_without_its_directory);
    ADD("the-socket-is-made-writable-for-everybody", test_the_socket_is_made_writable_for_everybody);
    ADD("another-name-of-a-socket-leaves-its-mode-alone", test_another_name_of_a_socket_leaves_its_mode_alone);
    ADD("a-server-that-hangs-up-is-given-up", test_a_server_that_hangs_up_is_given_up);
    ADD("a-server-that-lets-nobody-in-is-given-up", test_a_server_that_lets_nobody_in_is_given_up);
    ADD("a-server-that-hangs-up-for-a-while-is-waited-for", test_a_server_that_hangs_up_for_a_while_is_waited_for);
    ADD("a-server-that-is-cut-before-any-answer-is-given-up", test_a_server_that_is_cut_before_any_answer_is_given_up);
    ADD("a-read-that-is-cut-each-time-ends", test_a_read_that_is_cut_each_time_ends);
    ADD("a-server-that-is-gone-is-noticed-at-once", test_a_server_that_is_gone_is_noticed_at_once);
    ADD("a-socket-that-is-removed-is-gone", test_a_socket_that_is_removed_is_gone);
    ADD("another-server-is-not-taken-for-the-first", test_another_server_is_not_taken_for_the_first);
    ADD("an-export-that-changes-breaks", test_an_export_that_changes_breaks);
    ADD("an-export-that-is-gone-breaks", test_an_export_that_is_gone_breaks);
    ADD("a-silent-server-is-given-up", test_a_silent_server_is_given_up);
    ADD("an-idle-server-may-be-silent", test_an_idle_server_may_be_silent);
    ADD("a-slow-server-lives", test_a_slow_server_lives);
    ADD("an-answer-after-the-break-is-an-error", test_an_answer_after_the_break_is_an_error);
    ADD("a-break-ends-reads-in-flight", test_a_break_ends_reads_in_flight);
    ADD("a-break-ends-the-search-for-a-connection", test_a_break_ends_the_search_for_a_connection);
    ADD("close-may-come-while-there-is-no-connection", test_close_may_come_while_there_is_no_connection);
    ADD("requests-wait-for-the-threads", test_requests_wait_for_the_threads);
    ADD("threads-that-never-started-can-be-stopped", test_threads_that_never_started_can_be_stopped);
#undef ADD
    return g_test_run();
}
