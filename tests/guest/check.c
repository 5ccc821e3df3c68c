/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Proves that two files are one instant of the disks that writer.c writes to (what that means is in records.h).
 *
 *     check START SLOTS FILE-A FILE-B
 *
 * The files may be disks, images, files in a mount or restored copies. Prints the newest record that is on both and
 * exits with 0, or gives the reason in one line on stderr and exits with 1. A pair without any record is no proof of
 * anything.
 */

#include "records.h"

#include <fcntl.h>

int main(int argc, char **argv) {
    char reason[REASON_SIZE];
    int64_t newest[2];
    Record buffer;
    Ring ring;

    if (argc != 5 || !ring_parse(argv + 1, &ring)) {
        fprintf(stderr, "usage: check START SLOTS FILE-A FILE-B\n");
        return 2;
    }

    for (unsigned disk = 0; disk < 2; disk++) {
        const char *path = argv[3 + disk];
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd < 0) {
            fprintf(stderr, "check: failed to open '%s': %s\n", path, strerror(errno));
            return EXIT_FAILURE;
        }
        if (!ring_read(fd, disk, &ring, &buffer, &newest[disk], reason)) {
            fprintf(stderr, "check: %s: %s\n", path, reason);
            return EXIT_FAILURE;
        }
        (void)close(fd);
    }

    if (newest[0] != newest[1] && newest[0] != newest[1] + 1) {
        fprintf(stderr, "check: not one instant: newest record is %" PRId64 " in '%s' and %" PRId64 " in '%s'\n",
                newest[0], argv[3], newest[1], argv[4]);
        return EXIT_FAILURE;
    }
    if (newest[1] < 0) {
        fprintf(stderr, "check: no record in '%s'\n", argv[4]);
        return EXIT_FAILURE;
    }

    printf("%" PRId64 "\n", newest[1]);
    return EXIT_SUCCESS;
}
