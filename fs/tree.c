/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The nodes stand in one array, and their place in it is the number that the kernel knows them by. The inode number
 * that people see is another one: it is derived from the machine and the path, so that tools which remember files by
 * inode (borg, tar --listed-incremental) find the same file in the next snapshot.
 */
#include "tree.h"

struct VmsnapTree {
    char *identity;
    GPtrArray *nodes; /* of VmsnapNode, owned; the node of id N stands at N - 1 */
};

static void node_free(gpointer data) {
    VmsnapNode *node = data;
    if (node->children)
        g_ptr_array_unref(node->children);
    vmsnap_layout_free(node->layout);
    g_free(node->name);
    g_free(node);
}

/*
 * 63 bits of a hash: some tools take inode numbers for signed. 0 and 1 are not for us: "none" and FUSE's root. The
 * parent's number stands for the whole path to it.
 */
static uint64_t inode_derive(const char *identity, const VmsnapNode *parent, const char *name) {
    uint64_t parent_inode = parent ? parent->inode : 0;
    g_autofree char *path = g_strdup_printf("%s/%" G_GUINT64_FORMAT "/%s", identity, parent_inode, name);
    g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, path, -1);
    digest[16] = '\0';
    uint64_t inode = g_ascii_strtoull(digest, NULL, 16) >> 1;
    return MAX(inode, VMSNAP_TREE_ROOT_ID + 1);
}

static VmsnapNode *tree_add(VmsnapTree *tree, VmsnapNode *parent, const char *name) {
    VmsnapNode *node = g_new0(VmsnapNode, 1);
    node->inode = inode_derive(tree->identity, parent, name);
    node->parent = parent ? parent : node;
    node->name = g_strdup(name);
    g_ptr_array_add(tree->nodes, node);
    node->id = tree->nodes->len;
    if (parent)
        g_ptr_array_add(parent->children, node);
    return node;
}

VmsnapTree *vmsnap_tree_new(const char *identity) {
    VmsnapTree *tree = g_new0(VmsnapTree, 1);
    tree->identity = g_strdup(identity);
    tree->nodes = g_ptr_array_new_with_free_func(node_free);
    (void)vmsnap_tree_add_directory(tree, NULL, "", FALSE);
    return tree;
}

void vmsnap_tree_free(VmsnapTree *tree) {
    if (!tree)
        return;
    g_ptr_array_unref(tree->nodes);
    g_free(tree->identity);
    g_free(tree);
}

VmsnapNode *vmsnap_tree_add_directory(VmsnapTree *tree, VmsnapNode *parent, const char *name, gboolean hidden) {
    VmsnapNode *node = tree_add(tree, parent, name);
    node->hidden = hidden;
    node->children = g_ptr_array_new();
    return node;
}

VmsnapNode *vmsnap_tree_add_file(VmsnapTree *tree, VmsnapNode *parent, const char *name, VmsnapLayout *layout) {
    VmsnapNode *node = tree_add(tree, parent, name);
    node->layout = layout;
    node->disk = layout->disk ? layout->disk->disk : NULL;
    return node;
}

VmsnapNode *vmsnap_tree_add_live_file(VmsnapTree *tree, VmsnapNode *parent, const char *name,
                                      VmsnapGenerateFunc generate, VmsnapStoreFunc store, gpointer live_data) {
    VmsnapNode *node = tree_add(tree, parent, name);
    node->generate = generate;
    node->store = store;
    node->live_data = live_data;
    return node;
}

VmsnapNode *vmsnap_tree_get(const VmsnapTree *tree, uint64_t id) {
    return id >= VMSNAP_TREE_ROOT_ID && id <= tree->nodes->len ? g_ptr_array_index(tree->nodes, id - 1) : NULL;
}

VmsnapNode *vmsnap_tree_lookup(const VmsnapNode *parent, const char *name) {
    for (guint i = 0; i < parent->children->len; i++) {
        VmsnapNode *child = g_ptr_array_index(parent->children, i);
        if (g_str_equal(child->name, name))
            return child;
    }
    return NULL;
}

guint vmsnap_tree_count(const VmsnapTree *tree) {
    return tree->nodes->len;
}

uint64_t vmsnap_tree_total_bytes(const VmsnapTree *tree) {
    uint64_t total = 0;
    for (guint i = 0; i < tree->nodes->len; i++) {
        const VmsnapNode *node = g_ptr_array_index(tree->nodes, i);
        total += node->layout ? node->layout->size_bytes : 0;
    }
    return total;
}
