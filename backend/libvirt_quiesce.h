/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Freezes a guest's filesystems for a moment. Whatever becomes of the caller's other calls, the guest is thawed when
 * its time is up: a thread of its own sees to that.
 */
#pragma once

#include <glib.h>
#include <libvirt/libvirt.h>

typedef struct VmsnapQuiesce VmsnapQuiesce;

/**
 * vmsnap_quiesce_freeze:
 * @timeout_ms: for the agent to freeze, and then for the guest to stay frozen
 *
 * Asks the guest agent to freeze, and waits for it. An agent that answers too late is made to thaw at once.
 * Returns: (transfer full): always; whether the guest is frozen tells @error.
 */
VmsnapQuiesce *vmsnap_quiesce_freeze(virDomainPtr domain, unsigned timeout_ms, GError **error);

/**
 * vmsnap_quiesce_thaw:
 * @timeout_ms: for the agent to thaw
 *
 * Returns: FALSE with @error set if the guest was not frozen until now, or is not thawed yet.
 */
gboolean vmsnap_quiesce_thaw(VmsnapQuiesce *quiesce, unsigned timeout_ms, GError **error);

/** Returns: whether the guest is surely not frozen by us any more. */
gboolean vmsnap_quiesce_is_over(VmsnapQuiesce *quiesce);

/**
 * vmsnap_quiesce_free:
 *
 * Waits for a moment, but not for an agent that still owes an answer. NULL-safe. Returns: FALSE if the guest may be
 * frozen; for as long as the process lives, it is tried to thaw it.
 */
gboolean vmsnap_quiesce_free(VmsnapQuiesce *quiesce);
