/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backend for tests: disks whose extents are given and whose data are a function of the offset, so that a disk of
 * 16 TiB costs nothing. It answers on threads of its own and in any order, as include/vmsnap/backend.h allows; it
 * fails, delays and cuts short what it is told to; and it counts.
 */
#pragma once

#include "vmsnap/backend.h"

typedef struct {
    unsigned fail_call;        /* this read or question, counted from 1, fails with -EIO; 0: none */
    gboolean fail_rest;        /* and so does every later one */
    gboolean fail_at_once;     /* before the call returns */
    uint64_t bad_offset;       /* where a bad range begins: reads that touch it fail with -EIO */
    uint64_t bad_bytes;        /* how long it is; 0: none */
    unsigned max_delay_us;     /* answers take up to this long */
    uint64_t max_answer_bytes; /* an answer about extents covers at most this much; 0: no limit */
    gboolean say_nothing;      /* an answer about extents is one extent without length */
    unsigned fail_release;     /* this release, counted from 1, fails with -EIO; 0: none */
    gboolean read_released;    /* reads of what was released still give the bytes */
} MemoryFaults;

typedef struct {
    unsigned reads;           /* data reads that reached the backend */
    unsigned questions;       /* and questions for extents */
    unsigned outstanding;     /* calls whose callback has not returned */
    uint64_t bytes;           /* that data reads asked for, those that failed too */
    uint64_t zero_bytes_read; /* bytes of zero extents that data reads asked for */
    unsigned releases;
    uint64_t released_bytes;      /* that releases asked for, those that failed too */
    uint64_t max_release_bytes;   /* the longest of them */
    uint64_t released_read_bytes; /* of reads that asked for something that had been released */
} MemoryCounts;

/** @faults: or NULL for none */
VmsnapSnapshot *memory_snapshot_new(const MemoryFaults *faults);

/** @extents: (transfer full) (element-type VmsnapExtent): the disk; its size is their sum */
VmsnapDisk *memory_snapshot_add_disk(VmsnapSnapshot *snapshot, const char *name, GArray *extents);

/**
 * memory_disk_set_changes:
 * @since: the name of a checkpoint
 * @changes: (transfer full) (element-type VmsnapExtent): what has changed since, dirty and clean, of the whole disk
 */
void memory_disk_set_changes(VmsnapDisk *disk, const char *since, GArray *changes);

/** Answers wait from now on, until memory_snapshot_release(). */
void memory_snapshot_hold(VmsnapSnapshot *snapshot);
void memory_snapshot_release(VmsnapSnapshot *snapshot);

/** The same for releases alone: reads are answered meanwhile. */
void memory_snapshot_hold_releases(VmsnapSnapshot *snapshot);
void memory_snapshot_release_releases(VmsnapSnapshot *snapshot);

MemoryCounts memory_snapshot_count(VmsnapSnapshot *snapshot);

/** Waits until no call is outstanding; what a callback began counts too. Nothing may be held. */
void memory_snapshot_wait_idle(VmsnapSnapshot *snapshot);

/** Ends the snapshot, whose views are freed afterwards by the caller, and checks that every callback was called. */
void memory_snapshot_end(VmsnapSnapshot *snapshot);

/** From now on the disk can be released. Ranges must be such as include/vmsnap/backend.h asks for, and each only once.
 */
void memory_disk_allow_release(VmsnapDisk *disk);

/** Returns: whether the release of a whole range was asked for. */
gboolean memory_disk_is_released(VmsnapDisk *disk, uint64_t offset, uint64_t length);

/** What the disk tells of its scratch from now on. Before, it has none. */
void memory_disk_set_scratch(VmsnapDisk *disk, uint64_t used_bytes, uint64_t left_bytes);

/** Returns: (transfer none): what the disk was made of. */
const GArray *memory_disk_get_extents(const VmsnapDisk *disk);

/** Returns: (transfer none): what has changed, or NULL. */
const GArray *memory_disk_get_changes(const VmsnapDisk *disk);

/** The naive expansion of a range: what any reader must see. */
void memory_disk_expand(const VmsnapDisk *disk, uint8_t *buffer, size_t length, uint64_t offset);
