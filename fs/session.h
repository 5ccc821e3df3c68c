/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A view mounted with FUSE: from the mount to the last reply. */
#pragma once

#include "view.h"

#include <sys/types.h>

typedef struct VmsnapSession VmsnapSession;

/** How the files appear. Strings belong to the caller and must outlive vmsnap_session_mount(). */
typedef struct {
    const char *fs_name;       /* what df and mountinfo show as source */
    const char *mount_options; /* further options for the kernel, comma-separated, or NULL */
    gboolean read_only;        /* for the kernel, too: then no file takes orders */
    gboolean allow_other;      /* users other than the one who mounts may enter */
    uid_t uid;                 /* owner of all files */
    gid_t gid;                 /* group of all files */
    mode_t file_mode;          /* of files; directories may be searched by whoever may read files */
} VmsnapSessionOptions;

/**
 * vmsnap_session_mount:
 * @view: started; must outlive the session
 * @mount_point: absolute
 *
 * Mounts @view on @mount_point. No request is answered before vmsnap_session_run().
 * Returns: the session, or NULL with @error set and nothing mounted.
 */
VmsnapSession *vmsnap_session_mount(VmsnapView *view, const VmsnapSessionOptions *options, const char *mount_point,
                                    GError **error);

/** Returns: the kernel's number of the mount, or 0 if it cannot tell. */
uint64_t vmsnap_session_get_mount_id(const VmsnapSession *session);

/**
 * VmsnapReadyFunc:
 *
 * Called once, on the thread that serves the kernel's first request: from then on files can be read. Returns: FALSE if
 * nobody wants them any more: then the session ends.
 */
typedef gboolean (*VmsnapReadyFunc)(gpointer user_data);

/**
 * vmsnap_session_run:
 *
 * Answers requests until the mount is gone or SIGINT, SIGTERM or SIGHUP comes. The mount may still be there then, and
 * whoever has files open keeps them until vmsnap_session_free(). All threads must block these signals; this one lets
 * them through while it can handle them, so that one which comes before ends the session at once, and one which comes
 * after does nothing. Requests in flight are still to be answered: end the snapshot before vmsnap_session_free().
 *
 * Returns: 0 after an unmount, the number of the signal, or -1 with @error set.
 */
int vmsnap_session_run(VmsnapSession *session, VmsnapReadyFunc ready, gpointer user_data, GError **error);

/**
 * vmsnap_session_is_connected:
 *
 * Returns: whether the kernel still knows somebody who could read: the mount, a copy of it, or an open file. For a
 * session that does not run any more.
 */
gboolean vmsnap_session_is_connected(const VmsnapSession *session);

/** Frees a session whose snapshot has ended; answers what was still held back. NULL-safe. */
void vmsnap_session_free(VmsnapSession *session);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapSession, vmsnap_session_free)
