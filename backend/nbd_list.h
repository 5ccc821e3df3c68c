/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an NBD server says that it exports. */
#pragma once

#include "nbd_server.h"

/**
 * vmsnap_nbd_list:
 * @timeout_ms: for all of it
 *
 * Asks a server for the names of its exports, over a connection of its own. Blocks.
 * Returns: (transfer full) (element-type utf8): the names, which are bytes, each of them once; none if the server does
 * not tell. Or NULL with @error set if there is no server, or too much of an answer.
 */
GPtrArray *vmsnap_nbd_list(const VmsnapNbdServer *server, unsigned timeout_ms, GError **error);
