/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tree: ids, names, and inode numbers that tools remember from one snapshot to the next. */
#include "fs/tree.h"

#include <errno.h>
#include <string.h>

#define MACHINE_A "11111111-2222-4333-8444-555555555555"
#define MACHINE_B "11111111-2222-4333-8444-555555555556"

static GBytes *generate(gpointer user_data) {
    return g_bytes_new(user_data, strlen(user_data) + 1);
}

static VmsnapLayout *memory_layout(const char *text) {
    g_autoptr(GBytes) content = g_bytes_new(text, strlen(text));
    return vmsnap_layout_new_memory(content);
}

static VmsnapNode *add_file(VmsnapTree *tree, VmsnapNode *directory, const char *name) {
    return vmsnap_tree_add_file(tree, directory, name, memory_layout(name));
}

static VmsnapNode *root_of(const VmsnapTree *tree) {
    return vmsnap_tree_get(tree, VMSNAP_TREE_ROOT_ID);
}

static void test_a_new_tree_has_an_empty_root(void) {
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    VmsnapNode *root = root_of(tree);
    g_assert_cmpuint(vmsnap_tree_count(tree), ==, 1);
    g_assert_true(vmsnap_node_is_directory(root));
    g_assert_true(root->parent == root);
    g_assert_false(root->hidden);
    g_assert_cmpuint(root->children->len, ==, 0);
    vmsnap_tree_free(tree);
}

static void test_nodes_are_found_by_id_and_nothing_else_is(void) {
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    for (int i = 0; i < 100; i++) {
        g_autofree char *name = g_strdup_printf("file%d", i);
        VmsnapNode *node = add_file(tree, root_of(tree), name);
        g_assert_true(vmsnap_tree_get(tree, node->id) == node);
    }
    g_assert_cmpuint(vmsnap_tree_count(tree), ==, 101);
    g_assert_null(vmsnap_tree_get(tree, 0));
    g_assert_null(vmsnap_tree_get(tree, 102));
    g_assert_null(vmsnap_tree_get(tree, UINT64_MAX));
    vmsnap_tree_free(tree);
}

static void test_lookup_finds_hidden_ones_and_no_others(void) {
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    VmsnapNode *hidden = vmsnap_tree_add_directory(tree, root_of(tree), ".vmsnap", TRUE);
    VmsnapNode *file = add_file(tree, root_of(tree), "vda.raw");
    VmsnapNode *live = vmsnap_tree_add_live_file(tree, hidden, "status", generate, NULL, (gpointer) "fine");
    g_assert_true(hidden->hidden);
    g_assert_true(vmsnap_tree_lookup(root_of(tree), ".vmsnap") == hidden);
    g_assert_true(vmsnap_tree_lookup(root_of(tree), "vda.raw") == file);
    g_assert_true(vmsnap_tree_lookup(hidden, "status") == live);
    g_assert_null(vmsnap_tree_lookup(root_of(tree), "status"));
    g_assert_null(vmsnap_tree_lookup(hidden, "vda.raw"));
    g_assert_null(vmsnap_tree_lookup(root_of(tree), "vda.ra"));
    g_assert_null(vmsnap_tree_lookup(root_of(tree), ""));
    vmsnap_tree_free(tree);
}

static void test_live_files_are_made_when_asked(void) {
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    VmsnapNode *live = vmsnap_tree_add_live_file(tree, root_of(tree), "status", generate, NULL, (gpointer) "fine");
    g_autoptr(GBytes) bytes = live->generate(live->live_data);
    const char *content = g_bytes_get_data(bytes, NULL);
    g_assert_cmpstr(content, ==, "fine");
    g_assert_null(live->layout);
    g_assert_false(vmsnap_node_is_directory(live));
    vmsnap_tree_free(tree);
}

static int store(const char *text, gpointer user_data) {
    g_string_assign(user_data, text);
    return -ERANGE;
}

static void test_live_files_that_take_orders_hand_them_on(void) {
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    g_autoptr(GString) stored = g_string_new("nothing");
    VmsnapNode *deaf = vmsnap_tree_add_live_file(tree, root_of(tree), "status", generate, NULL, (gpointer) "fine");
    VmsnapNode *live = vmsnap_tree_add_live_file(tree, root_of(tree), "speed", generate, store, stored);
    g_assert_null(deaf->store);
    g_assert_null(root_of(tree)->store);
    g_assert_null(add_file(tree, root_of(tree), "vda.raw")->store);
    g_assert_cmpint(live->store("50M", live->live_data), ==, -ERANGE);
    g_assert_cmpstr(stored->str, ==, "50M");
    vmsnap_tree_free(tree);
}

