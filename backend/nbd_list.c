/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_list.h"

#include "nbd_handle.h"
#include "vmsnap/error.h"

/* Of names that are kept: a server may tell them without an end. */
#define MAX_NAMES 4096

typedef struct {
    GPtrArray *names; /* owned */
    gboolean too_many;
    gboolean done;
} List;

static int name_received(void *user_data, const char *name, const char *description) {
    (void)description;
    List *list = user_data;
    if (g_ptr_array_find_with_equal_func(list->names, name, g_str_equal, NULL))
        return 0;
    if (list->names->len == MAX_NAMES)
        list->too_many = TRUE;
    else
        g_ptr_array_add(list->names, g_strdup(name));
    return 0;
}

/* An error says that the server does not list, or no more: that is no reason not to use what it has. */
static int list_completed(void *user_data, int *error) {
    (void)error;
    ((List *)user_data)->done = TRUE;
    return 1;
}

/* Returns: NULL if all is told, or why not. */
static const char *list_receive(List *list, struct nbd_handle *nbd, gint64 deadline_us) {
    nbd_list_callback received = {.callback = name_received, .user_data = list};
    nbd_completion_callback completed = {.callback = list_completed, .user_data = list};
    if (nbd_aio_opt_list(nbd, received, completed) < 0)
        return NULL;
    while (!list->done && !list->too_many) {
        gint64 left_ms = (deadline_us - g_get_monotonic_time()) / 1000;
        if (left_ms <= 0)
            return "no answer when asked for its exports";
        if (nbd_poll(nbd, (int)MIN(left_ms, G_MAXINT)) < 0)
            return nbd_get_error();
    }
    return list->too_many ? "it lists more than 4096 exports" : NULL;
}

/* An old server is ready at once, and has one export without a name. */
static const char *list_run(List *list, const VmsnapNbdServer *server, struct nbd_handle *nbd, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    if (!nbd || nbd_set_opt_mode(nbd, true) != 0 || !vmsnap_nbd_server_connect(server, nbd, ""))
        return nbd_get_error();
    if (vmsnap_nbd_handle_wait(nbd, timeout_ms))
        return NULL;
    if (nbd_aio_is_negotiating(nbd) == 1)
        return list_receive(list, nbd, deadline_us);
    return vmsnap_nbd_handle_get_failure(nbd);
}

GPtrArray *vmsnap_nbd_list(const VmsnapNbdServer *server, unsigned timeout_ms, GError **error) {
    List list = {.names = g_ptr_array_new_with_free_func(g_free)};
    struct nbd_handle *nbd = nbd_create();
    g_autofree char *reason = g_strdup(list_run(&list, server, nbd, timeout_ms));
    nbd_close(nbd);
    if (!reason)
        return list.names;
    g_ptr_array_unref(list.names);
    vmsnap_nbd_server_set_error(server, "list the exports of", reason, error);
    return NULL;
}
