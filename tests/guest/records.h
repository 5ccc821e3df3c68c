/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * What the guest writes, and what must be true of any copy of it: the one description that writer.c and check.c share.
 *
 * On each of two disks lies a ring of slots; record n is in slot n % slots. The writer completes record n on disk A
 * before it begins it on disk B, and that before record n + 1 on disk A. So at any instant
 *
 *  - each ring is a run of sequence numbers without a gap: the newest and the slots - 1 before it,
 *    or 0 to the newest with untouched (zero) slots behind while the ring has not come round;
 *  - disk B's newest is disk A's, or the one before.
 *
 * A copy of which this does not hold is not one instant. All bytes of a record follow from its disk and sequence
 * number, and its checksum is over all of them: so an old, a torn and a misplaced record are each told from a good one.
 */

#pragma once

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORD_SIZE = 4096, RECORD_WORDS = RECORD_SIZE / 8, REASON_SIZE = 128 };

typedef struct {
    char magic[8];
    uint64_t sequence;
    uint64_t disk; /* 0 = A, 1 = B */
    uint64_t checksum;
    uint64_t payload[RECORD_WORDS - 4];
} Record;

_Static_assert(sizeof(Record) == RECORD_SIZE, "a record is one block");

typedef struct {
    uint64_t start; /* in bytes from the beginning of the disk */
    uint64_t slots;
} Ring;

static inline uint64_t record_checksum(const Record *record) {
    Record copy = *record;
    uint64_t words[RECORD_WORDS], sum = 0;

    copy.checksum = 0;
    memcpy(words, &copy, sizeof(copy));
    for (size_t i = 0; i < RECORD_WORDS; i++) {
        sum = (sum ^ words[i]) * UINT64_C(0x9e3779b97f4a7c15);
        sum ^= sum >> 29;
    }
    return sum;
}

static inline void record_fill(Record *record, uint64_t disk, uint64_t sequence) {
    uint64_t random = sequence * 2 + disk + 1;

    memcpy(record->magic, "VMSNAPr1", 8);
    record->sequence = sequence;
    record->disk = disk;
    for (size_t i = 0; i < sizeof(record->payload) / 8; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        record->payload[i] = random;
    }
    record->checksum = record_checksum(record);
}

static inline bool record_is_good(const Record *record, uint64_t disk, const Ring *ring, uint64_t slot) {
    return memcmp(record->magic, "VMSNAPr1", 8) == 0 && record->checksum == record_checksum(record) &&
           record->disk == disk && record->sequence % ring->slots == slot;
}

static inline bool record_is_untouched(const Record *record) {
    static const Record zero;

    return memcmp(record, &zero, sizeof(zero)) == 0;
}

/* What a slot must hold if @newest is the newest record on the disk: -1 stands for nothing. */
static inline int64_t ring_expected(const Ring *ring, int64_t newest, uint64_t slot) {
    int64_t slots = (int64_t)ring->slots, sequence = newest - newest % slots + (int64_t)slot;

    if (sequence > newest)
        sequence -= slots;
    return sequence < 0 ? -1 : sequence;
}

/* Reads a slot, like ring_read() the whole ring. *ret_sequence is -1 if it is untouched. */
static inline bool slot_read(int fd, uint64_t disk, const Ring *ring, uint64_t slot, Record *buffer,
                             int64_t *ret_sequence, char reason[static REASON_SIZE]) {
    ssize_t got = pread(fd, buffer, RECORD_SIZE, (off_t)(ring->start + slot * RECORD_SIZE));

    if (got != RECORD_SIZE) {
        snprintf(reason, REASON_SIZE, "failed to read slot %" PRIu64 ": %s", slot,
                 got < 0 ? strerror(errno) : "end of file");
        return false;
    }
    if (record_is_untouched(buffer)) {
        *ret_sequence = -1;
        return true;
    }
    if (!record_is_good(buffer, disk, ring, slot)) {
        snprintf(reason, REASON_SIZE, "slot %" PRIu64 " is neither a good record nor untouched", slot);
        return false;
    }
    *ret_sequence = (int64_t)buffer->sequence;
    return true;
}

/*
 * Reads the ring of @disk from @fd through @buffer (which the caller aligns where @fd asks for that).
 *
 * On success, *ret_newest is the newest sequence number, -1 for a ring that was never written. Otherwise returns false
 * with one line in @reason.
 */
static inline bool ring_read(int fd, uint64_t disk, const Ring *ring, Record *buffer, int64_t *ret_newest,
                             char reason[static REASON_SIZE]) {
    int64_t newest = -1, sequence, expected;

    for (uint64_t slot = 0; slot < ring->slots; slot++) {
        if (!slot_read(fd, disk, ring, slot, buffer, &sequence, reason))
            return false;
        if (sequence > newest)
            newest = sequence;
    }

    for (uint64_t slot = 0; slot < ring->slots; slot++) {
        if (!slot_read(fd, disk, ring, slot, buffer, &sequence, reason))
            return false;
        expected = ring_expected(ring, newest, slot);
        if (sequence != expected) {
            snprintf(reason, REASON_SIZE,
                     "slot %" PRIu64 " has record %" PRId64 ", not %" PRId64 " (newest: %" PRId64 ")", slot, sequence,
                     expected, newest);
            return false;
        }
    }

    *ret_newest = newest;
    return true;
}

/* The arguments that both programs begin with. */
static inline bool ring_parse(char *const argument[static 2], Ring *ret_ring) {
    char *end_start, *end_slots;
    Ring ring = {strtoull(argument[0], &end_start, 10), strtoull(argument[1], &end_slots, 10)};

    if (*end_start != '\0' || *end_slots != '\0' || ring.start % RECORD_SIZE != 0 || ring.slots == 0)
        return false;
    *ret_ring = ring;
    return true;
}
