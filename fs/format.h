/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How the disks of a snapshot are laid out as files. A format is one file that implements VmsnapFormat, and a line in
 * format.c.
 */
#pragma once

#include "layout.h"

typedef struct VmsnapFormat VmsnapFormat;

typedef struct {
    const VmsnapFormat *format;
    uint32_t cluster_bytes; /* qcow2: a power of two */
    const char *backing;    /* qcow2: what names the backing file of a disk with changes, or NULL for the usual name */
    gboolean only_changed;  /* raw: what has not changed is a hole */
} VmsnapFormatOptions;

/**
 * VmsnapFormat: what a format implements. Callers use the functions below.
 * @name: what the user calls it, and how the names of its files end
 * @one_file: all disks are in one file, named by the machine, and not each in its own
 * @needs_maps: the layout can only be made when the maps of its disks are complete
 * @shows_changes: it can show what has changed since a checkpoint; otherwise no disk may have VmsnapDisk.since
 * @tag: gives what stands between the disk and the format in the name of a file, or NULL for nothing; may be NULL
 * @check: see vmsnap_format_check(); may be NULL
 * @layout_new: makes the layout of the file that shows @disks: one, or all of a snapshot if they are in one file. All
 *   arguments but @options outlive it
 */
struct VmsnapFormat {
    const char *name;
    gboolean one_file;
    gboolean needs_maps;
    gboolean shows_changes;
    const char *(*tag)(const VmsnapFormatOptions *options, const VmsnapDisk *disk);
    gboolean (*check)(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot, GError **error);
    VmsnapLayout *(*layout_new)(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot,
                                VmsnapDiskView *const *disks, guint n_disks);
};

extern const VmsnapFormat vmsnap_format_raw;
extern const VmsnapFormat vmsnap_format_qcow2;
extern const VmsnapFormat vmsnap_format_vma;

/** Returns: the format of that name, or NULL. */
const VmsnapFormat *vmsnap_format_find(const char *name);

/**
 * vmsnap_format_check:
 * @snapshot: about to begin: it has its machine, its disks and what describes them, but their sizes may still be 0: so
 *   it is to be checked once more when it has begun
 *
 * Returns: FALSE with @error set if the format cannot hold that.
 */
gboolean vmsnap_format_check(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot, GError **error);

/** Returns: (transfer full): the name of the file that @disk is in. */
char *vmsnap_format_name_file(const VmsnapFormatOptions *options, const VmsnapDisk *disk);

/**
 * vmsnap_format_name_backing:
 *
 * Returns: (transfer full): the name of the file that a file of @disk rests on, relative to it or absolute; or NULL if
 * it shows the whole disk.
 */
char *vmsnap_format_name_backing(const VmsnapFormatOptions *options, const VmsnapDisk *disk);

/**
 * Returns: whether a pattern for names of backing files, which are no URLs, makes sense: %d is the disk, %s the
 * checkpoint, %% is %.
 */
gboolean vmsnap_backing_pattern_is_valid(const char *pattern);

/** Returns: QEMU's name for the format of a file: "raw" where its name says so, with .raw or .img, and else "qcow2". */
const char *vmsnap_backing_get_format(const char *name);
