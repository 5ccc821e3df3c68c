/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a process that is attacked through its sockets should not have. */
#pragma once

/**
 * vmsnap_privileges_drop:
 *
 * Gives up all capabilities of root, now and for ever, for this thread and those that it makes. Warns if that fails. An
 * ordinary user has none.
 */
void vmsnap_privileges_drop(void);
