/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp_graph.h"

#include "image_sync.h"
#include "json_text.h"
#include "qmp_machine.h"
#include "vmsnap/error.h"

#include <string.h>

/* A node's name may have 31 characters. */
#define PREFIX_UUID_LENGTH 8
/* Four seconds at most: before 9.1, QEMU counts the nanoseconds of this in 32 bits. Guests wait for a disk for longer.
 */
#define CBW_TIMEOUT_S 4
/* For an export to be gone, after its connections were cut. */
#define EXPORT_GONE_TRIES 200
#define EXPORT_GONE_PAUSE_US 10000

typedef enum { NODE_SCRATCH, NODE_CBW, NODE_PASS, NODE_ACCESS, N_NODES } NodeKind;

static const char *const node_suffixes[N_NODES] = {
    [NODE_SCRATCH] = "scratch",
    [NODE_CBW] = "cbw",
    [NODE_PASS] = "pass",
    [NODE_ACCESS] = "access",
};

static void place_free(gpointer data) {
    VmsnapQmpPlace *place = data;
    g_free(place->name);
    g_free(place->device);
    g_free(place->node);
    g_free(place->image);
    g_free(place);
}

VmsnapQmpGraph *vmsnap_qmp_graph_new(const char *uuid) {
    VmsnapQmpGraph *graph = g_new0(VmsnapQmpGraph, 1);
    graph->prefix = g_strdup_printf("vmsnap-%.*s", PREFIX_UUID_LENGTH, uuid);
    graph->places = g_ptr_array_new_with_free_func(place_free);
    return graph;
}

void vmsnap_qmp_graph_free(VmsnapQmpGraph *graph) {
    if (!graph)
        return;
    g_free(graph->prefix);
    g_ptr_array_unref(graph->places);
    g_free(graph);
}

void vmsnap_qmp_graph_add(VmsnapQmpGraph *graph, const char *name, const char *device, const char *node,
                          const char *image) {
    VmsnapQmpPlace *place = g_new0(VmsnapQmpPlace, 1);
    place->name = g_strdup(name);
    place->device = g_strdup(device);
    place->node = g_strdup(node);
    /* Only what can be opened as it is; and the record must be read again, in which brackets count as depth. */
    place->image = image && image[0] == '/' && !strpbrk(image, "{[") ? g_strdup(image) : NULL;
    g_ptr_array_add(graph->places, place);
}

static const VmsnapQmpPlace *place_of(const VmsnapQmpGraph *graph, guint place) {
    return g_ptr_array_index(graph->places, place);
}

char *vmsnap_qmp_graph_to_text(const VmsnapQmpGraph *graph) {
    g_auto(GVariantBuilder) places = G_VARIANT_BUILDER_INIT(G_VARIANT_TYPE("aa{ss}"));
    for (guint i = 0; i < graph->places->len; i++) {
        const VmsnapQmpPlace *place = place_of(graph, i);
        g_variant_builder_add_parsed(&places, "{'name': %s, 'device': %s, 'node': %s, 'image': %s}", place->name,
                                     place->device, place->node, place->image ? place->image : "");
    }
    g_autoptr(GVariant) whole =
        g_variant_ref_sink(g_variant_new_parsed("{'places': %@aa{ss}}", g_variant_builder_end(&places)));
    return json_gvariant_serialize_data(whole, NULL);
}

static gboolean place_parse(VmsnapQmpGraph *graph, JsonObject *object) {
    const char *name = vmsnap_json_find_text(object, "name");
    const char *device = vmsnap_json_find_text(object, "device");
    const char *original = vmsnap_json_find_text(object, "node");
    if (!name || !device || !original)
        return FALSE;
    vmsnap_qmp_graph_add(graph, name, device, original, vmsnap_json_find_text(object, "image"));
    return TRUE;
}

