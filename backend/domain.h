/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What vmsnap wants to know of a libvirt domain, read from its XML. Pure: no connection, no files. */
#pragma once

#include "drive.h"

#include <sys/types.h>

/** One drive of a domain. Its name is the target, "vda". */
typedef struct {
    VmsnapDrive base;
    char *format;          /* QEMU's name for that of the image, "qcow2"; NULL where the XML does not say */
    char **chain;          /* the source, and those of all images that it rests on */
    char *node;            /* QEMU's name for the image, of a running machine; or NULL */
    gboolean has_iothread; /* serves it: its own, or its controller's */
    gboolean keeps_track;  /* of what changes since a checkpoint, as far as is known */
} VmsnapDomainDisk;

/** A file that the domain names and that belongs into a backup of it. */
typedef struct {
    const char *name; /* static: what it is called in the mount */
    char *path;
} VmsnapDomainFile;

typedef struct {
    char *name;
    char *uuid;
    gboolean has_owner; /* whether uid and gid are those of the QEMU process */
    uid_t uid;
    gid_t gid;
    GPtrArray *disks; /* of VmsnapDomainDisk, owned */
    GPtrArray *files; /* of VmsnapDomainFile, owned */
} VmsnapDomain;

/** Returns: (transfer full): what live XML says, or NULL with @error set. */
VmsnapDomain *vmsnap_domain_parse(const char *xml, GError **error);
void vmsnap_domain_free(VmsnapDomain *domain);

/** Refuses the disks that an iothread serves, which not every QEMU can export: see VMSNAP_DRIVE_IOTHREAD_REASON. */
void vmsnap_domain_refuse_iothreads(VmsnapDomain *domain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapDomain, vmsnap_domain_free)

/** As vmsnap_drives_select(), for the disks of @domain. */
GPtrArray *vmsnap_domain_select(const VmsnapDomain *domain, const char *const *only, const char *const *exclude,
                                VmsnapSnapshot *ret_left_out, GError **error);

/**
 * vmsnap_domain_build_backup_xml:
 * @disks: (element-type VmsnapDisk): which of the domain's, each with the checkpoint that changes count from, if any
 * @scratch_dir: each of them has a scratch file there, see vmsnap_domain_name_scratch()
 *
 * Returns: (transfer full): the XML of a pull-mode backup of @disks that exports each under its target name, and its
 * changes as the bitmap of vmsnap_domain_name_bitmap().
 */
char *vmsnap_domain_build_backup_xml(const VmsnapDomain *domain, const GPtrArray *disks, const char *socket,
                                     const char *scratch_dir);

/** Returns: (transfer full): the name by which the changes of a disk are exported. */
char *vmsnap_domain_name_bitmap(const char *target);

/** Returns: (transfer full): the name of the scratch file of a disk. */
char *vmsnap_domain_name_scratch(const char *target);

/** Returns: (transfer full): the NBD socket that the XML of a running backup names, or NULL. */
char *vmsnap_domain_parse_backup_socket(const char *xml);

/**
 * vmsnap_domain_parse_scratch_device:
 * @xml: of a running backup job
 *
 * Returns: (transfer full): libvirt's name for the scratch file of a disk, "vda[3]"; or NULL.
 */
char *vmsnap_domain_parse_scratch_device(const char *xml, const char *target);

/** Returns: whether the XML of a running domain says that its guest agent is there. */
gboolean vmsnap_domain_parse_agent_is_connected(const char *xml);
