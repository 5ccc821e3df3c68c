/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writes to disk what the kernel has of image files, before QEMU is asked for something that writes its caches while
 * the guest's requests wait.
 */
#pragma once

#include <glib.h>

/**
 * vmsnap_images_sync:
 * @paths: as QEMU calls the files; what is no file or block device is passed over
 *
 * Syncs them, several times if somebody goes on to write, on a thread that is left behind when time is up.
 */
void vmsnap_images_sync(const GPtrArray *paths, unsigned timeout_ms);