static void test_total_is_the_fixed_content(void) {
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    VmsnapNode *directory = vmsnap_tree_add_directory(tree, root_of(tree), "sub", FALSE);
    (void)add_file(tree, root_of(tree), "12345");
    (void)add_file(tree, directory, "123");
    (void)vmsnap_tree_add_live_file(tree, directory, "live", generate, NULL, (gpointer) "not counted");
    g_assert_cmpuint(vmsnap_tree_total_bytes(tree), ==, 8);
    vmsnap_tree_free(tree);
}

static const char *const names[] = {"vda.raw", "vdb.raw", "domain.xml", "manifest.json", "vda.ra", "w", "status"};

/* Builds the same tree in another order, with other files beside. */
static VmsnapTree *build(const char *identity, gboolean backwards) {
    VmsnapTree *tree = vmsnap_tree_new(identity);
    if (backwards)
        (void)add_file(tree, root_of(tree), "something else");
    VmsnapNode *directory = vmsnap_tree_add_directory(tree, root_of(tree), ".vmsnap", TRUE);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        (void)add_file(tree, root_of(tree), names[backwards ? G_N_ELEMENTS(names) - 1 - i : i]);
        (void)add_file(tree, directory, names[i]);
    }
    return tree;
}

static void test_inodes_stay_from_one_snapshot_to_the_next(void) {
    VmsnapTree *one = build(MACHINE_A, FALSE), *other = build(MACHINE_A, TRUE);
    VmsnapNode *hidden_one = vmsnap_tree_lookup(root_of(one), ".vmsnap");
    VmsnapNode *hidden_other = vmsnap_tree_lookup(root_of(other), ".vmsnap");
    g_assert_cmpuint(root_of(one)->inode, ==, root_of(other)->inode);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_assert_cmpuint(vmsnap_tree_lookup(root_of(one), names[i])->inode, ==,
                         vmsnap_tree_lookup(root_of(other), names[i])->inode);
        g_assert_cmpuint(vmsnap_tree_lookup(hidden_one, names[i])->inode, ==,
                         vmsnap_tree_lookup(hidden_other, names[i])->inode);
    }
    vmsnap_tree_free(one);
    vmsnap_tree_free(other);
}

static void add_inodes(GHashTable *inodes, const VmsnapTree *tree) {
    for (uint64_t id = 1; id <= vmsnap_tree_count(tree); id++) {
        const VmsnapNode *node = vmsnap_tree_get(tree, id);
        g_assert_cmpuint(node->inode, >, 1);
        g_assert_cmpuint(node->inode, <=, INT64_MAX);
        g_assert_true(g_hash_table_add(inodes, (gpointer)&node->inode));
    }
}

static void test_inodes_differ_between_paths_and_machines(void) {
    g_autoptr(GHashTable) inodes = g_hash_table_new(g_int64_hash, g_int64_equal);
    VmsnapTree *a = build(MACHINE_A, FALSE), *b = build(MACHINE_B, FALSE);
    add_inodes(inodes, a);
    add_inodes(inodes, b);
    vmsnap_tree_free(a);
    vmsnap_tree_free(b);
}

static void test_inodes_differ_below_directories_of_one_name(void) {
    g_autoptr(GHashTable) inodes = g_hash_table_new(g_int64_hash, g_int64_equal);
    VmsnapTree *tree = vmsnap_tree_new(MACHINE_A);
    VmsnapNode *hidden = vmsnap_tree_add_directory(tree, root_of(tree), ".vmsnap", TRUE);
    VmsnapNode *map = vmsnap_tree_add_directory(tree, root_of(tree), "map", FALSE);
    VmsnapNode *hidden_map = vmsnap_tree_add_directory(tree, hidden, "map", FALSE);
    (void)add_file(tree, map, "vda.json");
    (void)add_file(tree, hidden_map, "vda.json");
    add_inodes(inodes, tree);
    vmsnap_tree_free(tree);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tree/a-new-tree-has-an-empty-root", test_a_new_tree_has_an_empty_root);
    g_test_add_func("/tree/nodes-are-found-by-id-and-nothing-else-is", test_nodes_are_found_by_id_and_nothing_else_is);
    g_test_add_func("/tree/lookup-finds-hidden-ones-and-no-others", test_lookup_finds_hidden_ones_and_no_others);
    g_test_add_func("/tree/live-files-are-made-when-asked", test_live_files_are_made_when_asked);
    g_test_add_func("/tree/live-files-that-take-orders-hand-them-on", test_live_files_that_take_orders_hand_them_on);
    g_test_add_func("/tree/total-is-the-fixed-content", test_total_is_the_fixed_content);
    g_test_add_func("/tree/inodes-stay-from-one-snapshot-to-the-next", test_inodes_stay_from_one_snapshot_to_the_next);
    g_test_add_func("/tree/inodes-differ-between-paths-and-machines", test_inodes_differ_between_paths_and_machines);
    g_test_add_func("/tree/inodes-differ-below-directories-of-one-name",
                    test_inodes_differ_below_directories_of_one_name);
    return g_test_run();
}
