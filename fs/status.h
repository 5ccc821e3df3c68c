/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* .vmsnap/status.json and .vmsnap/status: how the snapshot is doing at this moment. */
#pragma once

#include "view.h"

/** Returns: (transfer full): the status as JSON, with the names that QEMU's query-backup uses. Any thread. */
char *vmsnap_status_build_json(const VmsnapView *view);

/** Returns: (transfer full): the status for people. Any thread. */
char *vmsnap_status_build_text(const VmsnapView *view);