VmsnapQmpGraph *vmsnap_qmp_graph_from_text(const char *uuid, const char *text, GError **error) {
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_new(uuid);
    g_autoptr(JsonNode) root = vmsnap_json_parse(text, NULL);
    JsonNode *node = root ? json_object_get_member(json_node_get_object(root), "places") : NULL;
    JsonArray *places = vmsnap_json_as_array(node);
    gboolean whole = node && JSON_NODE_HOLDS_ARRAY(node);
    for (guint i = 0; whole && i < json_array_get_length(places); i++)
        whole = place_parse(graph, vmsnap_json_get_object(places, i));
    if (whole)
        return g_steal_pointer(&graph);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to read where snapshot %s is in QEMU", uuid);
    return NULL;
}

static char *node_name(const VmsnapQmpGraph *graph, guint place, NodeKind kind) {
    return g_strdup_printf("%s-%u-%s", graph->prefix, place, node_suffixes[kind]);
}

/* The exports are called after the nodes that they show. */
static const NodeKind exported[] = {NODE_ACCESS, NODE_SCRATCH};

char *vmsnap_qmp_graph_name_scratch(const VmsnapQmpGraph *graph, guint place) {
    return node_name(graph, place, NODE_SCRATCH);
}

static gboolean scratch_open(const char *name, const char *filename, const char *aio, VmsnapQmp *qmp, GError **error) {
    return vmsnap_qmp_run(
        qmp, error, "blockdev-add",
        "{'driver': <'qcow2'>, 'node-name': <%s>, 'discard': <'unmap'>, 'cache': <{'no-flush': true}>, "
        "'file': <{'driver': <'file'>, 'filename': <%s>, 'discard': <'unmap'>, 'aio': <%s>, "
        "'cache': <{'no-flush': true}>}>}",
        name, filename, aio);
}

/* QEMU opens what it was given, wherever that is and whoever may: no path, no mount namespace, no rights of QEMU's. */
static gboolean scratch_add(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, int scratch_fd, GError **error) {
    g_autofree char *scratch = node_name(graph, place, NODE_SCRATCH);
    g_autoptr(JsonNode) added =
        vmsnap_qmp_call_with_fd(qmp, scratch_fd, error, "add-fd", "{'opaque': <%s>}", graph->prefix);
    if (!added)
        return FALSE;
    JsonNode *id = vmsnap_json_find(vmsnap_json_as_object(added), "fdset-id", G_TYPE_INT64);
    gint64 fdset = id ? json_node_get_int(id) : -1;
    g_autofree char *filename = g_strdup_printf("/dev/fdset/%" G_GINT64_FORMAT, fdset);
    /* Its own way of waiting: requests of a scratch that hangs would take all threads that the guest's disks share. */
    gboolean done = scratch_open(scratch, filename, "io_uring", qmp, NULL) ||
                    scratch_open(scratch, filename, "threads", qmp, error);
    /* QEMU has its own copy by now, and must not keep another. */
    return vmsnap_qmp_run(qmp, done ? error : NULL, "remove-fd", "{'fdset-id': <%x>}", fdset) && done;
}

static gboolean cbw_add(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, GError **error) {
    g_autofree char *scratch = node_name(graph, place, NODE_SCRATCH);
    g_autofree char *cbw = node_name(graph, place, NODE_CBW);
    return vmsnap_qmp_run(qmp, error, "blockdev-add",
                          "{'driver': <'copy-before-write'>, 'node-name': <%s>, 'file': <%s>, 'target': <%s>, "
                          "'on-cbw-error': <'break-snapshot'>, 'cbw-timeout': <%i>, 'discard': <'unmap'>}",
                          cbw, place_of(graph, place)->node, scratch, CBW_TIMEOUT_S);
}

/* discard: what the guest discards is passed on, too, and what becomes of it is up to the node below, as before. */
#define PASS_OPTIONS "{'driver': <'raw'>, 'node-name': <%s>, 'file': <%s>, 'discard': <'unmap'>}"

