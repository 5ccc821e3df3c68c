/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "libvirt_checkpoint.h"

#include "libvirt_domain.h"
#include "vmsnap/error.h"

#include <libvirt/libvirt-domain-checkpoint.h>
#include <string.h>

/* How often it is tried again to reach a libvirtd that is away. */
#define RETRY_US 200000

G_DEFINE_AUTOPTR_CLEANUP_FUNC(virDomainCheckpoint, virDomainCheckpointFree)

static gboolean set_checkpoint_error(GError **error, const char *verb, const char *name) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to %s checkpoint '%s': %s; see 'virsh checkpoint-list'", verb, name, virGetLastErrorMessage());
    return FALSE;
}

static VmsnapCheckpoint *checkpoint_read(virDomainCheckpointPtr checkpoint, GError **error) {
    const char *name = virDomainCheckpointGetName(checkpoint);
    g_autofree char *xml = virDomainCheckpointGetXMLDesc(checkpoint, 0);
    if (xml)
        return vmsnap_checkpoint_parse(xml, error);
    (void)set_checkpoint_error(error, "read", name);
    return NULL;
}

/* Consumes the list. */
static GPtrArray *checkpoints_read(virDomainCheckpointPtr *list, int n_checkpoints, GError **error) {
    g_autoptr(GPtrArray) checkpoints = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_checkpoint_free);
    gboolean read = TRUE;
    for (int i = 0; i < n_checkpoints; i++) {
        VmsnapCheckpoint *checkpoint = read ? checkpoint_read(list[i], error) : NULL;
        read = checkpoint != NULL;
        if (read)
            g_ptr_array_add(checkpoints, checkpoint);
        (void)virDomainCheckpointFree(list[i]);
    }
    free(list);
    return read ? g_steal_pointer(&checkpoints) : NULL;
}

/* They are a chain, each the parent of the next one: so the order is that of their making, whatever the clock did. */
GPtrArray *vmsnap_libvirt_list_checkpoints(virDomainPtr domain, GError **error) {
    virDomainCheckpointPtr *list = NULL;
    int n_checkpoints = virDomainListAllCheckpoints(domain, &list, VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL);
    if (n_checkpoints >= 0)
        return checkpoints_read(list, n_checkpoints, error);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to list the checkpoints of domain '%s': %s",
                virDomainGetName(domain), virGetLastErrorMessage());
    return NULL;
}

/*
 * @ret_checkpoint: (transfer full): libvirt's checkpoint, or NULL if there is none of that name that was made with the
 * snapshot. Returns: FALSE with @error set if libvirt cannot tell.
 */
static gboolean checkpoint_find(virDomainPtr domain, const char *name, const char *snapshot,
                                virDomainCheckpointPtr *ret_checkpoint, GError **error) {
    *ret_checkpoint = NULL;
    g_autoptr(virDomainCheckpoint) checkpoint = virDomainCheckpointLookupByName(domain, name, 0);
    if (!checkpoint)
        return virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_CHECKPOINT || set_checkpoint_error(error, "look up", name);
    g_autoptr(VmsnapCheckpoint) facts = checkpoint_read(checkpoint, error);
    if (!facts)
        return FALSE;
    if (g_strcmp0(facts->snapshot, snapshot) == 0)
        *ret_checkpoint = g_steal_pointer(&checkpoint);
    return TRUE;
}

/*
 * A crash of QEMU loses bitmaps that were never stored, and another image has others. libvirt does not delete those
 * that are left as long as one is not found, but it does when it is told that the checkpoint does not track that disk.
 * Returns: whether it was told.
 */
static gboolean checkpoint_untrack_lost(virDomainPtr domain, virDomainCheckpointPtr checkpoint) {
    g_autofree char *message = g_strdup(virGetLastErrorMessage());
    if (virGetLastErrorCode() != VIR_ERR_INTERNAL_ERROR)
        return FALSE;
    g_autofree char *before = virDomainCheckpointGetXMLDesc(checkpoint, VIR_DOMAIN_CHECKPOINT_XML_SECURE);
    g_autofree char *after = before ? vmsnap_checkpoint_untrack(before, message) : NULL;
    g_autoptr(virDomainCheckpoint) redefined =
        after ? virDomainCheckpointCreateXML(domain, after, VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE) : NULL;
    return redefined != NULL;
}

