/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The block nodes that make a snapshot in a QEMU without libvirt, how they get in and out. All of it blocks.
 *
 * Of each disk, whose device had the node IMAGE:
 *
 *     device -> pass -> copy-before-write -> IMAGE         the guest's way
 *                              |  \-> scratch              where old data go
 *     export -> access --------+                           our way: the instant
 *
 * "pass" (driver raw, which passes everything on) is put under each device first, with IMAGE below it, one device after
 * the other: nothing changes by that. Then one blockdev-reopen puts all the copy-before-write nodes below all "pass"
 * nodes: QEMU does that to all of them or none, while no request of any of the disks is under way. That moment is the
 * instant, and the machine is never paused. The way back is the same: the guest's way first.
 *
 * Every name begins with the snapshot's, so that whoever has the record finds all of it.
 */
#pragma once

#include "qmp_client.h"

/** Where a disk is in QEMU. Owned strings. */
typedef struct {
    char *name;   /* of the disk, and of its export */
    char *device; /* path of the device */
    char *node;   /* that the device had before, and is to have again */
    char *image;  /* the absolute path of that node's file; or NULL */
} VmsnapQmpPlace;

typedef struct {
    char *prefix;      /* of all names */
    GPtrArray *places; /* of VmsnapQmpPlace, owned */
} VmsnapQmpGraph;

/** @uuid: of the snapshot */
VmsnapQmpGraph *vmsnap_qmp_graph_new(const char *uuid);

/** NULL-safe. */
void vmsnap_qmp_graph_free(VmsnapQmpGraph *graph);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapQmpGraph, vmsnap_qmp_graph_free)

/** Adds a disk. @image: the file of @node as QEMU calls it, or NULL */
void vmsnap_qmp_graph_add(VmsnapQmpGraph *graph, const char *name, const char *device, const char *node,
                          const char *image);

/** Returns: (transfer full): the places as text for the record. */
char *vmsnap_qmp_graph_to_text(const VmsnapQmpGraph *graph);

/** Returns: (transfer full): the graph that such a text tells of, or NULL with @error set. */
VmsnapQmpGraph *vmsnap_qmp_graph_from_text(const char *uuid, const char *text, GError **error);

/**
 * vmsnap_qmp_graph_insert:
 * @place: index of a disk
 * @scratch_fd: an empty qcow2 image of the disk's size, open for reading and writing; stays the caller's
 *
 * Makes the nodes of a disk, but for the access, and puts "pass" under the device.
 */
gboolean vmsnap_qmp_graph_insert(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, int scratch_fd,
                                 GError **error);

/** All disks of the graph begin to keep old data: the instant. */
gboolean vmsnap_qmp_graph_switch(const VmsnapQmpGraph *graph, VmsnapQmp *qmp, GError **error);

/** Returns: (transfer full): the name by which the scratch of a disk is exported. */
char *vmsnap_qmp_graph_name_scratch(const VmsnapQmpGraph *graph, guint place);

/** Exports the instant of a disk under its name, and its scratch. @writable: so that ranges can be discarded */
gboolean vmsnap_qmp_graph_export(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, gboolean writable,
                                 GError **error);

/**
 * vmsnap_qmp_graph_remove:
 *
 * Takes out whatever is there of the graph, from any state. Returns: FALSE with @error set if something is left.
 */
gboolean vmsnap_qmp_graph_remove(const VmsnapQmpGraph *graph, VmsnapQmp *qmp, GError **error);

/**
 * vmsnap_qmp_graph_sync_images:
 *
 * As vmsnap_images_sync(), of the disks' images: before the switch, and before the graph is removed. Blocks.
 */
void vmsnap_qmp_graph_sync_images(const VmsnapQmpGraph *graph, unsigned timeout_ms);