static gboolean pass_add(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, GError **error) {
    g_autofree char *pass = node_name(graph, place, NODE_PASS);
    const VmsnapQmpPlace *where = place_of(graph, place);
    return vmsnap_qmp_run(qmp, error, "blockdev-add", PASS_OPTIONS, pass, where->node) &&
           vmsnap_qmp_run(qmp, error, "qom-set", "{'path': <%s>, 'property': <'drive'>, 'value': <%s>}", where->device,
                          pass);
}

gboolean vmsnap_qmp_graph_insert(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, int scratch_fd,
                                 GError **error) {
    return scratch_add(graph, place, qmp, scratch_fd, error) && cbw_add(graph, place, qmp, error) &&
           pass_add(graph, place, qmp, error);
}

gboolean vmsnap_qmp_graph_switch(const VmsnapQmpGraph *graph, VmsnapQmp *qmp, GError **error) {
    g_auto(GVariantBuilder) nodes = G_VARIANT_BUILDER_INIT(G_VARIANT_TYPE("aa{sv}"));
    for (guint i = 0; i < graph->places->len; i++) {
        g_autofree char *pass = node_name(graph, i, NODE_PASS);
        g_autofree char *cbw = node_name(graph, i, NODE_CBW);
        g_variant_builder_add_parsed(&nodes, PASS_OPTIONS, pass, cbw);
    }
    return vmsnap_qmp_run(qmp, error, "blockdev-reopen", "{'options': <%@aa{sv}>}", g_variant_builder_end(&nodes));
}

gboolean vmsnap_qmp_graph_export(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, gboolean writable,
                                 GError **error) {
    g_autofree char *access = node_name(graph, place, NODE_ACCESS);
    g_autofree char *cbw = node_name(graph, place, NODE_CBW);
    g_autofree char *scratch = node_name(graph, place, NODE_SCRATCH);
    return vmsnap_qmp_run(qmp, error, "blockdev-add",
                          "{'driver': <'snapshot-access'>, 'node-name': <%s>, 'file': <%s>, 'discard': <'unmap'>}",
                          access, cbw) &&
           vmsnap_qmp_run(qmp, error, "block-export-add",
                          "{'type': <'nbd'>, 'id': <%s>, 'node-name': <%s>, 'name': <%s>, 'writable': <%b>}", access,
                          access, place_of(graph, place)->name, writable) &&
           vmsnap_qmp_run(qmp, error, "block-export-add",
                          "{'type': <'nbd'>, 'id': <%s>, 'node-name': <%s>, 'name': <%s>}", scratch, scratch, scratch);
}

/* Returns: (transfer full): the set of the names of all nodes, or NULL */
static GHashTable *nodes_query(VmsnapQmp *qmp, GError **error) {
    g_autoptr(JsonNode) answer = vmsnap_qmp_call(qmp, error, "query-named-block-nodes", "{'flat': <true>}");
    if (!answer)
        return NULL;
    GHashTable *names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    JsonArray *list = vmsnap_json_as_array(answer);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonNode *name = vmsnap_json_find(vmsnap_json_get_object(list, i), "node-name", G_TYPE_STRING);
        if (name)
            (void)g_hash_table_add(names, g_strdup(json_node_get_string(name)));
    }
    return names;
}

/* Returns: (transfer full): the ids of exports that are there, and not just going, or with @going of all; or NULL */
static GHashTable *exports_query(VmsnapQmp *qmp, gboolean going, GError **error) {
    g_autoptr(JsonNode) answer = vmsnap_qmp_call(qmp, error, "query-block-exports", NULL);
    if (!answer)
        return NULL;
    GHashTable *ids = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    JsonArray *list = vmsnap_json_as_array(answer);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *object = vmsnap_json_get_object(list, i);
        JsonNode *id = vmsnap_json_find(object, "id", G_TYPE_STRING);
        JsonNode *shutting = vmsnap_json_find(object, "shutting-down", G_TYPE_BOOLEAN);
        if (id && (going || !(shutting && json_node_get_boolean(shutting))))
            (void)g_hash_table_add(ids, g_strdup(json_node_get_string(id)));
    }
    return ids;
}

typedef gboolean (*ExportFunc)(const char *id, GHashTable *ids, VmsnapQmp *qmp, GError **error);

