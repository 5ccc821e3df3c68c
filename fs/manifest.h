/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* manifest.json: what a copy of the mount has to know about itself. */
#pragma once

#include "format.h"

/** Returns: (transfer full): the manifest of @snapshot, whose disks are shown in @format, as JSON text. */
GBytes *vmsnap_manifest_build(const VmsnapSnapshot *snapshot, const VmsnapFormat *format);

/** Returns: (transfer full): CLOCK_REALTIME nanoseconds as RFC 3339 in UTC. */
char *vmsnap_instant_format(int64_t instant_ns);
