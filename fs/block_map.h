/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk as a list of what its ranges are, for tools: data, zeroes, or the same as at the checkpoint that its changes
 * count from. The list has a bound; where there is more, short ranges of zeroes and of what is the same count as data.
 * So what is taken for the same, or for zero, is; and a file that rests on a list must go by that list alone.
 */
#pragma once

#include "disk_view.h"

typedef enum {
    VMSNAP_RANGE_DATA,
    VMSNAP_RANGE_ZERO,
    VMSNAP_RANGE_SAME,
} VmsnapRangeKind;

/** Returns: the list as of now: what is not known yet is data. Never changes. Any thread. */
VmsnapBlockMap *vmsnap_block_map_new(const VmsnapDiskView *view);

/** NULL-safe. */
void vmsnap_block_map_free(VmsnapBlockMap *map);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapBlockMap, vmsnap_block_map_free)

/**
 * vmsnap_block_map_find:
 * @offset: inside the disk
 * @ret_length: how far the range goes on from there
 */
VmsnapRangeKind vmsnap_block_map_find(const VmsnapBlockMap *map, uint64_t offset, uint64_t *ret_length);

/** Returns: how many bytes are of that kind. */
uint64_t vmsnap_block_map_count(const VmsnapBlockMap *map, VmsnapRangeKind kind);

/** Returns: (transfer full): lines of text, "START LENGTH data|zero|same". */
char *vmsnap_block_map_to_lines(const VmsnapBlockMap *map);

/** Returns: (transfer full): the same as JSON, a list of objects with "start", "length" and "type". */
char *vmsnap_block_map_to_json(const VmsnapBlockMap *map);
