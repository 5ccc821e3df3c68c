/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* manifest.json: what a copy of the mount has to know about itself. */
#pragma once

#include "view.h"

/** Returns: (transfer full): the manifest of a view whose changes are mapped, as JSON text. */
GBytes *vmsnap_manifest_build(const VmsnapView *view);

/** Returns: (transfer full): CLOCK_REALTIME nanoseconds as RFC 3339 in UTC. */
char *vmsnap_instant_format(int64_t instant_ns);
