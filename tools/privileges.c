/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An ordinary user's process keeps the right to gain rights by executing a program: libvirt may have to start that
 * user's libvirtd, and whatever that starts later must not be bound by us.
 */
#include "privileges.h"

#include <cap-ng.h>
#include <errno.h>
#include <glib.h>
#include <sys/prctl.h>
#include <unistd.h>

void vmsnap_privileges_drop(void) {
    if (geteuid() != 0)
        return;
    capng_clear(CAPNG_SELECT_ALL);
    /* Either is of use without the other. */
    if (capng_apply(CAPNG_SELECT_ALL) != 0)
        g_warning("failed to give up capabilities: %s", g_strerror(errno));
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        g_warning("failed to give up the right to gain capabilities: %s", g_strerror(errno));
}
