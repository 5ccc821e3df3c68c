/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Runs in the guest: writes records (records.h) to two disks in turn until it is killed, and says so.
 *
 *     writer START SLOTS PAUSE-US DISK-A DISK-B
 *
 * It goes on where the rings end, so that it may be stopped and started, also on a restored copy. "alive N" on stdout
 * means that record N is on both disks; a disk that does not give back what was written ends it with "writer: BAD ...".
 */

#include "records.h"

#include <fcntl.h>

/* How many records pass between two reports: about ten reports a second in the test VM. */
enum { REPORT_EVERY = 64 };

static _Noreturn void bad(const char *disk, const char *reason) {
    printf("writer: BAD %s: %s\n", disk, reason);
    exit(EXIT_FAILURE);
}

int main(int argc, char **argv) {
    _Alignas(RECORD_SIZE) static Record record, back;
    int64_t newest[2], next;
    char reason[REASON_SIZE];
    unsigned pause_us;
    char **paths;
    int fds[2];
    Ring ring;

    if (argc != 6 || !ring_parse(argv + 1, &ring)) {
        fprintf(stderr, "usage: writer START SLOTS PAUSE-US DISK-A DISK-B\n");
        return 2;
    }
    pause_us = (unsigned)strtoul(argv[3], NULL, 10);
    paths = argv + 4;
    setvbuf(stdout, NULL, _IOLBF, 0);

    for (unsigned disk = 0; disk < 2; disk++) {
        /* With read-ahead, a ring is read in a third of the time; what the page cache has from before is not of
         * interest. */
        int cached_fd = open(paths[disk], O_RDONLY | O_CLOEXEC);

        /* Past the guest's page cache: a record counts as written when the disk said so. */
        fds[disk] = open(paths[disk], O_RDWR | O_DIRECT | O_CLOEXEC);
        if (fds[disk] < 0 || cached_fd < 0)
            bad(paths[disk], strerror(errno));
        (void)posix_fadvise(cached_fd, 0, 0, POSIX_FADV_DONTNEED);
        if (!ring_read(cached_fd, disk, &ring, &back, &newest[disk], reason))
            bad(paths[disk], reason);
        (void)close(cached_fd);
    }

    /* Disk B may be one record behind. That one is written again to A, where it does not change a byte. */
    next = newest[1] + 1;
    if (newest[0] != newest[1] && newest[0] != next)
        bad(paths[0], "the disks are not of one instant");

    for (;; next++) {
        for (unsigned disk = 0; disk < 2; disk++) {
            off_t offset = (off_t)(ring.start + (uint64_t)next % ring.slots * RECORD_SIZE);

            record_fill(&record, disk, (uint64_t)next);
            if (pwrite(fds[disk], &record, RECORD_SIZE, offset) != RECORD_SIZE)
                bad(paths[disk], strerror(errno));
            if (next % REPORT_EVERY == 0) {
                if (pread(fds[disk], &back, RECORD_SIZE, offset) != RECORD_SIZE)
                    bad(paths[disk], strerror(errno));
                if (memcmp(&record, &back, RECORD_SIZE) != 0)
                    bad(paths[disk], "read back something else than was written");
            }
        }
        if (next % REPORT_EVERY == 0)
            printf("alive %" PRId64 "\n", next);
        usleep(pause_us);
    }
}
