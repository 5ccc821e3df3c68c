/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A filesystem that hangs is a FIFO in the place of the file that is written for a try: to open it waits for a reader.
 * Until there is one, nothing else can be asked in this process.
 */
#include "backend/scratch_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIMEOUT_MS 60000
#define SHORT_MS 50
#define N_WAITERS 8
#define N_ROUNDS 50

typedef struct {
    char *directory;
    char *file;
} Fixture;

static void fixture_set_up(Fixture *fixture, gconstpointer data) {
    (void)data;
    fixture->directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    fixture->file = g_build_filename(fixture->directory, "probe", NULL);
}

/* Nothing is left behind. */
static void fixture_tear_down(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_assert_cmpint(g_rmdir(fixture->directory), ==, 0);
    g_free(fixture->directory);
    g_free(fixture->file);
}

static guint count_threads(void) {
    g_autoptr(GDir) directory = g_dir_open("/proc/self/task", 0, NULL);
    guint count = 0;
    while (g_dir_read_name(directory))
        count++;
    return count;
}

static void wait_for_threads(guint count) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)TIMEOUT_MS * 1000;
    while (count_threads() > count && g_get_monotonic_time() < deadline_us)
        g_usleep(1000);
    g_assert_cmpuint(count_threads(), ==, count);
}

/* The writer gets in, and its file is gone when it has written. */
static void let_go(const Fixture *fixture) {
    int fd = open(fixture->file, O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    char byte;
    while (read(fd, &byte, sizeof byte) > 0)
        ;
    (void)close(fd);
}

static void hang(const Fixture *fixture) {
    g_assert_cmpint(mkfifo(fixture->file, 0600), ==, 0);
    g_assert_false(vmsnap_scratch_answers(fixture->directory, SHORT_MS));
}

static void test_what_takes_writes_answers(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_assert_true(vmsnap_scratch_answers(fixture->directory, TIMEOUT_MS));
    g_assert_true(vmsnap_scratch_answers(fixture->directory, TIMEOUT_MS));
    g_assert_true(g_file_set_contents(fixture->file, "left", -1, NULL));
    g_assert_true(vmsnap_scratch_answers(fixture->directory, TIMEOUT_MS));
}

static void test_an_error_is_an_answer(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_assert_true(vmsnap_scratch_answers("/nonexistent", TIMEOUT_MS));
    g_assert_cmpint(symlink("/nonexistent/target", fixture->file), ==, 0);
    g_assert_true(vmsnap_scratch_answers(fixture->directory, TIMEOUT_MS));
    g_assert_cmpint(g_unlink(fixture->file), ==, 0);
    g_assert_cmpint(g_mkdir(fixture->file, 0700), ==, 0);
    g_assert_true(vmsnap_scratch_answers(fixture->directory, TIMEOUT_MS));
    g_assert_cmpint(g_rmdir(fixture->file), ==, 0);
}

static void test_what_hangs_keeps_one_thread(Fixture *fixture, gconstpointer data) {
    (void)data;
    guint n_before = count_threads();
    hang(fixture);
    for (int i = 0; i < 5; i++)
        g_assert_false(vmsnap_scratch_answers(fixture->directory, 1));
    /* Another directory is another matter. */
    g_assert_true(vmsnap_scratch_answers("/nonexistent", TIMEOUT_MS));
    wait_for_threads(n_before + 1);
    let_go(fixture);
    wait_for_threads(n_before);
    g_assert_true(vmsnap_scratch_answers(fixture->directory, TIMEOUT_MS));
}

static gpointer ask(gpointer fixture) {
    return GINT_TO_POINTER(vmsnap_scratch_answers(((const Fixture *)fixture)->directory, TIMEOUT_MS));
}

static void test_all_who_wait_for_one_get_its_answer(Fixture *fixture, gconstpointer data) {
    (void)data;
    GThread *threads[N_WAITERS];
    hang(fixture);
    for (size_t i = 0; i < N_WAITERS; i++)
        threads[i] = g_thread_new("ask", ask, fixture);
    g_usleep(SHORT_MS * 1000);
    let_go(fixture);
    for (size_t i = 0; i < N_WAITERS; i++)
        g_assert_true(GPOINTER_TO_INT(g_thread_join(threads[i])));
}

static gpointer ask_often(gpointer fixture) {
    for (int i = 0; i < N_ROUNDS; i++)
        g_assert_true(vmsnap_scratch_answers(((const Fixture *)fixture)->directory, TIMEOUT_MS));
    return NULL;
}

static void test_many_may_ask_at_once(Fixture *fixture, gconstpointer data) {
    (void)data;
    GThread *threads[N_WAITERS];
    for (size_t i = 0; i < N_WAITERS; i++)
        threads[i] = g_thread_new("ask", ask_often, fixture);
    for (size_t i = 0; i < N_WAITERS; i++)
        (void)g_thread_join(threads[i]);
}

static void add(const char *name, void (*test)(Fixture *, gconstpointer)) {
    g_test_add(name, Fixture, NULL, fixture_set_up, test, fixture_tear_down);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    add("/scratch-probe/what-takes-writes-answers", test_what_takes_writes_answers);
    add("/scratch-probe/an-error-is-an-answer", test_an_error_is_an_answer);
    add("/scratch-probe/what-hangs-keeps-one-thread", test_what_hangs_keeps_one_thread);
    add("/scratch-probe/all-who-wait-for-one-get-its-answer", test_all_who_wait_for_one_get_its_answer);
    add("/scratch-probe/many-may-ask-at-once", test_many_may_ask_at_once);
    return g_test_run();
}
