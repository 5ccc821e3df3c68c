/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A real QEMU whose guest never runs: it is there in a quarter of a second, and its disks can be written to by hand. */
#pragma once

#include "backend/qmp_client.h"

#define QEMU_N_DISKS 2
#define QEMU_TIMEOUT_MS 20000

/** Of disk N, the node is nN, over the image diskN.raw of QEMU_DISK_BYTES zeroes; qemu_devices[] has its device. */
#define QEMU_DISK_BYTES (UINT64_C(8) << 20)
extern const char *const qemu_devices[QEMU_N_DISKS];

typedef struct {
    char *directory;
    char *socket; /* of a monitor for the test */
    char *output; /* the file of what it prints */
    GPid pid;
    VmsnapQmp *qmp; /* another one, which is connected */
} Qemu;

/** Returns: (transfer full): the path of a file in QEMU's directory. */
char *qemu_path(const Qemu *qemu, const char *name);

void qemu_start(Qemu *qemu);

void qemu_clear(Qemu *qemu);

/** Runs a command without arguments. Returns: (transfer full): the answer as text. */
char *qemu_ask(const Qemu *qemu, const char *command);

/** Returns: (transfer full): all that can be seen of block nodes and exports. */
char *qemu_describe(const Qemu *qemu);

/**
 * qemu_io:
 * @where: a node; or the path of a device, for what its guest would do
 * @command: of qemu-io
 *
 * Returns: whether it was done without an error, nor with other data than expected.
 */
gboolean qemu_io(const Qemu *qemu, const char *where, const char *command);

/** Returns: a descriptor of a new, empty qcow2 image of a disk's size, in QEMU's directory. */
int qemu_make_image(const Qemu *qemu, const char *name);

/** Returns: a descriptor of a socket that listens at @path, whatever was there. */
int qemu_listen_at(const char *path);
