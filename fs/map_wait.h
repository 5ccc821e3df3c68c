/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For formats whose files have a size only when it is known which parts of the disks are data, and for whatever shows
 * what has changed.
 */
#pragma once

#include "scan.h"

/** Returns: whether what blocks is to be given up, for want of anybody who wants it. */
typedef gboolean (*VmsnapInterruptedFunc)(gpointer user_data);

/**
 * vmsnap_map_wait:
 * @scans: (element-type VmsnapScan): of disks of @snapshot, all started
 * @interrupted: called now and then, with @user_data
 *
 * Blocks until their maps are complete. Returns: FALSE with @error set if they are not going to be.
 */
gboolean vmsnap_map_wait(VmsnapSnapshot *snapshot, const GPtrArray *scans, VmsnapInterruptedFunc interrupted,
                         gpointer user_data, GError **error);
