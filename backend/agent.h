/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guest agent, at the other end of a socket that QEMU has made for it. It may be slow, gone, or hostile: it is the
 * guest that runs it. All of it blocks, within a timeout.
 */
#pragma once

#include <glib.h>

typedef struct VmsnapAgent VmsnapAgent;

/**
 * vmsnap_agent_connect:
 * @path: of the socket
 * @timeout_ms: for it to answer, now and to each command
 * @ret_errno: as for vmsnap_qmp_connect()
 *
 * Returns: an agent that has answered, or NULL with @error set.
 */
VmsnapAgent *vmsnap_agent_connect(const char *path, unsigned timeout_ms, int *ret_errno, GError **error);

/** NULL-safe. */
void vmsnap_agent_free(VmsnapAgent *agent);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapAgent, vmsnap_agent_free)

/**
 * vmsnap_agent_freeze:
 * @ret_unknown: set if the guest may be frozen, or will be, although it failed
 */
gboolean vmsnap_agent_freeze(VmsnapAgent *agent, gboolean *ret_unknown, GError **error);

/** Returns: FALSE with @error set if the guest's filesystems may still be frozen. */
gboolean vmsnap_agent_thaw(VmsnapAgent *agent, GError **error);
