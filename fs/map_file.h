/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A text about the ranges of a disk (fs/block_map.h): made when somebody wants it first, and then kept for all. */
#pragma once

#include "block_map.h"

typedef struct VmsnapMapFile VmsnapMapFile;

typedef char *(*VmsnapMapTextFunc)(const VmsnapBlockMap *map);

/**
 * vmsnap_map_file_new:
 * @view: must outlive the file
 * @to_text: makes the text, (transfer full)
 */
VmsnapMapFile *vmsnap_map_file_new(const VmsnapDiskView *view, VmsnapMapTextFunc to_text);
void vmsnap_map_file_free(VmsnapMapFile *file);

/** Returns: (transfer full): the text; until the disk is mapped, one as of now. Any thread. */
GBytes *vmsnap_map_file_get(VmsnapMapFile *file);
