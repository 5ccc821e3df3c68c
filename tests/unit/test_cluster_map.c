/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Clusters of any extents, and of any changes, against a count that walks the plain lists of them. */
#include "fs/cluster_map.h"

#include "extents.h"

#include <time.h>

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES
#define MAX_MEMORY_BYTES ((size_t)48 << 20)
#define TIB(n) ((uint64_t)(n) << 40)
#define GIB(n) ((uint64_t)(n) << 30)
#define MIB(n) ((uint64_t)(n) << 20)
/* What no healthy machine needs, however busy it is, for what should take some milliseconds. */
/* Of the processor: what other programs do meanwhile does not count. */
#define MAX_SECONDS 20

typedef struct {
    GArray *extents;
    GArray *changes; /* or NULL */
    uint64_t size;
    uint64_t cluster_bytes;
    uint64_t n_clusters;
    GArray *with_data; /* of ClusterRange: the clusters with a byte of data, naively */
    GArray *dirty;     /* the same of what has changed; all without changes */
    VmsnapExtentMap *map;
    VmsnapExtentMap *change_map; /* or NULL */
    VmsnapClusterMap *clusters;
} Fixture;

typedef struct {
    uint64_t first;
    uint64_t end;
} ClusterRange;

static VmsnapExtentMap *extent_map_new(const GArray *extents, uint64_t size) {
    VmsnapExtentMap *map = vmsnap_extent_map_new(size, MAX_MEMORY_BYTES);
    guint next = 0;
    uint64_t left = 0;
    for (uint64_t i = 0; i < vmsnap_extent_map_get_window_count(map); i++) {
        VmsnapExtentWindow *window = vmsnap_extent_window_new(map, i);
        for (uint64_t missing; (missing = vmsnap_extent_window_get_missing(window)) > 0;) {
            if (left == 0)
                left = g_array_index(extents, VmsnapExtent, next++).length_bytes;
            uint64_t length = MIN(left, missing);
            vmsnap_extent_window_append(window, g_array_index(extents, VmsnapExtent, next - 1).kind, length);
            left -= length;
        }
        vmsnap_extent_map_publish(map, window);
    }
    return map;
}

/* Returns: (transfer full): the clusters that have a byte of data, or a dirty one, in ranges with others between. */
static GArray *ranges_new(const GArray *extents, uint64_t cluster_bytes) {
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(ClusterRange));
    uint64_t start = 0;
    for (guint i = 0; i < extents->len; i++) {
        const VmsnapExtent *extent = &g_array_index(extents, VmsnapExtent, i);
        ClusterRange range = {start / cluster_bytes, (start + extent->length_bytes - 1) / cluster_bytes + 1};
        start += extent->length_bytes;
        if (extent->kind != VMSNAP_EXTENT_DATA)
            continue;
        ClusterRange *last = ranges->len > 0 ? &g_array_index(ranges, ClusterRange, ranges->len - 1) : NULL;
        if (last && range.first <= last->end)
            last->end = range.end;
        else
            g_array_append_val(ranges, range);
    }
    return ranges;
}

/* @extents, @changes: (transfer full); there may be no changes */
static void fixture_init_changed(Fixture *fixture, GArray *extents, GArray *changes, uint64_t cluster_bytes) {
    *fixture = (Fixture){.extents = extents, .changes = changes, .cluster_bytes = cluster_bytes};
    for (guint i = 0; i < extents->len; i++)
        fixture->size += g_array_index(extents, VmsnapExtent, i).length_bytes;
    fixture->n_clusters = (fixture->size + cluster_bytes - 1) / cluster_bytes;
    fixture->with_data = ranges_new(extents, cluster_bytes);
    g_autoptr(GArray) all = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(all, VMSNAP_EXTENT_DIRTY, MAX(fixture->size, 1));
    fixture->dirty = ranges_new(changes ? changes : all, cluster_bytes);
    fixture->map = extent_map_new(extents, fixture->size);
    if (changes)
        fixture->change_map = extent_map_new(changes, fixture->size);
    fixture->clusters = vmsnap_cluster_map_new(fixture->map, fixture->change_map, cluster_bytes);
}

