/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is known about the program that opens a file. */
#pragma once

#include <glib.h>
#include <sys/types.h>

/**
 * vmsnap_opener_reads_large_blocks:
 * @pid: of a process or a thread; 0 if it cannot be seen from here
 *
 * Returns: whether it is a program that is known to read files in blocks so large that the page cache costs more than
 * it saves. Any thread; at most one at a time may have to wait, for the process's own memory.
 */
gboolean vmsnap_opener_reads_large_blocks(pid_t pid);
