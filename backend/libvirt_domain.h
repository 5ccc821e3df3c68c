/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Talking to libvirt about one domain and its backup job. All of it blocks. */
#pragma once

#include <glib.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdint.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(virConnect, virConnectClose)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(virDomain, virDomainFree)

/**
 * vmsnap_libvirt_connect:
 * @uri: or NULL for libvirt's default
 *
 * Returns: (transfer full): a connection that may change things, or NULL with @error set.
 */
virConnectPtr vmsnap_libvirt_connect(const char *uri, GError **error);

/**
 * vmsnap_libvirt_find:
 * @source: the domain's name, UUID or id
 *
 * Returns: (transfer full): the domain, which is running; or NULL with @error set.
 */
virDomainPtr vmsnap_libvirt_find(virConnectPtr connection, const char *source, GError **error);

/** Returns: (transfer full): the XML that @flags choose, or NULL with @error set. */
char *vmsnap_libvirt_get_xml(virDomainPtr domain, unsigned flags, GError **error);

/** Returns: FALSE with @error set if a job runs on @domain: it names the mount point if the job is a vmsnap's. */
gboolean vmsnap_libvirt_check_idle(virDomainPtr domain, GError **error);

/** Learns the size of a disk from QEMU. Not while a job of somebody else's may be beginning: HACKING.md, facts. */
gboolean vmsnap_libvirt_get_size(virDomainPtr domain, const char *target, uint64_t *ret_bytes, GError **error);

/**
 * vmsnap_libvirt_begin_job:
 * @checkpoint_xml: what checkpoint to create at the same instant, or NULL
 * @ret_since_is_bad: set if a checkpoint that changes are to count from is of no use
 *
 * Begins the backup job that @xml describes, with scratch files that are there already.
 */
gboolean vmsnap_libvirt_begin_job(virDomainPtr domain, const char *xml, const char *checkpoint_xml,
                                  gboolean *ret_since_is_bad, GError **error);

/**
 * vmsnap_libvirt_find_again:
 * @connection: tried first, if it still lives; may be NULL
 * @uri: for a connection of its own otherwise
 *
 * Returns: (transfer full): the domain; or NULL with @error set; or NULL without, if libvirt knows it no more.
 */
virDomainPtr vmsnap_libvirt_find_again(virConnectPtr connection, const char *uri, const char *uuid, GError **error);

/** A backup job that was begun, and how it is ended. Strings belong to the caller. */
typedef struct {
    virConnectPtr connection; /* as for vmsnap_libvirt_find_again(), also uri */
    const char *uri;
    const char *domain_uuid;
    const char *socket;        /* its NBD socket, by which it is recognised: a job with another one is left alone */
    gboolean may_be_beginning; /* nobody saw the end of its begin */
    gboolean may_resume;       /* the guest, where an I/O error has paused it, since that may have come from scratch */
    unsigned pause_lag_ms;     /* how long to wait for such a pause: QEMU pauses some time after the error */
    unsigned timeout_ms;
} VmsnapJob;

typedef enum {
    VMSNAP_JOB_ENDED,  /* ended now */
    VMSNAP_JOB_GONE,   /* somebody else had ended it, but the domain runs */
    VMSNAP_JOB_LOST,   /* the domain does not run any more */
    VMSNAP_JOB_FAILED, /* could not be ended: see the error */
} VmsnapJobEnd;

/** Ends the job and waits until it is gone. While libvirt is away, it is tried again until the timeout. */
VmsnapJobEnd vmsnap_libvirt_end_job(const VmsnapJob *job, GError **error);

typedef enum {
    VMSNAP_FREEZE_DONE,
    VMSNAP_FREEZE_NONE,    /* nothing is frozen, by us */
    VMSNAP_FREEZE_UNKNOWN, /* the agent was lost meanwhile */
} VmsnapFreeze;

/** Returns: whether libvirt sees a guest agent. */
gboolean vmsnap_libvirt_agent_is_connected(virDomainPtr domain);

/** Freezes the guest's filesystems, however long its agent takes. Sets @error if that was not done. */
VmsnapFreeze vmsnap_libvirt_freeze(virDomainPtr domain, GError **error);

/**
 * vmsnap_libvirt_thaw:
 * @connection: as for vmsnap_libvirt_find_again(), also @uri
 *
 * Thaws the guest's filesystems; one that is stopped or gone has none.
 */
gboolean vmsnap_libvirt_thaw(virConnectPtr connection, const char *uri, const char *domain_uuid, GError **error);

/**
 * vmsnap_libvirt_resume:
 * @lag_ms: how long to wait for a pause
 *
 * Resumes a guest that an I/O error has paused, and no other. Returns: FALSE with @error set if it cannot.
 */
gboolean vmsnap_libvirt_resume(virDomainPtr domain, unsigned lag_ms, GError **error);

/** Returns: whether QEMU has paused the guest, since one of its reads or writes failed. */
gboolean vmsnap_libvirt_is_paused_by_error(virDomainPtr domain);

/** Returns: (transfer full): a version number of libvirt's as text. */
char *vmsnap_libvirt_format_version(unsigned long version);