static void fixture_init(Fixture *fixture, GArray *extents, uint64_t cluster_bytes) {
    fixture_init_changed(fixture, extents, NULL, cluster_bytes);
}

static void fixture_clear(Fixture *fixture) {
    vmsnap_cluster_map_free(fixture->clusters);
    vmsnap_extent_map_free(fixture->map);
    if (fixture->change_map)
        vmsnap_extent_map_free(fixture->change_map);
    g_array_unref(fixture->extents);
    g_array_unref(fixture->with_data);
    g_array_unref(fixture->dirty);
    g_clear_pointer(&fixture->changes, g_array_unref);
}

/* Returns: how many clusters before @cluster lie in one of the ranges. */
static uint64_t count_in(const GArray *ranges, uint64_t cluster) {
    uint64_t n = 0;
    for (guint i = 0; i < ranges->len; i++) {
        ClusterRange range = g_array_index(ranges, ClusterRange, i);
        if (range.first < cluster)
            n += MIN(range.end, cluster) - range.first;
    }
    return n;
}

/* Returns: how many clusters before @cluster have changed and have a byte of data. */
static uint64_t naive_rank(const Fixture *fixture, uint64_t cluster) {
    uint64_t rank = 0;
    for (guint i = 0, k = 0; i < fixture->with_data->len && k < fixture->dirty->len;) {
        ClusterRange data = g_array_index(fixture->with_data, ClusterRange, i);
        ClusterRange dirty = g_array_index(fixture->dirty, ClusterRange, k);
        uint64_t first = MAX(data.first, dirty.first), end = MIN(MIN(data.end, dirty.end), cluster);
        rank += first < end ? end - first : 0;
        if (data.end < dirty.end)
            i++;
        else
            k++;
    }
    return rank;
}

static void check_run(const Fixture *fixture, const VmsnapClusterRun *run) {
    uint64_t end = run->first + run->length;
    uint64_t n_dirty = count_in(fixture->dirty, end) - count_in(fixture->dirty, run->first);
    g_assert_cmpuint(run->length, >, 0);
    g_assert_cmpuint(end, <=, fixture->n_clusters);
    g_assert_cmpuint(run->rank, ==, naive_rank(fixture, run->first));
    g_assert_cmpuint(n_dirty, ==, run->kind == VMSNAP_CLUSTER_CLEAN ? 0 : run->length);
    g_assert_cmpuint(naive_rank(fixture, end) - run->rank, ==, run->kind == VMSNAP_CLUSTER_DATA ? run->length : 0);
}

static void check_find(const Fixture *fixture, uint64_t cluster) {
    VmsnapClusterRun run;
    vmsnap_cluster_map_find(fixture->clusters, cluster, &run);
    g_assert_cmpuint(run.first, ==, cluster);
    check_run(fixture, &run);
    g_assert_cmpuint(vmsnap_cluster_map_rank(fixture->clusters, cluster), ==, run.rank);
}

static void check_select(const Fixture *fixture, uint64_t rank) {
    VmsnapClusterRun run;
    vmsnap_cluster_map_select(fixture->clusters, rank, &run);
    g_assert_true(run.kind == VMSNAP_CLUSTER_DATA);
    g_assert_cmpuint(run.rank, ==, rank);
    check_run(fixture, &run);
}

static void check_counts(const Fixture *fixture) {
    uint64_t n_data = naive_rank(fixture, fixture->n_clusters);
    g_assert_cmpuint(vmsnap_cluster_map_get_count(fixture->clusters), ==, fixture->n_clusters);
    g_assert_cmpuint(vmsnap_cluster_map_get_data_count(fixture->clusters), ==, n_data);
    g_assert_cmpuint(vmsnap_cluster_map_rank(fixture->clusters, fixture->n_clusters), ==, n_data);
}

