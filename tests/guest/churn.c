/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Runs in the guest: changes a disk at random places in all the ways that there are, COUNT times or, with 0, until it
 * is killed.
 *
 *     churn SEED COUNT PAUSE-US START LENGTH DISK
 *
 * Half of the changes are writes of noise, the others writes of zeroes, discards, and zeroing by the device. Each is of
 * up to 64 blocks of 4 KiB, now and then up to 512, within LENGTH bytes from START on; the region may end in the middle
 * of a block. The same seed makes the same changes.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BLOCK = 4096, SECTOR = 512, FEW = 64, MANY = 512 };

static bool parse(const char *text, uint64_t *ret) {
    char *end;

    errno = 0;
    *ret = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && errno == 0 && *end == '\0';
}

static uint64_t next_random(uint64_t *random) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

/* Returns what it did, for a message. */
static const char *change(int fd, uint64_t *random, uint64_t offset, uint64_t length, bool *ret_worked) {
    _Alignas(BLOCK) static uint64_t noise[MANY * BLOCK / sizeof(uint64_t)];
    _Alignas(BLOCK) static const uint64_t zeroes[MANY * BLOCK / sizeof(uint64_t)];
    uint64_t range[2] = {offset, length};

    switch (next_random(random) % 8) {
    case 0:
        *ret_worked = pwrite(fd, zeroes, length, (off_t)offset) == (ssize_t)length;
        return "write zeroes to";
    case 1:
    case 2:
        *ret_worked = ioctl(fd, BLKDISCARD, range) == 0;
        return "discard";
    case 3:
        *ret_worked = ioctl(fd, BLKZEROOUT, range) == 0;
        return "zero";
    default:
        for (uint64_t i = 0; i < length / sizeof(*noise); i++)
            noise[i] = next_random(random);
        *ret_worked = pwrite(fd, noise, length, (off_t)offset) == (ssize_t)length;
        return "write to";
    }
}

int main(int argc, char **argv) {
    uint64_t random, count, pause_us, start, size;
    int fd;

    if (argc != 7 || !parse(argv[1], &random) || !parse(argv[2], &count) || !parse(argv[3], &pause_us) ||
        !parse(argv[4], &start) || !parse(argv[5], &size) || start % SECTOR != 0 || size % SECTOR != 0 || size == 0) {
        fprintf(stderr, "usage: churn SEED COUNT PAUSE-US START LENGTH DISK\n");
        return 2;
    }
    random = (random << 1 | 1) * UINT64_C(0x9e3779b97f4a7c15); /* never 0, and no two seeds alike */
    fd = open(argv[6], O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0) {
        fprintf(stderr, "churn: failed to open '%s': %s\n", argv[6], strerror(errno));
        return EXIT_FAILURE;
    }

    for (uint64_t done = 0; count == 0 || done < count; done++) {
        uint64_t offset = next_random(&random) % ((size + BLOCK - 1) / BLOCK) * BLOCK;
        uint64_t length = (next_random(&random) % (next_random(&random) % 32 == 0 ? MANY : FEW) + 1) * BLOCK;
        const char *what;
        bool worked;

        length = length < size - offset ? length : size - offset;
        what = change(fd, &random, start + offset, length, &worked);
        if (!worked) {
            fprintf(stderr, "churn: failed to %s %" PRIu64 " bytes at %" PRIu64 " of '%s': %s\n", what, length,
                    start + offset, argv[6], strerror(errno));
            return EXIT_FAILURE;
        }
        usleep((useconds_t)pause_us);
    }
    return EXIT_SUCCESS;
}
