/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What vmsnap wants to know of a QEMU's drives, read from what its monitor tells. Pure: no connection. */
#pragma once

#include "drive.h"

#include <json-glib/json-glib.h>

/** A drive of a machine, and where it is in QEMU. */
typedef struct {
    VmsnapDrive base;
    char *device;        /* path of the device in QEMU's object tree; NULL if no device has the drive */
    char *node;          /* the block node that the device has */
    uint64_t size_bytes; /* of that node */
} VmsnapQmpDrive;

/** What only the object tree tells of a device. */
typedef struct {
    const char *type; /* "scsi-hd"; or NULL */
    gboolean is_shareable;
    gboolean has_iothread; /* of its own, or of its controller */
} VmsnapQmpDevice;

/**
 * vmsnap_qmp_drives_parse:
 * @blocks: the answer to query-block
 *
 * Returns: (transfer full) (element-type VmsnapQmpDrive): drives with names that are safe and different from each
 * other. All with a medium count as writable, until vmsnap_qmp_drive_judge().
 */
GPtrArray *vmsnap_qmp_drives_parse(JsonNode *blocks);

/**
 * vmsnap_qmp_drives_add_foreign:
 * @objects: the answer to qom-list, of the devices that have ids
 *
 * Adds those drives that another process serves, of which query-block does not know.
 */
void vmsnap_qmp_drives_add_foreign(GPtrArray *drives, JsonNode *objects);

/**
 * vmsnap_qmp_drive_judge:
 * @iothread_is_safe: whether this QEMU can export a node that an iothread serves
 *
 * Decides whether a drive that is attached can be backed up.
 */
void vmsnap_qmp_drive_judge(VmsnapQmpDrive *drive, const VmsnapQmpDevice *device, gboolean iothread_is_safe);

/**
 * vmsnap_qmp_find_child:
 * @graph: the answer to x-debug-query-block-graph
 * @parent: name of a block node
 *
 * Returns: (transfer none): the name of the node that is its child "file", or NULL.
 */
const char *vmsnap_qmp_find_child(JsonNode *graph, const char *parent);

/**
 * vmsnap_qmp_is_root:
 * @graph: the answer to x-debug-query-block-graph
 * @name: of a block node
 *
 * Returns: whether a device has the node, and nothing stands between. (query-block passes over the filters of jobs.)
 */
gboolean vmsnap_qmp_is_root(JsonNode *graph, const char *name);

/**
 * vmsnap_qmp_find_node:
 * @blocks: the answer to query-block
 * @device: path of a device
 *
 * Returns: (transfer none): the block node that the device has now, or NULL if there is no such device, or it has none.
 */
const char *vmsnap_qmp_find_node(JsonNode *blocks, const char *device);