/* Goes through all runs. Returns: how many there are. */
static uint64_t check_walk(const Fixture *fixture) {
    uint64_t n_runs = 1;
    VmsnapClusterRun run;
    if (fixture->n_clusters == 0)
        return 0;
    vmsnap_cluster_map_find(fixture->clusters, 0, &run);
    check_run(fixture, &run);
    for (uint64_t end; (end = run.first + run.length) < fixture->n_clusters; n_runs++) {
        vmsnap_cluster_map_advance(fixture->clusters, &run);
        g_assert_cmpuint(run.first, ==, end);
        check_run(fixture, &run);
    }
    return n_runs;
}

static void check_some(const Fixture *fixture, int n) {
    uint64_t n_data = vmsnap_cluster_map_get_data_count(fixture->clusters);
    check_counts(fixture);
    for (int i = 0; i < n && fixture->n_clusters > 0; i++) {
        check_find(fixture, extents_random_offset(fixture->extents, fixture->size) / fixture->cluster_bytes);
        if (n_data > 0)
            check_select(fixture, random_below(n_data));
    }
    if (fixture->n_clusters > 0)
        check_find(fixture, fixture->n_clusters - 1);
    if (n_data > 0)
        check_select(fixture, n_data - 1);
}

/* @extents, @changes: (transfer full); there may be no changes */
static void check_all_changed(GArray *extents, GArray *changes, uint64_t cluster_bytes) {
    Fixture fixture;
    fixture_init_changed(&fixture, extents, changes, cluster_bytes);
    check_counts(&fixture);
    for (uint64_t i = 0; i < fixture.n_clusters; i++)
        check_find(&fixture, i);
    for (uint64_t i = 0; i < vmsnap_cluster_map_get_data_count(fixture.clusters); i++)
        check_select(&fixture, i);
    uint64_t n_runs = check_walk(&fixture);
    uint64_t n_windows = vmsnap_extent_map_get_window_count(fixture.map);
    g_assert_cmpuint(n_runs, <=, extents->len + n_windows + (changes ? changes->len + n_windows : 0));
    fixture_clear(&fixture);
}

static void check_all(GArray *extents, uint64_t cluster_bytes) {
    check_all_changed(extents, NULL, cluster_bytes);
}

static void test_any_extents_equal_naive(void) {
    for (int i = 0; i < 60; i++) {
        uint64_t cluster_bytes = UINT64_C(1) << (9 + random_below(8));
        uint64_t size = 1 + random_below(cluster_bytes * (1 + random_below(400)));
        check_all(extents_random(size, 1 + random_below(cluster_bytes * 20)), cluster_bytes);
    }
}

static void test_extents_by_turns_equal_naive(void) {
    static const uint64_t lengths[] = {1, 511, 512, 513, 4096, 65536, 65537, 1 << 20};
    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
        uint64_t size = lengths[i] * (lengths[i] < 10000 ? 300 : 20);
        check_all(extents_alternate(size, lengths[i]), lengths[i] < 1000000 ? 512 : 8192);
        check_all(extents_alternate(size + 1, lengths[i]), 4096);
        check_all(extents_alternate(size + 100, lengths[i]), 65536);
    }
}

static void test_one_kind_is_one_run_a_window(void) {
    static const uint64_t sizes[] = {1, 511, 512, 513, 3 * MIB(1), WINDOW_BYTES, 2 * WINDOW_BYTES + 1};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        for (VmsnapExtentKind kind = VMSNAP_EXTENT_DATA; kind <= VMSNAP_EXTENT_ZERO; kind++) {
            Fixture fixture;
            GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
            extents_append(extents, kind, sizes[i]);
            fixture_init(&fixture, extents, 512);
            check_some(&fixture, 20);
            g_assert_cmpuint(check_walk(&fixture), <=, vmsnap_extent_map_get_window_count(fixture.map));
            fixture_clear(&fixture);
        }
    }
}

static void test_a_disk_may_be_empty(void) {
    Fixture fixture;
    fixture_init(&fixture, g_array_new(FALSE, FALSE, sizeof(VmsnapExtent)), 65536);
    g_assert_cmpuint(fixture.size, ==, 0);
    check_counts(&fixture);
    fixture_clear(&fixture);
    vmsnap_cluster_map_free(NULL);
}

