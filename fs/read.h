/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading and seeking in a layout. Neither ever blocks: what must be waited for ends in a callback. */
#pragma once

#include "layout.h"

/**
 * vmsnap_layout_peek:
 * @length: more than 0; the range must lie inside the file
 *
 * Returns: (transfer none): the bytes of a range that needs neither a disk nor a copy, or NULL. They stay as they are
 * for as long as the layout.
 */
const uint8_t *vmsnap_layout_peek(const VmsnapLayout *layout, uint64_t offset, size_t length);

/**
 * vmsnap_layout_fill:
 * @length: more than 0; the range must lie inside the file
 * @buffer: kept until @done is called
 *
 * Reads a range. @done is called once, before or after this returns, on this thread or one of a backend; after an error
 * the buffer may hold anything. What was released fails with -EIO, as in all of fs/, and no backend is asked.
 */
void vmsnap_layout_fill(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer,
                        VmsnapDoneFunc done, gpointer user_data);

/** Called with 0 and the offset that was found, or with -errno. */
typedef void (*VmsnapSeekFunc)(int error, uint64_t offset, gpointer user_data);

/**
 * vmsnap_layout_seek:
 * @whence: SEEK_DATA or SEEK_HOLE
 *
 * Finds data or a hole as lseek(2) does, the end of the file being a hole: -ENXIO at or after the end, and where no
 * data follows. @done is called as for vmsnap_layout_fill().
 */
void vmsnap_layout_seek(const VmsnapLayout *layout, uint64_t offset, int whence, VmsnapSeekFunc done,
                        gpointer user_data);
