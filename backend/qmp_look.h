/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a QEMU is asked before anything is begun: whether it can be mounted, what it has, and what describes it. */
#pragma once

#include "qmp_client.h"

/** Owned by whoever has it, as all it points to. */
typedef struct {
    char *machine;       /* its name, or that of the socket */
    char *uuid;          /* its own, or one that is made of the socket's path */
    GPtrArray *drives;   /* of VmsnapQmpDrive */
    GBytes *description; /* JSON for qemu.json */
} VmsnapQmpFacts;

/** NULL-safe. */
void vmsnap_qmp_facts_free(VmsnapQmpFacts *facts);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapQmpFacts, vmsnap_qmp_facts_free)

/**
 * vmsnap_qmp_look:
 * @path: of the socket that @qmp is connected to
 *
 * Blocks. Returns: (transfer full): what there is, or NULL with @error set if the machine cannot be mounted.
 */
VmsnapQmpFacts *vmsnap_qmp_look(VmsnapQmp *qmp, const char *path, GError **error);

/** Returns: FALSE with @error set if a block job runs: it has nodes of its own in the way of the guest's writes. */
gboolean vmsnap_qmp_check_idle(VmsnapQmp *qmp, const char *machine, GError **error);