/* The last cluster is data because of its last byte, which is all that there is of it. */
static void test_the_last_cluster_may_be_short(void) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_ZERO, 10 * 65536);
    extents_append(extents, VMSNAP_EXTENT_DATA, 1);
    check_all(extents, 65536);
    extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, VMSNAP_EXTENT_DATA, 10 * 65536 - 1);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 2);
    check_all(extents, 65536);
}

/* What an L2 table of qcow2 describes: more than a window, and no multiple of it either. */
static void test_clusters_may_be_larger_than_a_window(void) {
    static const uint64_t sizes[] = {MIB(512), GIB(2), GIB(3), GIB(8), GIB(512)};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        check_all(extents_random(1 + random_below(sizes[i] * 20), sizes[i] * 2), sizes[i]);
        check_all(extents_random(1 + random_below(sizes[i] * 20), sizes[i] / 16), sizes[i]);
        check_all(extents_random(sizes[i], sizes[i]), sizes[i]);
        check_all(extents_random(WINDOW_BYTES + 1, WINDOW_BYTES), sizes[i]);
    }
}

/* Data of up to 1 MiB a few GiB apart. */
static GArray *extents_sparse(uint64_t size) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    while (size > 0) {
        uint64_t zero = 1 + random_below(GIB(40)), data = 1 + random_below(MIB(1));
        zero = MIN(zero, size);
        data = MIN(data, size - zero);
        extents_append(extents, VMSNAP_EXTENT_ZERO, zero);
        if (data > 0)
            extents_append(extents, VMSNAP_EXTENT_DATA, data);
        size -= zero + data;
    }
    return extents;
}

static void check_time(gint64 since_us) {
    g_assert_cmpint((gint64)clock() - since_us, <, MAX_SECONDS * (gint64)CLOCKS_PER_SEC);
}

static void test_a_huge_disk_takes_little(void) {
    static const uint64_t cluster_sizes[] = {512, 4096, 65536, MIB(2), GIB(8)};
    for (size_t i = 0; i < G_N_ELEMENTS(cluster_sizes); i++) {
        Fixture fixture;
        gint64 start_us = (gint64)clock();
        fixture_init(&fixture, extents_sparse(TIB(16)), cluster_sizes[i]);
        check_some(&fixture, 300);
        g_assert_cmpuint(check_walk(&fixture), <=, fixture.extents->len + TIB(16) / WINDOW_BYTES);
        check_time(start_us);
        fixture_clear(&fixture);
    }
}

/* As many changes in each window as the map keeps for a disk of 16 TiB. */
static void test_a_fragmented_disk_takes_little(void) {
    const uint64_t size = TIB(1), length = WINDOW_BYTES / 1500;
    VmsnapExtentMap *map = vmsnap_extent_map_new(size, MAX_MEMORY_BYTES);
    for (uint64_t i = 0; i < vmsnap_extent_map_get_window_count(map); i++) {
        VmsnapExtentWindow *window = vmsnap_extent_window_new(map, i);
        for (unsigned n = 0; vmsnap_extent_window_get_missing(window) > 0; n++)
            vmsnap_extent_window_append(window, n % 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, length);
        vmsnap_extent_map_publish(map, window);
    }
    gint64 start_us = (gint64)clock();
    for (uint64_t cluster_bytes = 512; cluster_bytes <= GIB(4); cluster_bytes <<= 5) {
        VmsnapClusterMap *clusters = vmsnap_cluster_map_new(map, NULL, cluster_bytes);
        for (int i = 0; i < 1000; i++) {
            uint64_t rank = random_below(vmsnap_cluster_map_get_data_count(clusters));
            VmsnapClusterRun run;
            vmsnap_cluster_map_select(clusters, rank, &run);
            g_assert_true(run.kind == VMSNAP_CLUSTER_DATA);
            g_assert_cmpuint(run.rank, ==, rank);
            g_assert_cmpuint(vmsnap_cluster_map_rank(clusters, run.first), ==, rank);
            g_assert_cmpuint(vmsnap_cluster_map_rank(clusters, run.first + run.length), ==, rank + run.length);
        }
        vmsnap_cluster_map_free(clusters);
    }
    check_time(start_us);
    vmsnap_extent_map_free(map);
}

