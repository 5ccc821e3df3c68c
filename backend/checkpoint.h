/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints as libvirt's XML tells of them. Pure: no connection.
 *
 * What vmsnap has to know of a checkpoint of its own later on stands in its description, so that it goes where the
 * checkpoint goes: which snapshot it was made with, whether a backup is known to rest on it, and what the disks were
 * like. A checkpoint without such a description is somebody else's.
 */
#pragma once

#include "domain.h"

/** A disk that a checkpoint tracks. */
typedef struct {
    char *name;
    char *source;        /* where its image was; NULL if that is not known */
    uint64_t size_bytes; /* at the checkpoint; 0 if that is not known */
    int64_t modified_ns; /* when it had been changed last by then; 0 if that is not known */
} VmsnapCheckpointDisk;

typedef struct {
    char *name;
    char *snapshot;     /* uuid of the snapshot that it was made with; NULL if it is not vmsnap's */
    gboolean committed; /* a backup rests on it: as it is assumed of those that are not vmsnap's */
    GPtrArray *disks;   /* of VmsnapCheckpointDisk, owned */
} VmsnapCheckpoint;

/** Returns: (transfer full): what the XML of a checkpoint says, or NULL with @error set. */
VmsnapCheckpoint *vmsnap_checkpoint_parse(const char *xml, GError **error);

/** NULL-safe. */
void vmsnap_checkpoint_free(VmsnapCheckpoint *checkpoint);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapCheckpoint, vmsnap_checkpoint_free)

/** Returns: (transfer none): the disk of that name, or NULL if it is not tracked. */
const VmsnapCheckpointDisk *vmsnap_checkpoint_find_disk(const VmsnapCheckpoint *checkpoint, const char *name);

/** Returns: (transfer full): a name for a checkpoint of now. */
char *vmsnap_checkpoint_make_name(void);

/** Returns: (transfer full): the description of a checkpoint of vmsnap's; once @committed, it tells of the disks. */
char *vmsnap_checkpoint_describe(const VmsnapSnapshot *snapshot, gboolean committed);

/**
 * vmsnap_checkpoint_build_xml:
 * @selected: (element-type VmsnapDomainDisk): those that can keep track of changes are tracked
 *
 * Returns: (transfer full): the XML of a checkpoint to create.
 */
char *vmsnap_checkpoint_build_xml(const char *name, const char *description, const VmsnapDomain *domain,
                                  const GPtrArray *selected);

/**
 * vmsnap_checkpoint_untrack:
 * @message: libvirt's, which has the name of a disk in quotes, after all others
 *
 * Returns: (transfer full): the XML of a checkpoint without that disk, or NULL if it does not track it.
 */
char *vmsnap_checkpoint_untrack(const char *xml, const char *message);

/** Returns: (transfer full): the XML of a checkpoint with another description, or NULL with @error set. */
char *vmsnap_checkpoint_replace_description(const char *xml, const char *description, GError **error);
