/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A unix socket over which JSON objects go in both directions. Every call has a deadline, as g_get_monotonic_time()
 * tells it, since who is at the other end may be busy, stopped, or somebody else.
 */
#pragma once

#include "json_stream.h"

typedef struct VmsnapJsonSocket VmsnapJsonSocket;

/**
 * vmsnap_json_socket_connect:
 * @path: or NULL, which is nobody's
 * @max_message_bytes: a longer object is an error
 * @ret_errno: why not: ENOENT or ECONNREFUSED if there is nobody, EAGAIN if too many wait already
 *
 * Returns: NULL with @ret_errno set if it does not connect.
 */
VmsnapJsonSocket *vmsnap_json_socket_connect(const char *path, size_t max_message_bytes, gint64 deadline_us,
                                             int *ret_errno);

/** Closes it; NULL-safe. */
void vmsnap_json_socket_free(VmsnapJsonSocket *socket);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapJsonSocket, vmsnap_json_socket_free)

/**
 * vmsnap_json_socket_send:
 * @text: is sent as it is
 * @fd: a descriptor to send along, which stays the caller's; or -1
 */
gboolean vmsnap_json_socket_send(VmsnapJsonSocket *socket, const char *text, int fd, gint64 deadline_us,
                                 GError **error);

/** What comes before the next byte 0xFF is dropped, whatever it is. */
void vmsnap_json_socket_skip(VmsnapJsonSocket *socket);

/**
 * vmsnap_json_socket_receive:
 *
 * Waits for the next object. Returns: (transfer full): the object, or NULL with @error set.
 */
JsonNode *vmsnap_json_socket_receive(VmsnapJsonSocket *socket, gint64 deadline_us, GError **error);