/* With changes */

static void test_any_changes_equal_naive(void) {
    for (int i = 0; i < 60; i++) {
        uint64_t cluster_bytes = UINT64_C(1) << (9 + random_below(8));
        uint64_t size = 1 + random_below(cluster_bytes * (1 + random_below(300)));
        uint64_t longest = 1 + random_below(cluster_bytes * 20);
        GArray *changes = extents_random(size, random_below(2) ? longest : 1 + random_below(cluster_bytes * 20));
        check_all_changed(extents_random(size, longest), changes, cluster_bytes);
    }
}

static void test_changes_of_one_kind(void) {
    static const uint64_t sizes[] = {1, 512, 513, 3 * MIB(1) + 1, WINDOW_BYTES + 512};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        for (VmsnapExtentKind kind = VMSNAP_EXTENT_DIRTY; kind <= VMSNAP_EXTENT_CLEAN; kind++) {
            Fixture fixture;
            GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
            extents_append(changes, kind, sizes[i]);
            fixture_init_changed(&fixture, extents_random(sizes[i], sizes[i] / 20 + 1), changes, 512);
            check_some(&fixture, 20);
            if (kind == VMSNAP_EXTENT_CLEAN)
                g_assert_cmpuint(check_walk(&fixture), <=, vmsnap_extent_map_get_window_count(fixture.map));
            fixture_clear(&fixture);
        }
    }
}

/* A dirty byte makes the whole cluster count, with data that has not changed, too. */
static void test_a_byte_changes_its_cluster(void) {
    static const uint64_t dirty_bytes[] = {0, 17, 4095, 4096, 3 * 4096 - 1, 3 * 4096, 4 * 4096 - 2};
    for (size_t n = 0; n < G_N_ELEMENTS(dirty_bytes); n++) {
        Fixture fixture;
        GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        extents_append(extents, VMSNAP_EXTENT_DATA, 1);
        extents_append(extents, VMSNAP_EXTENT_ZERO, 4 * 4096 - 1);
        if (dirty_bytes[n] > 0)
            extents_append(changes, VMSNAP_EXTENT_CLEAN, dirty_bytes[n]);
        extents_append(changes, VMSNAP_EXTENT_DIRTY, 1);
        extents_append(changes, VMSNAP_EXTENT_CLEAN, 4 * 4096 - 1 - dirty_bytes[n]);
        fixture_init_changed(&fixture, extents, changes, 4096);
        for (uint64_t i = 0; i < 4; i++) {
            VmsnapClusterRun run;
            vmsnap_cluster_map_find(fixture.clusters, i, &run);
            VmsnapClusterKind changed = i == 0 ? VMSNAP_CLUSTER_DATA : VMSNAP_CLUSTER_ZERO;
            g_assert_cmpint(run.kind, ==, i == dirty_bytes[n] / 4096 ? changed : VMSNAP_CLUSTER_CLEAN);
        }
        g_assert_cmpuint(vmsnap_cluster_map_get_data_count(fixture.clusters), ==, dirty_bytes[n] < 4096);
        fixture_clear(&fixture);
    }
}

static void test_the_last_cluster_may_be_dirty_and_short(void) {
    for (int kinds = 0; kinds < 4; kinds++) {
        GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        extents_append(extents, VMSNAP_EXTENT_DATA, 10 * 65536 - 3);
        extents_append(extents, VMSNAP_EXTENT_ZERO, 3);
        extents_append(extents, kinds & 1 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, 1);
        extents_append(changes, VMSNAP_EXTENT_CLEAN, 10 * 65536);
        extents_append(changes, kinds & 2 ? VMSNAP_EXTENT_CLEAN : VMSNAP_EXTENT_DIRTY, 1);
        check_all_changed(extents, changes, 65536);
    }
}

