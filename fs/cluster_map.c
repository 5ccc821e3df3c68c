/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rank is kept for every so many clusters, a step; from there the runs are walked. A step grows with the disk, so
 * that the memory is bounded, and so is the walk, since the extents are.
 */
#include "cluster_map.h"

#include "bytes.h"

#define MIN_STEP 16
#define MAX_SAMPLES (UINT64_C(1) << 20)

struct VmsnapClusterMap {
    const VmsnapExtentMap *content;
    const VmsnapExtentMap *changes; /* or NULL */
    uint64_t size_bytes;
    uint64_t cluster_bytes;
    uint64_t n_clusters;
    uint64_t n_data;
    uint64_t step;      /* in clusters */
    uint64_t n_samples; /* one for the beginning of each step */
    uint64_t *samples;  /* ranks */
};

/* Returns: the first offset of data that a walk from @offset comes to, at or after @limit if there is none before. */
static uint64_t find_data(const VmsnapExtentMap *extents, uint64_t offset, uint64_t limit, uint64_t *ret_length) {
    VmsnapExtentKind kind = VMSNAP_EXTENT_DATA;
    while (offset < limit) {
        gboolean known = vmsnap_extent_map_lookup(extents, offset, &kind, ret_length);
        g_assert(known);
        if (kind == VMSNAP_EXTENT_DATA)
            break;
        offset += *ret_length;
    }
    return offset;
}

/* Returns: whether any byte of a cluster is data, or dirty. @ret_end: the cluster up to which that is so, at least */
static gboolean has_data(const VmsnapClusterMap *map, const VmsnapExtentMap *extents, uint64_t first,
                         uint64_t *ret_end) {
    uint64_t offset = first * map->cluster_bytes;
    uint64_t first_end = MIN(offset + map->cluster_bytes, map->size_bytes), length = 0;
    uint64_t data = find_data(extents, offset, first_end, &length);
    if (data < first_end)
        *ret_end = vmsnap_divide_up(data + length, map->cluster_bytes);
    else
        *ret_end = data == map->size_bytes ? map->n_clusters : data / map->cluster_bytes;
    return data < first_end;
}

/* Fills in the kind and length of a run whose first cluster and rank are given. */
static void run_measure(const VmsnapClusterMap *map, VmsnapClusterRun *run) {
    uint64_t changes_end = map->n_clusters, content_end = map->n_clusters;
    if (map->changes && !has_data(map, map->changes, run->first, &changes_end))
        run->kind = VMSNAP_CLUSTER_CLEAN;
    else if (has_data(map, map->content, run->first, &content_end))
        run->kind = VMSNAP_CLUSTER_DATA;
    else
        run->kind = VMSNAP_CLUSTER_ZERO;
    run->length = MIN(changes_end, content_end) - run->first;
}

/* Returns: how many of the first clusters of a run are data. */
static uint64_t count_data(const VmsnapClusterRun *run, uint64_t n_clusters) {
    return run->kind == VMSNAP_CLUSTER_DATA ? n_clusters : 0;
}

static void run_cut_front(VmsnapClusterRun *run, uint64_t n_clusters) {
    run->first += n_clusters;
    run->length -= n_clusters;
    run->rank += count_data(run, n_clusters);
}

/* Notes the ranks of the steps that begin inside a run. */
static void take_samples(VmsnapClusterMap *map, const VmsnapClusterRun *run) {
    uint64_t end = run->first + run->length;
    for (uint64_t i = vmsnap_divide_up(run->first, map->step); i * map->step < end; i++)
        map->samples[i] = run->rank + count_data(run, i * map->step - run->first);
}

VmsnapClusterMap *vmsnap_cluster_map_new(const VmsnapExtentMap *content, const VmsnapExtentMap *changes,
                                         uint64_t cluster_bytes) {
    VmsnapClusterMap *map = g_new0(VmsnapClusterMap, 1);
    map->content = content;
    map->changes = changes;
    map->size_bytes = vmsnap_extent_map_get_size(content);
    map->cluster_bytes = cluster_bytes;
    map->n_clusters = vmsnap_divide_up(map->size_bytes, cluster_bytes);
    map->step = MAX(MIN_STEP, vmsnap_divide_up(map->n_clusters, MAX_SAMPLES));
    map->n_samples = vmsnap_divide_up(map->n_clusters, map->step);
    map->samples = g_new(uint64_t, map->n_samples);
    VmsnapClusterRun run = {0};
    while (run.first < map->n_clusters) {
        run_measure(map, &run);
        take_samples(map, &run);
        run_cut_front(&run, run.length);
    }
    map->n_data = run.rank;
    return map;
}

void vmsnap_cluster_map_free(VmsnapClusterMap *map) {
    if (!map)
        return;
    g_free(map->samples);
    g_free(map);
}

uint64_t vmsnap_cluster_map_get_count(const VmsnapClusterMap *map) {
    return map->n_clusters;
}

uint64_t vmsnap_cluster_map_get_data_count(const VmsnapClusterMap *map) {
    return map->n_data;
}

void vmsnap_cluster_map_advance(const VmsnapClusterMap *map, VmsnapClusterRun *run) {
    run_cut_front(run, run->length);
    g_assert(run->first < map->n_clusters);
    run_measure(map, run);
}

static void run_begin(const VmsnapClusterMap *map, uint64_t sample, VmsnapClusterRun *ret_run) {
    *ret_run = (VmsnapClusterRun){.first = sample * map->step, .rank = map->samples[sample]};
    run_measure(map, ret_run);
}

void vmsnap_cluster_map_find(const VmsnapClusterMap *map, uint64_t cluster, VmsnapClusterRun *ret_run) {
    g_assert(cluster < map->n_clusters);
    run_begin(map, cluster / map->step, ret_run);
    while (cluster - ret_run->first >= ret_run->length)
        vmsnap_cluster_map_advance(map, ret_run);
    run_cut_front(ret_run, cluster - ret_run->first);
}

/* Returns: the last sample that is not more than @rank. */
static uint64_t find_sample(const VmsnapClusterMap *map, uint64_t rank) {
    uint64_t low = 0, high = map->n_samples;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (map->samples[middle] <= rank)
            low = middle;
        else
            high = middle;
    }
    return low;
}

void vmsnap_cluster_map_select(const VmsnapClusterMap *map, uint64_t rank, VmsnapClusterRun *ret_run) {
    g_assert(rank < map->n_data);
    run_begin(map, find_sample(map, rank), ret_run);
    while (ret_run->kind != VMSNAP_CLUSTER_DATA || rank - ret_run->rank >= ret_run->length)
        vmsnap_cluster_map_advance(map, ret_run);
    run_cut_front(ret_run, rank - ret_run->rank);
}

uint64_t vmsnap_cluster_map_rank(const VmsnapClusterMap *map, uint64_t cluster) {
    if (cluster == map->n_clusters)
        return map->n_data;
    VmsnapClusterRun run;
    vmsnap_cluster_map_find(map, cluster, &run);
    return run.rank;
}
