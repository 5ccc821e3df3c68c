/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk as a list of what its ranges are, for tools: data, zeroes, or the same as at the checkpoint that its changes
 * count from. The list has a bound; where there is more, short ranges of zeroes and of what is the same count as data.
 */
#pragma once

#include "disk_view.h"

/** Returns: how many bytes are data, and not the same as before. Exact when the maps are complete. Any thread. */
uint64_t vmsnap_block_map_count_data(const VmsnapDiskView *view);

/** Returns: (transfer full): lines of text, "START LENGTH data|zero|same"; what is not known yet is data. Any thread.
 */
char *vmsnap_block_map_build_lines(const VmsnapDiskView *view);

/** Returns: (transfer full): the same as JSON, a list of objects with "start", "length" and "type". Any thread. */
char *vmsnap_block_map_build_json(const VmsnapDiskView *view);
