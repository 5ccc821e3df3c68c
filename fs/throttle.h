/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Keeps the reads of disks below so many bytes a second, for all readers together. */
#pragma once

#include "vmsnap/backend.h"

typedef struct VmsnapThrottle VmsnapThrottle;

/** @bytes_per_s: the limit, or 0 for none */
VmsnapThrottle *vmsnap_throttle_new(uint64_t bytes_per_s);

/** Frees a throttle whose reads have all ended; NULL-safe. */
void vmsnap_throttle_free(VmsnapThrottle *throttle);

/** Changes the limit, also for what waits already. Any thread. */
void vmsnap_throttle_set_rate(VmsnapThrottle *throttle, uint64_t bytes_per_s);

/** Returns: the limit in bytes a second, 0 for none; NULL-safe. Any thread. */
uint64_t vmsnap_throttle_get_rate(const VmsnapThrottle *throttle);

/** Returns: how long a read may be so that none after it has to wait for long; NULL-safe. Any thread. */
size_t vmsnap_throttle_get_max_read_bytes(const VmsnapThrottle *throttle);

/**
 * vmsnap_throttle_read:
 * @throttle: or NULL for no limit
 *
 * As vmsnap_disk_read(), at once or when the limit allows it, in the order of the calls. When the snapshot breaks,
 * nothing waits for the limit any more. Any thread.
 */
void vmsnap_throttle_read(VmsnapThrottle *throttle, VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset,
                          VmsnapDoneFunc done, gpointer user_data);

/** From here on nothing waits any more, and nothing that waited does when this returns. For the end of a snapshot. */
void vmsnap_throttle_stop(VmsnapThrottle *throttle);
