/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The files that -o config= adds to what describes a machine. */
#pragma once

#include "vmsnap/backend.h"

/**
 * vmsnap_extra_files_load:
 * @paths: or NULL for none
 *
 * Returns: (transfer full) (element-type GBytes): the content of each file, or NULL with @error set.
 */
GPtrArray *vmsnap_extra_files_load(const char *const *paths, GError **error);

/** Adds files that were loaded, under the last parts of their paths. */
void vmsnap_extra_files_add(VmsnapSnapshot *snapshot, const char *const *paths, const GPtrArray *contents);
