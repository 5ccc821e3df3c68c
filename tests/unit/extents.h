/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Extents as a plain list that is searched from its beginning: what clever code is compared with. */
#pragma once

/* Whether races are looked for. What takes long on one thread alone has none, and takes four times as long then. */
#ifdef __SANITIZE_THREAD__
#define FINDS_RACES 1
#else
#define FINDS_RACES 0
#endif

#include "vmsnap/backend.h"

/** Returns: (transfer full) (element-type VmsnapExtent): random runs of at most @max_length_bytes, short ones too. */
GArray *extents_random(uint64_t size_bytes, uint64_t max_length_bytes);

/** Returns: (transfer full): runs of @length_bytes that are data and zero by turns, beginning with data. */
GArray *extents_alternate(uint64_t size_bytes, uint64_t length_bytes);

void extents_append(GArray *extents, VmsnapExtentKind kind, uint64_t length_bytes);

/** @ret_length: how far the run goes on from @offset; the next run may be of the same kind */
VmsnapExtentKind extents_find(const GArray *extents, uint64_t offset, uint64_t *ret_length);

/** Returns: how many bytes of a range are zero extents. */
uint64_t extents_count_zero(const GArray *extents, uint64_t offset, uint64_t length_bytes);

/** Returns: a random offset below @size_bytes, often close to where a run begins. */
uint64_t extents_random_offset(const GArray *extents, uint64_t size_bytes);

/** Returns: a random number below @bound, which is more than 0. */
uint64_t random_below(uint64_t bound);
