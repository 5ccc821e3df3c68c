/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of disks for exports, whose own names are any bytes. Pure. */
#pragma once

#include <glib.h>

/** What an export without a name is called, unless another one has that name. */
#define VMSNAP_EXPORT_UNNAMED "disk"

/**
 * vmsnap_export_name_disk:
 * @export_name: any bytes
 * @all: (element-type utf8): the names of all exports of the server, or NULL
 *
 * Returns: (transfer full): the name of its disk: the same, but for bytes that files and options cannot have in a name,
 * which are as in a URI: "a%2Fb". Each time the same for the same export, and never the same for two.
 */
char *vmsnap_export_name_disk(const char *export_name, const GPtrArray *all);
