/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The agent's socket outlives its clients, and what they have left in it, in both directions. So each conversation
 * begins with guest-sync-delimited: a byte 0xFF lets the agent forget what it has half read, and the answer begins with
 * one, before which all is somebody else's.
 */
#include "agent.h"

#include "json_socket.h"
#include "json_text.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <string.h>

/* A list of filesystems is the longest answer; what is longer is no agent's. */
#define MAX_ANSWER_BYTES ((size_t)1 << 20)

struct VmsnapAgent {
    VmsnapJsonSocket *socket; /* owned */
    unsigned timeout_ms;
    gboolean owes; /* an answer that was given up may still come */
};

static gint64 deadline_of(const VmsnapAgent *agent) {
    return g_get_monotonic_time() + (gint64)agent->timeout_ms * 1000;
}

static void set_error(GError **error, const char *verb, const char *reason) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to %s: %s", verb, reason);
}

static char *sync_to_text(gint64 id) {
    return g_strdup_printf(
        "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": %" G_GINT64_FORMAT "}}\n", id);
}

/* Returns: whether it is the answer to our sync, and not that to somebody else's before us. */
static gboolean is_sync(JsonNode *answer, gint64 id) {
    JsonNode *value = vmsnap_json_find(json_node_get_object(answer), "return", G_TYPE_INT64);
    return value && json_node_get_int(value) == id;
}

/* Each answer to a sync has its own byte 0xFF before it. */
static gboolean sync_wait(VmsnapAgent *agent, gint64 id, gint64 deadline_us, GError **error) {
    for (;;) {
        vmsnap_json_socket_skip(agent->socket);
        g_autoptr(JsonNode) answer = vmsnap_json_socket_receive(agent->socket, deadline_us, error);
        if (!answer || is_sync(answer, id))
            return answer != NULL;
    }
}

static gboolean agent_sync(VmsnapAgent *agent, GError **error) {
    gint64 deadline_us = deadline_of(agent);
    gint64 id = g_random_int_range(1, G_MAXINT);
    g_autofree char *text = sync_to_text(id);
    return vmsnap_json_socket_send(agent->socket, text, -1, deadline_us, error) &&
           sync_wait(agent, id, deadline_us, error);
}

/*
 * A command that follows one without an answer goes behind a sync, so that the answer to the one is not taken for that
 * to the other; but not after it was answered: an agent that is busy for long is to do it when it can.
 * Returns: (transfer full): the answer, or NULL with @error set.
 */
static JsonNode *agent_ask(VmsnapAgent *agent, const char *command, GError **error) {
    gint64 deadline_us = deadline_of(agent);
    gint64 id = g_random_int_range(1, G_MAXINT);
    gboolean syncs = agent->owes;
    g_autofree char *sync = syncs ? sync_to_text(id) : g_strdup("");
    g_autofree char *text = g_strdup_printf("%s{\"execute\": \"%s\"}\n", sync, command);
    agent->owes = TRUE;
    if (!vmsnap_json_socket_send(agent->socket, text, -1, deadline_us, error) ||
        (syncs && !sync_wait(agent, id, deadline_us, error)))
        return NULL;
    JsonNode *answer = vmsnap_json_socket_receive(agent->socket, deadline_us, error);
    agent->owes = !answer;
    return answer;
}

VmsnapAgent *vmsnap_agent_connect(const char *path, unsigned timeout_ms, int *ret_errno, GError **error) {
    g_autoptr(VmsnapAgent) agent = g_new0(VmsnapAgent, 1);
    g_autoptr(GError) reason = NULL;
    int code;
    agent->timeout_ms = timeout_ms;
    agent->socket = vmsnap_json_socket_connect(path, MAX_ANSWER_BYTES, deadline_of(agent), &code);
    if (ret_errno)
        *ret_errno = code;
    if (agent->socket && agent_sync(agent, &reason))
        return g_steal_pointer(&agent);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to reach the guest agent at '%s': %s; see that it runs in the guest, and that nobody else uses "
                "the socket",
                path, reason ? reason->message : g_strerror(code));
    return NULL;
}

void vmsnap_agent_free(VmsnapAgent *agent) {
    if (!agent)
        return;
    vmsnap_json_socket_free(agent->socket);
    g_free(agent);
}

/* @ret_unknown: set if there was no answer. Returns: FALSE with @error set, if it was not done. */
static gboolean agent_call(VmsnapAgent *agent, const char *verb, const char *command, gboolean *ret_unknown,
                           GError **error) {
    g_autoptr(GError) reason = NULL;
    g_autoptr(JsonNode) answer = agent_ask(agent, command, &reason);
    *ret_unknown = !answer;
    if (!answer) {
        set_error(error, verb, reason->message);
        return FALSE;
    }
    JsonObject *object = json_node_get_object(answer);
    if (json_object_has_member(object, "return"))
        return TRUE;
    JsonObject *refusal = vmsnap_json_find_object(object, "error");
    g_autofree char *words = refusal ? vmsnap_json_dup_words(refusal, "desc") : NULL;
    set_error(error, verb, words ? words : "the guest agent gives no reason");
    return FALSE;
}

gboolean vmsnap_agent_freeze(VmsnapAgent *agent, gboolean *ret_unknown, GError **error) {
    return agent_call(agent, "freeze the guest's filesystems", "guest-fsfreeze-freeze", ret_unknown, error);
}

/* A guest in which nothing is frozen has nothing to thaw, which is no error of the agent's. */
gboolean vmsnap_agent_thaw(VmsnapAgent *agent, GError **error) {
    gboolean unknown;
    return agent_call(agent, "thaw the guest's filesystems", "guest-fsfreeze-thaw", &unknown, error);
}
