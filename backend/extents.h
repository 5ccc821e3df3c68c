/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What can be made of extents. Pure. */
#pragma once

#include "vmsnap/backend.h"

/**
 * vmsnap_extents_overlay:
 * @content: of a range
 * @kept: of the same range, or its beginning; at least one
 *
 * Returns: (transfer full) (element-type VmsnapExtent): @content as far as both go, but data where @kept is data.
 */
GArray *vmsnap_extents_overlay(const VmsnapExtent *content, size_t n_content, const VmsnapExtent *kept, size_t n_kept);
