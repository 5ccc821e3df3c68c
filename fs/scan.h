/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fills in the extent map of one disk, of its content or of its changes: ahead of everybody in the background, and at
 * once where somebody waits.
 */
#pragma once

#include "extent_map.h"

typedef struct VmsnapScan VmsnapScan;

/** Called when what was waited for is there, before or after the call that asked returns. Must not block. */
typedef void (*VmsnapScanFunc)(gpointer user_data);

/**
 * vmsnap_scan_new:
 * @disk: must outlive the scan
 * @max_memory_bytes: as for vmsnap_extent_map_new()
 */
VmsnapScan *vmsnap_scan_new(VmsnapDisk *disk, VmsnapExtentsQuestion question, size_t max_memory_bytes);

/** Frees a scan of a disk whose snapshot has ended, so that no answer can come any more; NULL-safe. */
void vmsnap_scan_free(VmsnapScan *scan);

/**
 * vmsnap_scan_start:
 * @changes: complete, or NULL. Windows in which nothing has changed are not asked for and taken for data: for who
 *   looks only at what has changed
 *
 * Begins to fill in the map from its beginning to its end. Any thread, once.
 */
void vmsnap_scan_start(VmsnapScan *scan, const VmsnapExtentMap *changes);

/** Returns: what the scan asks, of which disk. */
VmsnapExtentsQuestion vmsnap_scan_get_question(const VmsnapScan *scan);
const VmsnapDisk *vmsnap_scan_get_disk(const VmsnapScan *scan);

/** Returns: (transfer none): the map; windows appear in it as answers come. */
const VmsnapExtentMap *vmsnap_scan_get_map(const VmsnapScan *scan);

/**
 * vmsnap_scan_resolve:
 *
 * Calls @func when the window of @offset is known. A window whose extents cannot be had becomes data (or dirty), so
 * this always succeeds, and the read that follows meets the fault. Any thread.
 */
void vmsnap_scan_resolve(VmsnapScan *scan, uint64_t offset, VmsnapScanFunc func, gpointer user_data);

/**
 * vmsnap_scan_wait:
 * @deadline_us: g_get_monotonic_time() from which an incomplete map will do
 *
 * Calls @func when the whole map is known, or with the first answer after @deadline_us. Any thread.
 */
void vmsnap_scan_wait(VmsnapScan *scan, int64_t deadline_us, VmsnapScanFunc func, gpointer user_data);

/** Returns: whether nothing is left to be asked. Any thread. */
gboolean vmsnap_scan_is_complete(const VmsnapScan *scan);

/** Returns: whether the extents of some window could not be had, so that it became data. Any thread. */
gboolean vmsnap_scan_has_failed(const VmsnapScan *scan);
