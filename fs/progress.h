/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much of a disk has been handed out to readers, each byte counted once, in bounded memory. */
#pragma once

#include <glib.h>
#include <stdint.h>

typedef struct VmsnapProgress VmsnapProgress;

VmsnapProgress *vmsnap_progress_new(uint64_t size_bytes);

/** NULL-safe. */
void vmsnap_progress_free(VmsnapProgress *progress);

/** Notes that a range, which lies inside the disk, was handed out. Any thread, without a lock. */
void vmsnap_progress_add(VmsnapProgress *progress, uint64_t offset, uint64_t length_bytes);

/** Returns: distinct bytes handed out, in whole blocks of 4 KiB or, on a disk over 64 GiB, more. Any thread. */
uint64_t vmsnap_progress_get_bytes(const VmsnapProgress *progress);