/* Returns: FALSE as soon as @func does, for one of our exports */
static gboolean exports_each(const VmsnapQmpGraph *graph, GHashTable *ids, VmsnapQmp *qmp, ExportFunc func,
                             GError **error) {
    for (guint i = 0; i < graph->places->len * G_N_ELEMENTS(exported); i++) {
        g_autofree char *id = node_name(graph, i / G_N_ELEMENTS(exported), exported[i % G_N_ELEMENTS(exported)]);
        if (!func(id, ids, qmp, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean export_delete(const char *id, GHashTable *ids, VmsnapQmp *qmp, GError **error) {
    return !g_hash_table_contains(ids, id) ||
           vmsnap_qmp_run(qmp, error, "block-export-del", "{'id': <%s>, 'mode': <'hard'>}", id);
}

static gboolean export_is_gone(const char *id, GHashTable *ids, VmsnapQmp *qmp, GError **error) {
    (void)qmp;
    (void)error;
    return !g_hash_table_contains(ids, id);
}

/* An export is gone a little after it was deleted, when its connections are. */
static gboolean exports_remove(const VmsnapQmpGraph *graph, VmsnapQmp *qmp, GError **error) {
    g_autoptr(GHashTable) there = exports_query(qmp, FALSE, error);
    if (!there || !exports_each(graph, there, qmp, export_delete, error))
        return FALSE;
    for (unsigned i = 0; i < EXPORT_GONE_TRIES; i++) {
        g_autoptr(GHashTable) ids = exports_query(qmp, TRUE, error);
        if (!ids)
            return FALSE;
        if (exports_each(graph, ids, qmp, export_is_gone, NULL))
            return TRUE;
        g_usleep(EXPORT_GONE_PAUSE_US);
    }
    g_set_error_literal(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_REFUSED, "the exports do not go");
    return FALSE;
}

static gboolean node_delete(const VmsnapQmpGraph *graph, guint place, NodeKind kind, GHashTable *nodes, VmsnapQmp *qmp,
                            GError **error) {
    g_autofree char *name = node_name(graph, place, kind);
    return !g_hash_table_contains(nodes, name) ||
           vmsnap_qmp_run(qmp, error, "blockdev-del", "{'node-name': <%s>}", name);
}

/*
 * Lets the guest's way pass by copy-before-write, and then by "pass". What is below copy-before-write may be another
 * node than at the beginning, such as an overlay that somebody has put on the old one. And what somebody has put
 * between the device and "pass", an overlay or the filter of a job, must stay in the way: then so does "pass".
 */
static gboolean device_restore(const VmsnapQmpGraph *graph, guint place, VmsnapQmp *qmp, GError **error) {
    const VmsnapQmpPlace *where = place_of(graph, place);
    g_autofree char *pass = node_name(graph, place, NODE_PASS);
    g_autofree char *cbw = node_name(graph, place, NODE_CBW);
    g_autoptr(JsonNode) before = vmsnap_qmp_call(qmp, error, "x-debug-query-block-graph", NULL);
    if (!before)
        return FALSE;
    const char *passed_to = vmsnap_qmp_find_child(before, pass);
    gboolean is_switched = g_strcmp0(passed_to, cbw) == 0;
    const char *below = vmsnap_qmp_find_child(before, is_switched ? cbw : pass);
    if (!below)
        below = where->node;
    /* A try after another would hold up the guest's requests for nothing. */
    if (is_switched && !vmsnap_qmp_run(qmp, error, "blockdev-reopen", "{'options': <[" PASS_OPTIONS "]>}", pass, below))
        return FALSE;
    g_autoptr(JsonNode) blocks = vmsnap_qmp_call(qmp, error, "query-block", NULL);
    g_autoptr(JsonNode) now = blocks ? vmsnap_qmp_call(qmp, error, "x-debug-query-block-graph", NULL) : NULL;
    if (!now)
        return FALSE;
    gboolean has_pass = g_strcmp0(vmsnap_qmp_find_node(blocks, where->device), pass) == 0;
    return !has_pass || !vmsnap_qmp_is_root(now, pass) ||
           vmsnap_qmp_run(qmp, error, "qom-set", "{'path': <%s>, 'property': <'drive'>, 'value': <%s>}", where->device,
                          below);
}

/* What somebody uses cannot be deleted; scratch is not among that, and its room goes back. */
static gboolean place_remove(const VmsnapQmpGraph *graph, guint place, GHashTable *nodes, VmsnapQmp *qmp,
                             GError **error) {
    g_autofree char *pass = node_name(graph, place, NODE_PASS);
    if (!node_delete(graph, place, NODE_ACCESS, nodes, qmp, error) ||
        (g_hash_table_contains(nodes, pass) && !device_restore(graph, place, qmp, error)))
        return FALSE;
    gboolean deleted = node_delete(graph, place, NODE_PASS, nodes, qmp, error);
    GError **next_error = deleted ? error : NULL;
    return node_delete(graph, place, NODE_CBW, nodes, qmp, next_error) &&
           node_delete(graph, place, NODE_SCRATCH, nodes, qmp, next_error) && deleted;
}

static gboolean is_ours(const VmsnapQmpGraph *graph, JsonObject *fd) {
    JsonNode *opaque = vmsnap_json_find(fd, "opaque", G_TYPE_STRING);
    return opaque && g_str_equal(json_node_get_string(opaque), graph->prefix);
}

/* Of a set that somebody was killed over before he could let QEMU forget it: there is one descriptor in it. */
static gboolean fdset_remove(const VmsnapQmpGraph *graph, JsonObject *set, VmsnapQmp *qmp, GError **error) {
    JsonNode *id = vmsnap_json_find(set, "fdset-id", G_TYPE_INT64);
    JsonArray *list = vmsnap_json_as_array(vmsnap_json_find_any(set, "fds"));
    if (!id || json_array_get_length(list) == 0 || !is_ours(graph, vmsnap_json_get_object(list, 0)))
        return TRUE;
    return vmsnap_qmp_run(qmp, error, "remove-fd", "{'fdset-id': <%x>}", json_node_get_int(id));
}

static gboolean fdsets_remove(const VmsnapQmpGraph *graph, VmsnapQmp *qmp, GError **error) {
    g_autoptr(JsonNode) sets = vmsnap_qmp_call(qmp, error, "query-fdsets", NULL);
    JsonArray *list = vmsnap_json_as_array(sets);
    gboolean removed = sets != NULL;
    for (guint i = 0; removed && i < json_array_get_length(list); i++)
        removed = fdset_remove(graph, vmsnap_json_get_object(list, i), qmp, error);
    return removed;
}

/* Over a monitor that is lost, each command more would only take its time. */
static gboolean is_lost(const GError *error) {
    return g_error_matches(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_LOST);
}

gboolean vmsnap_qmp_graph_remove(const VmsnapQmpGraph *graph, VmsnapQmp *qmp, GError **error) {
    g_autoptr(GError) first_error = NULL;
    g_autoptr(GHashTable) nodes = nodes_query(qmp, &first_error);
    if (nodes)
        (void)exports_remove(graph, qmp, &first_error);
    for (guint i = 0; nodes && !is_lost(first_error) && i < graph->places->len; i++)
        (void)place_remove(graph, i, nodes, qmp, first_error ? NULL : &first_error);
    if (nodes && !is_lost(first_error))
        (void)fdsets_remove(graph, qmp, first_error ? NULL : &first_error);
    if (!first_error)
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&first_error));
    return FALSE;
}

void vmsnap_qmp_graph_sync_images(const VmsnapQmpGraph *graph, unsigned timeout_ms) {
    g_autoptr(GPtrArray) paths = g_ptr_array_new();
    for (guint i = 0; i < graph->places->len; i++)
        if (place_of(graph, i)->image)
            g_ptr_array_add(paths, place_of(graph, i)->image);
    vmsnap_images_sync(paths, timeout_ms);
}