static gboolean checkpoint_delete(virDomainPtr domain, const char *name, const char *snapshot, GError **error) {
    g_autoptr(virDomainCheckpoint) checkpoint = NULL;
    if (!checkpoint_find(domain, name, snapshot, &checkpoint, error))
        return FALSE;
    gboolean deleted = FALSE, again = checkpoint != NULL;
    int code = VIR_ERR_OK;
    while (!deleted && again) {
        deleted = virDomainCheckpointDelete(checkpoint, 0) == 0;
        code = virGetLastErrorCode();
        again = !deleted && checkpoint_untrack_lost(domain, checkpoint);
    }
    if (!deleted && code == VIR_ERR_INTERNAL_ERROR &&
        virDomainCheckpointDelete(checkpoint, VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY) == 0) {
        deleted = TRUE;
        g_warning("checkpoint '%s' could not be found in all images, where bitmaps of that name may be left", name);
    }
    if (deleted)
        g_message("checkpoint '%s' is deleted", name);
    if (deleted || !checkpoint)
        return TRUE;
    (void)set_checkpoint_error(error, "delete", name);
    if (virDomainIsActive(domain) != 0)
        return FALSE;
    g_clear_error(error);
    g_message("the checkpoint '%s' cannot be deleted while the guest is off: the next mount does it, and no backup "
              "begins from it",
              name);
    return TRUE;
}

gboolean vmsnap_libvirt_delete_uncommitted(virDomainPtr domain, GError **error) {
    g_autoptr(GPtrArray) checkpoints = vmsnap_libvirt_list_checkpoints(domain, error);
    gboolean deleted = checkpoints != NULL;
    for (guint i = 0; deleted && i < checkpoints->len; i++) {
        const VmsnapCheckpoint *checkpoint = g_ptr_array_index(checkpoints, i);
        if (!checkpoint->committed)
            deleted = checkpoint_delete(domain, checkpoint->name, checkpoint->snapshot, error);
    }
    return deleted;
}

/* To define it anew with another description changes nothing else of it. */
static gboolean checkpoint_commit(virDomainPtr domain, const VmsnapUnsettled *unsettled, GError **error) {
    g_autoptr(virDomainCheckpoint) checkpoint = NULL;
    if (!checkpoint_find(domain, unsettled->name, unsettled->snapshot, &checkpoint, error))
        return FALSE;
    if (!checkpoint) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN,
                    "failed to commit checkpoint '%s': somebody has deleted it", unsettled->name);
        return FALSE;
    }
    g_autofree char *before = virDomainCheckpointGetXMLDesc(checkpoint, VIR_DOMAIN_CHECKPOINT_XML_SECURE);
    g_autofree char *after =
        before ? vmsnap_checkpoint_replace_description(before, unsettled->description, error) : NULL;
    if (before && !after)
        return FALSE;
    g_autoptr(virDomainCheckpoint) redefined =
        after ? virDomainCheckpointCreateXML(domain, after, VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE) : NULL;
    if (redefined)
        return TRUE;
    int code = virGetLastErrorCode();
    (void)set_checkpoint_error(error, "commit", unsettled->name);
    /* A libvirt that answers, and is not just busy, will say the same the next time. */
    if (error && code != VIR_ERR_OPERATION_TIMEOUT && virConnectIsAlive(virDomainGetConnect(domain)) > 0)
        (*error)->code = VMSNAP_ERROR_BROKEN;
    return FALSE;
}

static gboolean checkpoint_try_settle(const VmsnapUnsettled *unsettled, GError **error) {
    g_autoptr(GError) find_error = NULL;
    g_autoptr(virDomain) domain =
        vmsnap_libvirt_find_again(unsettled->connection, unsettled->uri, unsettled->domain_uuid, &find_error);
    if (domain)
        return unsettled->description ? checkpoint_commit(domain, unsettled, error)
                                      : checkpoint_delete(domain, unsettled->name, unsettled->snapshot, error);
    /* A domain that is gone took its checkpoints along. */
    if (!find_error && !unsettled->description)
        return TRUE;
    if (find_error)
        g_propagate_error(error, g_steal_pointer(&find_error));
    else
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN, "failed to commit checkpoint '%s': the domain is gone",
                    unsettled->name);
    return FALSE;
}

gboolean vmsnap_libvirt_settle_checkpoint(const VmsnapUnsettled *unsettled, GError **error) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)unsettled->timeout_ms * 1000;
    for (;;) {
        g_autoptr(GError) last_error = NULL;
        if (checkpoint_try_settle(unsettled, &last_error))
            return TRUE;
        if (g_error_matches(last_error, VMSNAP_ERROR, VMSNAP_ERROR_BROKEN) || g_get_monotonic_time() >= deadline_us) {
            g_propagate_error(error, g_steal_pointer(&last_error));
            return FALSE;
        }
        g_usleep(RETRY_US);
    }
}

gboolean vmsnap_libvirt_prune_checkpoints(virDomainPtr domain, unsigned keep, GError **error) {
    g_autoptr(GPtrArray) checkpoints = vmsnap_libvirt_list_checkpoints(domain, error);
    gboolean pruned = checkpoints != NULL;
    unsigned n_newer = 0;
    for (guint i = pruned ? checkpoints->len : 0; pruned && i-- > 0;) {
        const VmsnapCheckpoint *checkpoint = g_ptr_array_index(checkpoints, i);
        if (checkpoint->snapshot && checkpoint->committed && ++n_newer > keep)
            pruned = checkpoint_delete(domain, checkpoint->name, checkpoint->snapshot, error);
    }
    return pruned;
}
