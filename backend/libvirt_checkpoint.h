/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints of a libvirt domain. All of it blocks.
 *
 * A checkpoint of vmsnap's is created with its snapshot, and settled when that has ended: committed, so that later
 * backups may rest on it, or deleted. Every checkpoint has a bitmap of its own in QEMU that goes on recording, so
 * that to delete one loses nothing of the others. One that is not committed is nobody's base: where it cannot be
 * deleted, since the guest is off, it may stay until the next mount.
 */
#pragma once

#include "checkpoint.h"

#include <libvirt/libvirt.h>

/** Returns: (transfer full) (element-type VmsnapCheckpoint): those of a domain, the oldest first; or NULL with @error
 * set. */
GPtrArray *vmsnap_libvirt_list_checkpoints(virDomainPtr domain, GError **error);

/** Deletes what earlier mounts could not: the caller's must be the only one. */
gboolean vmsnap_libvirt_delete_uncommitted(virDomainPtr domain, GError **error);

/** A checkpoint that is to be settled. Strings belong to the caller. */
typedef struct {
    virConnectPtr connection; /* as for vmsnap_libvirt_find_again(), also uri */
    const char *uri;
    const char *domain_uuid;
    const char *name;
    const char *snapshot;    /* uuid: a checkpoint that was not made with it is left alone */
    const char *description; /* that commits it; or NULL if it is to be deleted */
    unsigned timeout_ms;
} VmsnapUnsettled;

/**
 * vmsnap_libvirt_settle_checkpoint:
 *
 * While libvirt does not do it, it is tried again until the timeout. Returns: FALSE with @error set if it was not done;
 * VMSNAP_ERROR_BROKEN if there is none to commit, and otherwise it may still be there.
 */
gboolean vmsnap_libvirt_settle_checkpoint(const VmsnapUnsettled *unsettled, GError **error);

/**
 * vmsnap_libvirt_prune_checkpoints:
 * @keep: at least 1
 *
 * Deletes committed checkpoints of vmsnap's but for the newest @keep.
 */
gboolean vmsnap_libvirt_prune_checkpoints(virDomainPtr domain, unsigned keep, GError **error);
