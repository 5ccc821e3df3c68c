/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A connection to QEMU's monitor (QMP). Commands are sent one at a time, and events that come between are dropped: what
 * is of interest is asked for. A monitor serves one client at a time, so a connection is not to be kept for longer than
 * its commands take.
 */
#pragma once

#include <json-glib/json-glib.h>

typedef struct VmsnapQmp VmsnapQmp;

#define VMSNAP_QMP_ERROR (vmsnap_qmp_error_quark())

/**
 * VmsnapQmpError:
 * @VMSNAP_QMP_ERROR_REFUSED: QEMU's answer; the message is in QEMU's words
 * @VMSNAP_QMP_ERROR_LOST: no answer: whether the command was carried out is not known
 */
typedef enum {
    VMSNAP_QMP_ERROR_REFUSED,
    VMSNAP_QMP_ERROR_LOST,
} VmsnapQmpError;

GQuark vmsnap_qmp_error_quark(void);

/**
 * vmsnap_qmp_connect:
 * @timeout_ms: to be let in, and for the answer to each command
 * @ret_errno: why it does not connect, as of vmsnap_json_socket_connect(), or 0 if it does; or NULL
 *
 * Blocks. Returns: NULL with @error set, which names the socket and the remedy, if it is not let in.
 */
VmsnapQmp *vmsnap_qmp_connect(const char *path, unsigned timeout_ms, int *ret_errno, GError **error);

/** NULL-safe. */
void vmsnap_qmp_free(VmsnapQmp *qmp);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapQmp, vmsnap_qmp_free)

/** Shortens or prolongs the time for answers from now on. */
void vmsnap_qmp_set_timeout(VmsnapQmp *qmp, unsigned timeout_ms);

/** Returns: whether QEMU is at least of that version. */
gboolean vmsnap_qmp_is_at_least(const VmsnapQmp *qmp, unsigned major, unsigned minor);

/** Returns: QEMU's version as people write it: "7.2.22". */
const char *vmsnap_qmp_get_version(const VmsnapQmp *qmp);

/**
 * vmsnap_qmp_call:
 * @arguments: a format of g_variant_new_parsed() that makes a{sv}, with its values behind it, which must be UTF-8; or
 *   NULL for none
 *
 * Sends a command and waits for the answer. Blocks. Returns: (transfer full): what it returns, or NULL with @error set,
 * of VMSNAP_QMP_ERROR.
 */
JsonNode *vmsnap_qmp_call(VmsnapQmp *qmp, GError **error, const char *command, const char *arguments, ...);

/** As vmsnap_qmp_call(), where what it returns is of no interest. */
gboolean vmsnap_qmp_run(VmsnapQmp *qmp, GError **error, const char *command, const char *arguments, ...);

/** As vmsnap_qmp_call(), with a descriptor sent along, which stays the caller's. */
JsonNode *vmsnap_qmp_call_with_fd(VmsnapQmp *qmp, int fd, GError **error, const char *command, const char *arguments,
                                  ...);
