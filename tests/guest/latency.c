/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Runs in the guest: how long writes to a disk take while they are wanted at a steady pace.
 *
 *     latency START SIZE PACE SECONDS DISK [each]
 *
 * PACE times a second, a block of 4 KiB in a random place of SIZE bytes from START on is due: the same places in each
 * run. One after the other they are written past the caches, to be there when write() returns, and what is told of each
 * is the time from when it was due: a write that has to wait for a slow one before it is late, too. Those that were
 * still waiting when SECONDS were over are not written, and count with the time that they have waited. Prints one line,
 * with times in microseconds:
 *
 *     due N written N elapsed N p50 N p99 N max N
 *
 * With "each", a line for each write that was done comes before it, in their order: when it was due after the
 * beginning, and how long it took. At a pace of more than what can be done, they are writes without a pause.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, MOST = 10000000 };

typedef struct {
    uint64_t start, size, pace, seconds;
} Work;

static bool parse(const char *text, uint64_t least, uint64_t most, uint64_t *ret) {
    char *end;

    /* strtoull() would take a sign and spaces, too. */
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0' && *ret >= least && *ret <= most;
}

static bool parse_work(char *const argument[static 4], Work *ret_work) {
    return parse(argument[0], 0, INT64_MAX / 2, &ret_work->start) && ret_work->start % BLOCK == 0 &&
           parse(argument[1], BLOCK, INT64_MAX / 2, &ret_work->size) && ret_work->size % BLOCK == 0 &&
           parse(argument[2], 1, MOST, &ret_work->pace) &&
           parse(argument[3], 1, MOST / ret_work->pace, &ret_work->seconds);
}

/* In microseconds. */
static uint64_t now(void) {
    struct timespec time;

    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

static void sleep_until(uint64_t at) {
    struct timespec time = {(time_t)(at / 1000000), (long)(at % 1000000 * 1000)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

static uint64_t next_random(uint64_t *random) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random;
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The least of @count sorted times that so many of a hundred do not exceed. */
static uint64_t percentile(const uint64_t *times, uint64_t count, uint64_t percent) {
    return times[(count * percent + 99) / 100 - 1];
}

static void print_each(const uint64_t *times, uint64_t count, uint64_t pace) {
    for (uint64_t i = 0; i < count; i++)
        printf("%" PRIu64 " %" PRIu64 "\n", i * 1000000 / pace, times[i]);
}

int main(int argc, char **argv) {
    _Alignas(BLOCK) static uint64_t block[BLOCK / sizeof(uint64_t)];
    uint64_t random = UINT64_C(0x9e3779b97f4a7c15), begin, end, due, written = 0, *times;
    Work work;
    int fd;

    if (argc < 6 || argc > 7 || !parse_work(argv + 1, &work) || (argc == 7 && strcmp(argv[6], "each") != 0)) {
        fprintf(stderr, "usage: latency START SIZE PACE SECONDS DISK [each]\n");
        return 2;
    }
    due = work.pace * work.seconds;
    times = malloc(due * sizeof(*times));
    fd = open(argv[5], O_WRONLY | O_DIRECT | O_DSYNC | O_CLOEXEC);
    if (!times || fd < 0) {
        fprintf(stderr, "latency: failed to open '%s': %s\n", argv[5], strerror(errno));
        return EXIT_FAILURE;
    }
    for (size_t i = 0; i < BLOCK / sizeof(*block); i++)
        block[i] = next_random(&random);

    begin = now();
    end = begin + work.seconds * 1000000;
    for (; written < due; written++) {
        uint64_t at = begin + written * 1000000 / work.pace;
        off_t offset = (off_t)(work.start + next_random(&random) % (work.size / BLOCK) * BLOCK);

        sleep_until(at);
        if (now() >= end)
            break;
        if (pwrite(fd, block, BLOCK, offset) != BLOCK) {
            fprintf(stderr, "latency: failed to write to '%s': %s\n", argv[5], strerror(errno));
            return EXIT_FAILURE;
        }
        times[written] = now() - at;
    }
    end = now();
    for (uint64_t i = written; i < due; i++)
        times[i] = end - (begin + i * 1000000 / work.pace);

    if (argc == 7)
        print_each(times, written, work.pace);
    qsort(times, due, sizeof(*times), compare);
    printf("due %" PRIu64 " written %" PRIu64 " elapsed %" PRIu64 " p50 %" PRIu64 " p99 %" PRIu64 " max %" PRIu64 "\n",
           due, written, end - begin, percentile(times, due, 50), percentile(times, due, 99), times[due - 1]);
    return EXIT_SUCCESS;
}
