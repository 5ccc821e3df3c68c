/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading and seeking in a layout. Neither ever blocks: what must be waited for ends in a callback. */
#pragma once

#include "layout.h"

/**
 * VmsnapReadFunc:
 * @error: 0, or -errno; then there are no data
 * @data: valid during the call only
 */
typedef void (*VmsnapReadFunc)(int error, const void *data, size_t length, gpointer user_data);

/**
 * vmsnap_layout_read:
 * @length: may reach beyond the end of the file, and may be 0: as read(2), it then gives less
 *
 * Reads a range. @done is called once, before or after this returns, on this thread or one of a backend.
 */
void vmsnap_layout_read(const VmsnapLayout *layout, uint64_t offset, size_t length, VmsnapReadFunc done,
                        gpointer user_data);

/** Called with 0 and the offset that was found, or with -errno. */
typedef void (*VmsnapSeekFunc)(int error, uint64_t offset, gpointer user_data);

/**
 * vmsnap_layout_seek:
 * @whence: SEEK_DATA or SEEK_HOLE
 *
 * Finds data or a hole as lseek(2) does, the end of the file being a hole: -ENXIO at or after the end, and where no
 * data follows. @done is called as for vmsnap_layout_read().
 */
void vmsnap_layout_seek(const VmsnapLayout *layout, uint64_t offset, int whence, VmsnapSeekFunc done,
                        gpointer user_data);
