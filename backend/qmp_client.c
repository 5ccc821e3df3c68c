/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp_client.h"

#include "json_socket.h"
#include "json_text.h"
#include "vmsnap/error.h"

#include <errno.h>

/* All block nodes of a machine with long chains are a few megabytes. */
#define MAX_REPLY_BYTES ((size_t)64 << 20)

struct VmsnapQmp {
    VmsnapJsonSocket *socket; /* owned */
    unsigned timeout_ms;
    guint64 last_id;
    unsigned major;
    unsigned minor;
    char *version; /* owned */
};

G_DEFINE_QUARK(vmsnap - qmp - error - quark, vmsnap_qmp_error)

static gint64 deadline_of(const VmsnapQmp *qmp) {
    return g_get_monotonic_time() + (gint64)qmp->timeout_ms * 1000;
}

static unsigned number_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_INT64);
    return node ? (unsigned)CLAMP(json_node_get_int(node), 0, G_MAXINT) : 0;
}

/* Returns: whether it is the greeting of a monitor. */
static gboolean greeting_read(VmsnapQmp *qmp, JsonNode *greeting) {
    JsonObject *numbers = vmsnap_json_find_object(
        vmsnap_json_find_object(vmsnap_json_find_object(json_node_get_object(greeting), "QMP"), "version"), "qemu");
    if (!numbers)
        return FALSE;
    qmp->major = number_member(numbers, "major");
    qmp->minor = number_member(numbers, "minor");
    qmp->version = g_strdup_printf("%u.%u.%u", qmp->major, qmp->minor, number_member(numbers, "micro"));
    return TRUE;
}

static gboolean set_connect_error(GError **error, const char *path, const char *reason) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to connect to QMP socket '%s': %s; see that the machine runs, and name the socket of its -qmp "
                "option",
                path, reason);
    return FALSE;
}

static gboolean set_greeting_error(GError **error, const char *path, const char *reason) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use QMP socket '%s': %s; it may be no QMP monitor, or serve another program, since a "
                "monitor has one client at a time: end that program, or give QEMU one more -qmp",
                path, reason);
    return FALSE;
}

/* Whoever connects is greeted when the client before has gone, and must answer before anything else. */
static gboolean qmp_enter(VmsnapQmp *qmp, const char *path, GError **error) {
    g_autoptr(GError) receive_error = NULL;
    g_autoptr(JsonNode) greeting = vmsnap_json_socket_receive(qmp->socket, deadline_of(qmp), &receive_error);
    if (!greeting || !greeting_read(qmp, greeting))
        return set_greeting_error(error, path, greeting ? "it sends no greeting of QEMU's" : receive_error->message);
    return vmsnap_qmp_run(qmp, &receive_error, "qmp_capabilities", NULL) ||
           set_greeting_error(error, path, receive_error->message);
}

VmsnapQmp *vmsnap_qmp_connect(const char *path, unsigned timeout_ms, int *ret_errno, GError **error) {
    g_autoptr(VmsnapQmp) qmp = g_new0(VmsnapQmp, 1);
    int code;
    qmp->timeout_ms = timeout_ms;
    qmp->socket = vmsnap_json_socket_connect(path, MAX_REPLY_BYTES, deadline_of(qmp), &code);
    if (ret_errno)
        *ret_errno = code;
    if (qmp->socket)
        return qmp_enter(qmp, path, error) ? g_steal_pointer(&qmp) : NULL;
    if (code == EAGAIN)
        set_greeting_error(error, path, "too many clients wait for it already");
    else
        set_connect_error(error, path, g_strerror(code));
    return NULL;
}

void vmsnap_qmp_free(VmsnapQmp *qmp) {
    if (!qmp)
        return;
    vmsnap_json_socket_free(qmp->socket);
    g_free(qmp->version);
    g_free(qmp);
}

void vmsnap_qmp_set_timeout(VmsnapQmp *qmp, unsigned timeout_ms) {
    qmp->timeout_ms = timeout_ms;
}

gboolean vmsnap_qmp_is_at_least(const VmsnapQmp *qmp, unsigned major, unsigned minor) {
    return qmp->major > major || (qmp->major == major && qmp->minor >= minor);
}

