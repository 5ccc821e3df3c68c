/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Programs that run, and what is thought of how they read. */
#include "fs/opener.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static gboolean begins_with(const char *path, const char *expected) {
    g_autofree char *content = NULL;
    g_assert_true(g_file_get_contents(path, &content, NULL, NULL));
    return g_str_equal(g_strchomp(content), expected);
}

/*
 * Starts a program, which is to wait for its input. Returns: its process id, once it has its name and, which comes a
 * moment later, its command line.
 */
static pid_t start(const char *const *arguments, int *ret_input) {
    GPid pid;
    g_autoptr(GError) error = NULL;
    (void)g_spawn_async_with_pipes(NULL, (char **)arguments, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD,
                                   NULL, NULL, &pid, ret_input, NULL, NULL, &error);
    g_assert_no_error(error);
    g_autofree char *expected = g_path_get_basename(arguments[0]);
    g_autofree char *name_path = g_strdup_printf("/proc/%d/comm", pid);
    g_autofree char *line_path = g_strdup_printf("/proc/%d/cmdline", pid);
    while (!begins_with(name_path, expected) || !begins_with(line_path, arguments[0]))
        g_usleep(1000);
    return pid;
}

static gboolean reads_large_blocks(const char *const *arguments) {
    int input;
    pid_t pid = start(arguments, &input);
    gboolean large = vmsnap_opener_reads_large_blocks(pid);
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    (void)close(input);
    return large;
}

static void test_programs_are_known_by_name(void) {
    g_assert_true(reads_large_blocks((const char *const[]){"cat", NULL}));
    g_assert_false(reads_large_blocks((const char *const[]){"tr", "a", "b", NULL}));
}

static void test_dd_is_known_by_its_blocks(void) {
    static const struct {
        const char *argument;
        gboolean large;
    } cases[] = {
        {"bs=1M", TRUE},    {"bs=128k", TRUE},   {"ibs=8M", TRUE},       {"bs=262144", TRUE},
        {"bs=127k", FALSE}, {"bs=4k", FALSE},    {"ibs=10k", FALSE},     {"obs=1M", FALSE},
        {"cbs=1M", FALSE},  {"count=9M", FALSE}, {"status=none", FALSE},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        g_assert_true(reads_large_blocks((const char *const[]){"dd", cases[i].argument, NULL}) == cases[i].large);
    g_assert_false(reads_large_blocks((const char *const[]){"dd", NULL}));
}

/* A shell by the name of dd, which does not mind its arguments. */
static void test_a_strange_command_line_does_no_harm(void) {
    static const char *const cases[] = {"bs=",     "bs",     "bs=lots", "=1M", "bs=99999999999999999999",
                                        "status=", "\xff\n", ""};
    g_autofree char *directory = g_dir_make_tmp("vmsnap-opener-XXXXXX", NULL);
    g_autofree char *dd = g_build_filename(directory, "dd", NULL);
    g_assert_cmpint(symlink("/bin/sh", dd), ==, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        g_assert_false(reads_large_blocks((const char *const[]){dd, "-c", "read line; :", "dd", cases[i], NULL}));
    g_assert_true(reads_large_blocks((const char *const[]){dd, "-c", "read line; :", "dd", "bs=1M", NULL}));
    (void)g_remove(dd);
    (void)g_rmdir(directory);
}

static void test_who_is_not_there_reads_small_blocks(void) {
    int input;
    pid_t pid = start((const char *const[]){"cat", NULL}, &input);
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    (void)close(input);
    g_assert_false(vmsnap_opener_reads_large_blocks(pid));
    g_assert_false(vmsnap_opener_reads_large_blocks(0));
    g_assert_false(vmsnap_opener_reads_large_blocks(-1));
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/opener/programs-are-known-by-name", test_programs_are_known_by_name);
    g_test_add_func("/opener/dd-is-known-by-its-blocks", test_dd_is_known_by_its_blocks);
    g_test_add_func("/opener/a-strange-command-line-does-no-harm", test_a_strange_command_line_does_no_harm);
    g_test_add_func("/opener/who-is-not-there-reads-small-blocks", test_who_is_not_there_reads_small_blocks);
    return g_test_run();
}
