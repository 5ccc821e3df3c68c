/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Gives back what has been handed out of a disk, so that what the guest overwrites there need not be kept any more. It
 * knows ranges of the disk, and nothing of files or who reads them.
 */
#pragma once

#include "extent_map.h"

/** Of so many units, a part may be noted at a time, and of each in so many ranges: what goes beyond is forgotten. */
#define VMSNAP_RELEASE_MAX_PARTIAL_UNITS 1024
#define VMSNAP_RELEASE_MAX_RANGES 128

/** Requests are no longer than this, so that QEMU does not keep its guest waiting; but a unit at least. */
#define VMSNAP_RELEASE_MAX_REQUEST_BYTES (UINT64_C(32) << 20)

typedef struct VmsnapRelease VmsnapRelease;

/**
 * vmsnap_release_new:
 * @disk: can_release; must outlive the release, as
 * @content: its map, which is complete
 */
VmsnapRelease *vmsnap_release_new(VmsnapDisk *disk, const VmsnapExtentMap *content);

/** Frees a release of a disk whose snapshot has ended; NULL-safe. */
void vmsnap_release_free(VmsnapRelease *release);

/**
 * vmsnap_release_note:
 * @release: or NULL for a disk that is not released
 * @length_bytes: more than 0; the range must lie inside the disk
 *
 * Notes that a range was handed out, and begins to release what has become complete by it. Any thread.
 */
void vmsnap_release_note(VmsnapRelease *release, uint64_t offset, uint64_t length_bytes);

/**
 * vmsnap_release_has:
 * @release: or NULL for a disk that is not released
 * @length_bytes: more than 0; the range must lie inside the disk
 *
 * Returns: whether a byte of a range was released or is about to be: then it must not be read. What has not been noted,
 * and is no zero extent, has not. Any thread.
 */
gboolean vmsnap_release_has(VmsnapRelease *release, uint64_t offset, uint64_t length_bytes);

/** Returns: how many bytes have been released, zero extents among them. Any thread. */
uint64_t vmsnap_release_get_bytes(VmsnapRelease *release);
