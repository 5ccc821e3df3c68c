/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The life of one mount: begin, mount, serve, end. */
#pragma once

#include "options.h"

/**
 * vmsnap_daemon_run:
 * @mount_point: canonical
 *
 * Mounts and serves in this process until the end. Returns: an exit code.
 */
int vmsnap_daemon_run(const VmsnapOptions *options, const char *mount_point);

/**
 * vmsnap_daemon_start:
 *
 * As vmsnap_daemon_run(), but in a process of its own: returns as soon as the files can be read, or nothing was
 * mounted. Returns: an exit code.
 */
int vmsnap_daemon_start(const VmsnapOptions *options, const char *mount_point);
