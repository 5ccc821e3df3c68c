/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "json_mutations.h"

static const char *const replacements[] = {
    "null",  "true", "0",    "-1", "9223372036854775807", "0.5", "\"\"", "\"../x\"",
    "\"x\"", "[]",   "[[]]", "{}", "{\"a\": 1}",
};
/* One more way is to leave it out. */
#define N_WAYS (G_N_ELEMENTS(replacements) + 1)

/* Which node is to be changed, and how. */
typedef struct {
    guint nodes_before;
    guint way;
    gboolean done;
} Mutation;

static JsonNode *parse(const char *text) {
    g_autoptr(GError) error = NULL;
    JsonNode *node = json_from_string(text, &error);
    g_assert_no_error(error);
    return node;
}

/* Returns: whether it is this node's turn. */
static gboolean reaches(Mutation *mutation) {
    if (mutation->done)
        return FALSE;
    mutation->done = mutation->nodes_before == 0;
    mutation->nodes_before--;
    return mutation->done;
}

static void node_mutate(JsonNode *node, Mutation *mutation);

static void object_mutate(JsonObject *object, Mutation *mutation) {
    g_autoptr(GList) names = json_object_get_members(object);
    for (GList *name = names; name && !mutation->done; name = name->next) {
        if (!reaches(mutation))
            node_mutate(json_object_get_member(object, name->data), mutation);
        else if (mutation->way < G_N_ELEMENTS(replacements))
            json_object_set_member(object, name->data, parse(replacements[mutation->way]));
        else
            json_object_remove_member(object, name->data);
    }
}

/* An element is replaced by a new array, since json-glib cannot replace one. */
static void array_mutate(JsonNode *node, Mutation *mutation) {
    JsonArray *array = json_node_get_array(node), *changed = json_array_new();
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *element = json_array_get_element(array, i);
        if (!reaches(mutation)) {
            node_mutate(element, mutation);
            json_array_add_element(changed, json_node_copy(element));
        } else if (mutation->way < G_N_ELEMENTS(replacements)) {
            json_array_add_element(changed, parse(replacements[mutation->way]));
        }
    }
    json_node_take_array(node, changed);
}

static void node_mutate(JsonNode *node, Mutation *mutation) {
    if (JSON_NODE_HOLDS_OBJECT(node))
        object_mutate(json_node_get_object(node), mutation);
    else if (JSON_NODE_HOLDS_ARRAY(node))
        array_mutate(node, mutation);
}

guint json_mutate(const char *text, JsonMutationFunc func, gconstpointer data) {
    g_autoptr(JsonNode) good = parse(text);
    guint n_calls = 1;
    func(good, data);
    for (size_t way = 0; way < G_N_ELEMENTS(replacements); way++, n_calls++) {
        g_autoptr(JsonNode) other = parse(replacements[way]);
        func(other, data);
    }
    Mutation mutation = {.done = TRUE};
    for (guint place = 0; mutation.done; place++) {
        for (guint way = 0; way < N_WAYS; way++) {
            g_autoptr(JsonNode) changed = parse(text);
            mutation = (Mutation){.nodes_before = place, .way = way};
            node_mutate(changed, &mutation);
            if (!mutation.done)
                break;
            func(changed, data);
            n_calls++;
        }
    }
    return n_calls;
}
