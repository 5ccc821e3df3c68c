/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The extents of a disk as clusters, which are what compact formats store: a cluster is data if any byte of it is, and
 * changed if any byte of it is dirty. Tells how many clusters of changed data lie before a place, which is where the
 * format has put them, and the other way round.
 */
#pragma once

#include "extent_map.h"

typedef struct VmsnapClusterMap VmsnapClusterMap;

typedef enum {
    VMSNAP_CLUSTER_DATA,  /* changed, and not all zeroes */
    VMSNAP_CLUSTER_ZERO,  /* changed, and all zeroes */
    VMSNAP_CLUSTER_CLEAN, /* not changed */
} VmsnapClusterKind;

/** Clusters of one kind in a row; the next run may be of the same kind. */
typedef struct {
    uint64_t first;
    uint64_t length;
    uint64_t rank; /* how many clusters of data lie before the first one */
    VmsnapClusterKind kind;
} VmsnapClusterRun;

/**
 * vmsnap_cluster_map_new:
 * @content: complete, at least where something has changed; must outlive the cluster map
 * @changes: complete; must outlive it, too; or NULL if all has changed
 * @cluster_bytes: the last cluster of the disk may be shorter
 *
 * Takes time that grows with the extents. Returns: a map that uses at most 8 MiB beside the extents, and never changes.
 */
VmsnapClusterMap *vmsnap_cluster_map_new(const VmsnapExtentMap *content, const VmsnapExtentMap *changes,
                                         uint64_t cluster_bytes);

/** NULL-safe. */
void vmsnap_cluster_map_free(VmsnapClusterMap *map);

/** Returns: how many clusters the disk has. */
uint64_t vmsnap_cluster_map_get_count(const VmsnapClusterMap *map);

/** Returns: how many of them are data. */
uint64_t vmsnap_cluster_map_get_data_count(const VmsnapClusterMap *map);

/**
 * vmsnap_cluster_map_find:
 * @cluster: less than the count
 *
 * Gives a run that begins with @cluster.
 */
void vmsnap_cluster_map_find(const VmsnapClusterMap *map, uint64_t cluster, VmsnapClusterRun *ret_run);

/**
 * vmsnap_cluster_map_advance:
 * @run: not the last one; becomes the one that follows it, which is cheaper than to find that
 */
void vmsnap_cluster_map_advance(const VmsnapClusterMap *map, VmsnapClusterRun *run);

/**
 * vmsnap_cluster_map_select:
 * @rank: less than the count of data
 *
 * Gives a run that begins with that cluster of data which has @rank others before it.
 */
void vmsnap_cluster_map_select(const VmsnapClusterMap *map, uint64_t rank, VmsnapClusterRun *ret_run);

/** Returns: how many clusters of data lie before @cluster, which may be the count. */
uint64_t vmsnap_cluster_map_rank(const VmsnapClusterMap *map, uint64_t cluster);
