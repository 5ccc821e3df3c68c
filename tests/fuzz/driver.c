/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs a fuzz target without libFuzzer: on the files that are its arguments, or for some time on random bytes, as a
 * test program of GLib. An input that fails is left in a file, to be run again.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define RUN_TIME_US (2 * G_USEC_PER_SEC)
#define MAX_INPUT_BYTES 256

/* What runs now. Written by the one thread that runs inputs, read when some thread fails. */
static uint8_t input[MAX_INPUT_BYTES];
static volatile size_t input_length;
/* The file it is left in, and what is said of that. Immutable when signals are caught. */
static char *failed_name;
static char *failed_message;

/* Calls only what a signal handler may. */
static void keep_input(int signal_number) {
    int fd = open(failed_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd >= 0 && write(fd, input, input_length) >= 0)
        (void)!write(STDERR_FILENO, failed_message, strlen(failed_message));
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number);
}

static void test_random_inputs(void) {
    gint64 end_us = g_get_monotonic_time() + RUN_TIME_US;
    guint n_inputs = 0;
    failed_name = g_strconcat(fuzz_name, ".failed", NULL);
    failed_message = g_strdup_printf("# the input was left in %s\n", failed_name);
    (void)signal(SIGABRT, keep_input);
    (void)signal(SIGSEGV, keep_input);
    for (; n_inputs == 0 || g_get_monotonic_time() < end_us; n_inputs++) {
        size_t length = (size_t)g_test_rand_int_range(0, MAX_INPUT_BYTES + 1);
        for (size_t i = 0; i < length; i++)
            input[i] = (uint8_t)g_test_rand_int_range(0, 256);
        input_length = length;
        (void)LLVMFuzzerTestOneInput(input, length);
    }
    g_test_message("%u inputs", n_inputs);
    (void)signal(SIGABRT, SIG_DFL);
    (void)signal(SIGSEGV, SIG_DFL);
    g_free(failed_name);
    g_free(failed_message);
}

static void test_file(gconstpointer path) {
    g_autofree char *content = NULL;
    g_autoptr(GError) error = NULL;
    gsize length;
    (void)g_file_get_contents(path, &content, &length, &error);
    g_assert_no_error(error);
    (void)LLVMFuzzerTestOneInput((const uint8_t *)content, length);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    for (int i = 1; i < argc; i++) {
        g_autofree char *name = g_strdup_printf("/%s/file-%d", fuzz_name, i);
        g_test_add_data_func(name, argv[i], test_file);
    }
    g_autofree char *random_name = g_strdup_printf("/%s/random-inputs", fuzz_name);
    if (argc <= 1)
        g_test_add_func(random_name, test_random_inputs);
    return g_test_run();
}
