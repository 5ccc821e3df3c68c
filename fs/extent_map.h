/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The extents of one disk, kept compactly and within a bound, filled in window by window in any order. */
#pragma once

#include "vmsnap/backend.h"

/* Positions inside a window fit 32 bits, and a window is one question to a backend. */
#define VMSNAP_EXTENT_MAP_WINDOW_BYTES (UINT64_C(1) << 31)

typedef struct VmsnapExtentMap VmsnapExtentMap;

/**
 * vmsnap_extent_map_new:
 * @max_memory_bytes: bound for the extents of the whole disk; every window may use an equal part of it, and one that
 *   would need more takes its shortest zero extents for data
 */
VmsnapExtentMap *vmsnap_extent_map_new(uint64_t size_bytes, size_t max_memory_bytes);
void vmsnap_extent_map_free(VmsnapExtentMap *map);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapExtentMap, vmsnap_extent_map_free)

uint64_t vmsnap_extent_map_get_size(const VmsnapExtentMap *map);

uint64_t vmsnap_extent_map_get_window_count(const VmsnapExtentMap *map);

/** Returns: length of window @index; only the last one may be shorter than VMSNAP_EXTENT_MAP_WINDOW_BYTES. */
uint64_t vmsnap_extent_map_get_window_length(const VmsnapExtentMap *map, uint64_t index);

gboolean vmsnap_extent_map_has_window(const VmsnapExtentMap *map, uint64_t index);

/** A window that is being filled in from its beginning on. Belongs to one thread at a time. */
typedef struct VmsnapExtentWindow VmsnapExtentWindow;

VmsnapExtentWindow *vmsnap_extent_window_new(const VmsnapExtentMap *map, uint64_t index);
void vmsnap_extent_window_free(VmsnapExtentWindow *window);

/**
 * vmsnap_extent_window_append:
 * @length_bytes: what goes beyond the end of the window is ignored
 */
void vmsnap_extent_window_append(VmsnapExtentWindow *window, VmsnapExtentKind kind, uint64_t length_bytes);

/** Returns: how many bytes of the window are still to be filled in. */
uint64_t vmsnap_extent_window_get_missing(const VmsnapExtentWindow *window);

/**
 * vmsnap_extent_map_publish:
 * @window: (transfer full): complete, and not known to @map yet
 *
 * Makes a window known. Readers need no lock.
 */
void vmsnap_extent_map_publish(VmsnapExtentMap *map, VmsnapExtentWindow *window);

/**
 * vmsnap_extent_map_lookup:
 * @ret_kind: of what kind the byte at @offset is
 * @ret_length: how far the run goes on from @offset; the next run may be of the same kind
 *
 * Returns: FALSE where the window of @offset is not known yet; @ret_length then reaches its end. Any thread.
 */
gboolean vmsnap_extent_map_lookup(const VmsnapExtentMap *map, uint64_t offset, VmsnapExtentKind *ret_kind,
                                  uint64_t *ret_length);

/** Returns: bytes in windows that are known. Any thread. */
uint64_t vmsnap_extent_map_get_known_bytes(const VmsnapExtentMap *map);

/** Returns: bytes that are known to be zero. Any thread. */
uint64_t vmsnap_extent_map_get_zero_bytes(const VmsnapExtentMap *map);

/** Returns: memory in use, which stays within the bound and a word a window. Any thread. */
size_t vmsnap_extent_map_get_memory_bytes(const VmsnapExtentMap *map);
