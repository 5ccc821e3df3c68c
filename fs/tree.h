/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The directories and files of the mount. Built once and frozen before the first request, so that look-ups need no
 * lock. */
#pragma once

#include "layout.h"

#define VMSNAP_TREE_ROOT_ID 1

/** Makes the content of a live file as of now; returns it (transfer full). Any thread. */
typedef GBytes *(*VmsnapGenerateFunc)(gpointer user_data);

/** Takes what somebody wrote into a live file; returns 0 or -errno. Any thread; must not block. */
typedef int (*VmsnapStoreFunc)(const char *text, gpointer user_data);

/** A directory, a file of a layout, or a live file whose content is made at each open. Immutable once built. */
typedef struct VmsnapNode VmsnapNode;
struct VmsnapNode {
    uint64_t id;    /* its place in the tree, from VMSNAP_TREE_ROOT_ID on */
    uint64_t inode; /* the same in each snapshot of the same machine */
    VmsnapNode *parent;
    char *name;
    gboolean hidden;             /* found by name, not listed */
    GPtrArray *children;         /* directories: of VmsnapNode, not owned */
    VmsnapLayout *layout;        /* files with fixed content: owned */
    VmsnapDisk *disk;            /* files of one disk */
    int64_t modified_ns;         /* when it was changed last; 0: at the instant */
    const VmsnapDiskView *map;   /* live files that tell the map of a disk, which must be complete, or NULL */
    VmsnapGenerateFunc generate; /* live files */
    VmsnapStoreFunc store;       /* live files that take orders, from who made the mount alone */
    gpointer live_data;          /* for both */
};

typedef struct VmsnapTree VmsnapTree;

/**
 * vmsnap_tree_new:
 * @identity: what inode numbers are derived from: the machine's uuid
 *
 * Returns: a tree with an empty root.
 */
VmsnapTree *vmsnap_tree_new(const char *identity);
void vmsnap_tree_free(VmsnapTree *tree);

VmsnapNode *vmsnap_tree_add_directory(VmsnapTree *tree, VmsnapNode *parent, const char *name, gboolean hidden);

/**
 * vmsnap_tree_add_file:
 * @layout: (transfer full)
 */
VmsnapNode *vmsnap_tree_add_file(VmsnapTree *tree, VmsnapNode *parent, const char *name, VmsnapLayout *layout);

/**
 * vmsnap_tree_add_live_file:
 * @store: or NULL for a file that cannot be written
 * @live_data: must outlive the tree
 */
VmsnapNode *vmsnap_tree_add_live_file(VmsnapTree *tree, VmsnapNode *parent, const char *name,
                                      VmsnapGenerateFunc generate, VmsnapStoreFunc store, gpointer live_data);

/** Returns: the node, or NULL where there is none of that number. */
VmsnapNode *vmsnap_tree_get(const VmsnapTree *tree, uint64_t id);

/** Returns: the child of @parent of that name, hidden ones too, or NULL. */
VmsnapNode *vmsnap_tree_lookup(const VmsnapNode *parent, const char *name);

guint vmsnap_tree_count(const VmsnapTree *tree);

/** Returns: the sizes of all files with fixed content together. */
uint64_t vmsnap_tree_total_bytes(const VmsnapTree *tree);

static inline gboolean vmsnap_node_is_directory(const VmsnapNode *node) {
    return node->children != NULL;
}
