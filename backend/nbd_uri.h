/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * NBD URIs as text: nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, and with nbds what is encrypted. Pure:
 * whether a URI is right is for libnbd to say, so what is not understood here is left as it is.
 */
#pragma once

#include <glib.h>

/** Returns: whether @text begins like an NBD URI. */
gboolean vmsnap_nbd_uri_matches(const char *text);

/** Returns: (transfer full): the same with absolute paths of the socket and of keys, whatever directory one is in. */
char *vmsnap_nbd_uri_resolve(const char *uri);

/** Returns: (transfer full): the path of the unix socket, or NULL if it is none that is connected to. */
char *vmsnap_nbd_uri_get_socket(const char *uri);

/** Returns: (transfer full): the name of the export, which is bytes; or NULL if the URI names none. */
char *vmsnap_nbd_uri_get_export(const char *uri);

/**
 * vmsnap_nbd_uri_build:
 * @export_name: to name instead of what @uri names; may be empty
 * @socket: to connect to instead, or NULL for the same
 *
 * Returns: (transfer full): @uri, changed.
 */
char *vmsnap_nbd_uri_build(const char *uri, const char *export_name, const char *socket);
