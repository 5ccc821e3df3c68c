/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether scratch takes writes. QEMU waits for those that are under way when a block node is taken out, with all of the
 * machine standing still; so that is not to be begun while they do not come to an end.
 */
#pragma once

#include <glib.h>

/**
 * vmsnap_scratch_answers:
 * @directory: of a snapshot's scratch files
 *
 * Tries to write there, on a thread that is left behind if that hangs. Returns: whether it was done in time, be it with
 * an error.
 */
gboolean vmsnap_scratch_answers(const char *directory, unsigned timeout_ms);