const char *vmsnap_qmp_get_version(const VmsnapQmp *qmp) {
    return qmp->version;
}

static char *command_to_text(guint64 id, const char *command, GVariant *arguments) {
    g_autoptr(JsonBuilder) json = json_builder_new();
    json_builder_begin_object(json);
    json_builder_set_member_name(json, "execute");
    json_builder_add_string_value(json, command);
    json_builder_set_member_name(json, "id");
    json_builder_add_int_value(json, (gint64)id);
    if (arguments) {
        json_builder_set_member_name(json, "arguments");
        json_builder_add_value(json, json_gvariant_serialize(arguments));
    }
    json_builder_end_object(json);
    g_autoptr(JsonNode) root = json_builder_get_root(json);
    g_autofree char *text = json_to_string(root, FALSE);
    return g_strconcat(text, "\n", NULL);
}

/* An answer to text that QEMU could not read at all has no id. */
static gboolean is_answer_to(JsonObject *message, guint64 id) {
    if (!json_object_has_member(message, "id"))
        return json_object_has_member(message, "error");
    JsonNode *node = vmsnap_json_find(message, "id", G_TYPE_INT64);
    return node && json_node_get_int(node) == (gint64)id;
}

/* Events are dropped, and so are answers to whatever else. Returns: (transfer full) */
static JsonNode *answer_wait(VmsnapQmp *qmp, guint64 id, GError **error) {
    gint64 deadline_us = deadline_of(qmp);
    for (;;) {
        g_autoptr(JsonNode) message = vmsnap_json_socket_receive(qmp->socket, deadline_us, error);
        if (!message || is_answer_to(json_node_get_object(message), id))
            return g_steal_pointer(&message);
    }
}

static void set_refused_error(GError **error, JsonObject *answer) {
    JsonObject *refusal = vmsnap_json_find_object(answer, "error");
    g_autofree char *words = refusal ? vmsnap_json_dup_words(refusal, "desc") : NULL;
    g_set_error_literal(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_REFUSED, words ? words : "QEMU gives no reason");
}

static JsonNode *call(VmsnapQmp *qmp, int fd, GError **error, const char *command, GVariant *arguments) {
    guint64 id = ++qmp->last_id;
    g_autofree char *text = command_to_text(id, command, arguments);
    g_autoptr(GError) lost = NULL;
    g_autoptr(JsonNode) message = NULL;
    if (vmsnap_json_socket_send(qmp->socket, text, fd, deadline_of(qmp), &lost))
        message = answer_wait(qmp, id, &lost);
    if (!message) {
        g_set_error(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_LOST, "QEMU's monitor is lost at '%s': %s", command,
                    lost->message);
        return NULL;
    }
    JsonObject *answer = json_node_get_object(message);
    JsonNode *result = json_object_get_member(answer, "return");
    if (result)
        return json_node_ref(result);
    set_refused_error(error, answer);
    return NULL;
}

static GVariant *arguments_parse(const char *format, va_list *values) {
    return format ? g_variant_ref_sink(g_variant_new_parsed_va(format, values)) : NULL;
}

JsonNode *vmsnap_qmp_call(VmsnapQmp *qmp, GError **error, const char *command, const char *arguments, ...) {
    va_list values;
    va_start(values, arguments);
    g_autoptr(GVariant) parsed = arguments_parse(arguments, &values);
    va_end(values);
    return call(qmp, -1, error, command, parsed);
}

gboolean vmsnap_qmp_run(VmsnapQmp *qmp, GError **error, const char *command, const char *arguments, ...) {
    va_list values;
    va_start(values, arguments);
    g_autoptr(GVariant) parsed = arguments_parse(arguments, &values);
    va_end(values);
    g_autoptr(JsonNode) result = call(qmp, -1, error, command, parsed);
    return result != NULL;
}

JsonNode *vmsnap_qmp_call_with_fd(VmsnapQmp *qmp, int fd, GError **error, const char *command, const char *arguments,
                                  ...) {
    va_list values;
    va_start(values, arguments);
    g_autoptr(GVariant) parsed = arguments_parse(arguments, &values);
    va_end(values);
    return call(qmp, fd, error, command, parsed);
}