/* Where nothing has changed, nobody has asked for the content. */
static void test_the_content_of_what_is_clean_is_not_looked_at(void) {
    const uint64_t size = 4 * WINDOW_BYTES + MIB(1);
    for (uint64_t cluster_bytes = 512; cluster_bytes <= MIB(2); cluster_bytes *= 64) {
        VmsnapExtentMap *content = vmsnap_extent_map_new(size, MAX_MEMORY_BYTES);
        g_autoptr(GArray) changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
        extents_append(changes, VMSNAP_EXTENT_CLEAN, 2 * WINDOW_BYTES - 1);
        extents_append(changes, VMSNAP_EXTENT_DIRTY, 1);
        extents_append(changes, VMSNAP_EXTENT_CLEAN, 2 * WINDOW_BYTES + MIB(1));
        VmsnapExtentMap *change_map = extent_map_new(changes, size);
        VmsnapExtentWindow *window = vmsnap_extent_window_new(content, 1);
        vmsnap_extent_window_append(window, VMSNAP_EXTENT_DATA, WINDOW_BYTES);
        vmsnap_extent_map_publish(content, window);
        VmsnapClusterMap *clusters = vmsnap_cluster_map_new(content, change_map, cluster_bytes);
        VmsnapClusterRun run;
        g_assert_cmpuint(vmsnap_cluster_map_get_data_count(clusters), ==, 1);
        vmsnap_cluster_map_select(clusters, 0, &run);
        g_assert_cmpuint(run.first, ==, 2 * WINDOW_BYTES / cluster_bytes - 1);
        g_assert_cmpuint(run.length, ==, 1);
        vmsnap_cluster_map_free(clusters);
        vmsnap_extent_map_free(content);
        vmsnap_extent_map_free(change_map);
    }
}

static void test_changes_of_a_huge_disk_take_little(void) {
    static const uint64_t cluster_sizes[] = {512, 65536, MIB(2)};
    for (size_t i = 0; i < G_N_ELEMENTS(cluster_sizes); i++) {
        Fixture fixture;
        gint64 start_us = (gint64)clock();
        GArray *changes = i == 1 ? extents_random(TIB(16), TIB(1)) : extents_sparse(TIB(16));
        fixture_init_changed(&fixture, extents_sparse(TIB(16)), changes, cluster_sizes[i]);
        check_some(&fixture, 200);
        check_time(start_us);
        fixture_clear(&fixture);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cluster-map/any-extents-equal-naive", test_any_extents_equal_naive);
    g_test_add_func("/cluster-map/extents-by-turns-equal-naive", test_extents_by_turns_equal_naive);
    g_test_add_func("/cluster-map/one-kind-is-one-run-a-window", test_one_kind_is_one_run_a_window);
    g_test_add_func("/cluster-map/a-disk-may-be-empty", test_a_disk_may_be_empty);
    g_test_add_func("/cluster-map/the-last-cluster-may-be-short", test_the_last_cluster_may_be_short);
    g_test_add_func("/cluster-map/clusters-may-be-larger-than-a-window", test_clusters_may_be_larger_than_a_window);
    g_test_add_func("/cluster-map/any-changes-equal-naive", test_any_changes_equal_naive);
    g_test_add_func("/cluster-map/changes-of-one-kind", test_changes_of_one_kind);
    g_test_add_func("/cluster-map/a-byte-changes-its-cluster", test_a_byte_changes_its_cluster);
    g_test_add_func("/cluster-map/the-last-cluster-may-be-dirty-and-short",
                    test_the_last_cluster_may_be_dirty_and_short);
    g_test_add_func("/cluster-map/the-content-of-what-is-clean-is-not-looked-at",
                    test_the_content_of_what_is_clean_is_not_looked_at);
    if (!FINDS_RACES) {
        g_test_add_func("/cluster-map/a-huge-disk-takes-little", test_a_huge_disk_takes_little);
        g_test_add_func("/cluster-map/a-fragmented-disk-takes-little", test_a_fragmented_disk_takes_little);
        g_test_add_func("/cluster-map/changes-of-a-huge-disk-take-little", test_changes_of_a_huge_disk_take_little);
    }
    return g_test_run();
}
