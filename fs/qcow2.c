/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The format "qcow2": a compact image that is computed. In this order, each part in whole clusters: the header, the
 * refcount table and its blocks, the L1 table, the L2 tables that have an entry, and the clusters of data in the order
 * of the disk. So the place of an L2 table or of a cluster follows from how many come before it, which is what the two
 * cluster maps tell: one counts the clusters, the other the ranges of the disk that an L2 table describes. Every
 * cluster of the file is used once.
 *
 * Of a disk whose changes are known it is an overlay: what is clean has no entry, so that the backing file is read
 * there, and what has become zeroes has one that says so.
 */
#include "bytes.h"
#include "cluster_map.h"
#include "format.h"
#include "vmsnap/error.h"

#define MAGIC 0x514649fb /* "QFI", and a byte that is no text */
#define HEADER_BYTES 104
#define EXTENSION_HEADER_BYTES 8
#define EXTENSION_BACKING_FORMAT 0xe2792aca
#define VERSION 3
#define REFCOUNT_ORDER 4 /* 16 bits each */
#define REFCOUNT_BYTES 2
#define SECTOR_BYTES 512
#define FLAG_COPIED (UINT64_C(1) << 63)
#define FLAG_ZERO UINT64_C(1)
/* What QEMU takes. */
#define MAX_L1_BYTES (UINT64_C(32) << 20)
#define MAX_REFCOUNT_TABLE_BYTES (UINT64_C(8) << 20)
#define MAX_BACKING_NAME_BYTES 1023

/* In the order of the file. */
typedef enum {
    PART_HEADER,
    PART_REFCOUNT_TABLE,
    PART_REFCOUNT_BLOCKS,
    PART_L1,
    PART_L2,
    PART_DATA,
    N_PARTS,
} PartKind;

/* Clusters of the file in a row. */
typedef struct {
    uint64_t first;
    uint64_t count;
} Part;

typedef struct {
    VmsnapLayout base;
    uint64_t cluster_bytes;
    uint64_t entries_per_table; /* of L2 */
    GByteArray *header;         /* with what follows it: extensions, and the name of the backing file */
    VmsnapClusterMap *clusters;
    VmsnapClusterMap *tables;
    uint64_t l1_entries;
    uint64_t total_clusters;
    Part parts[N_PARTS];
} Qcow2Layout;

/* What one step over a table leaves for the next. */
typedef struct {
    VmsnapClusterRun run;
    uint64_t table;  /* index among the L2 tables of the file, from 1; 0 at the beginning */
    uint64_t number; /* of that table in the L1 table */
} Cursor;

/* Gives the value at an index of a table. Walks upwards. */
typedef uint64_t (*EntryFunc)(const Qcow2Layout *qcow2, uint64_t index, Cursor *cursor);

/* Returns: where the cluster @index of a part begins. */
static uint64_t place(const Qcow2Layout *qcow2, PartKind part, uint64_t index) {
    return (qcow2->parts[part].first + index) * qcow2->cluster_bytes;
}

/* Lets the cursor's run begin with @index, or shortly before it. */
static const VmsnapClusterRun *cursor_move(Cursor *cursor, const VmsnapClusterMap *map, uint64_t index) {
    VmsnapClusterRun *run = &cursor->run;
    uint64_t end = run->first + run->length;
    if (run->length > 0 && index == end)
        vmsnap_cluster_map_advance(map, run);
    else if (index < run->first || index >= end)
        vmsnap_cluster_map_find(map, index, run);
    return run;
}

/*
 * Returns: what stands in a table for the cluster, or L2 table, @index, which is stored in @part if it is data. @zero:
 * what stands there for one that is zeroes
 */
static uint64_t entry_of(const Qcow2Layout *qcow2, const VmsnapClusterMap *map, PartKind part, uint64_t index,
                         uint64_t zero, Cursor *cursor) {
    if (index >= vmsnap_cluster_map_get_count(map))
        return 0;
    const VmsnapClusterRun *run = cursor_move(cursor, map, index);
    if (run->kind == VMSNAP_CLUSTER_DATA)
        return place(qcow2, part, run->rank + index - run->first) | FLAG_COPIED;
    return run->kind == VMSNAP_CLUSTER_ZERO ? zero : 0;
}

static gboolean is_overlay(const Qcow2Layout *qcow2) {
    return qcow2->base.disk->changes != NULL;
}

static uint64_t l1_entry(const Qcow2Layout *qcow2, uint64_t index, Cursor *cursor) {
    return entry_of(qcow2, qcow2->tables, PART_L2, index, 0, cursor);
}

static uint64_t l2_entry(const Qcow2Layout *qcow2, uint64_t index, Cursor *cursor) {
    uint64_t table = index / qcow2->entries_per_table;
    if (cursor->table != table + 1) {
        VmsnapClusterRun run;
        vmsnap_cluster_map_select(qcow2->tables, table, &run);
        cursor->table = table + 1;
        cursor->number = run.first;
    }
    uint64_t cluster = cursor->number * qcow2->entries_per_table + index % qcow2->entries_per_table;
    uint64_t zero = is_overlay(qcow2) ? FLAG_ZERO : 0;
    return entry_of(qcow2, qcow2->clusters, PART_DATA, cluster, zero, cursor);
}

static uint64_t refcount_table_entry(const Qcow2Layout *qcow2, uint64_t index, Cursor *cursor) {
    (void)cursor;
    return index < qcow2->parts[PART_REFCOUNT_BLOCKS].count ? place(qcow2, PART_REFCOUNT_BLOCKS, index) : 0;
}

static uint64_t refcount_entry(const Qcow2Layout *qcow2, uint64_t index, Cursor *cursor) {
    (void)cursor;
    return index < qcow2->total_clusters;
}

/* What is appended: how to read the backing file, the end of the extensions, and its name. */
static void append_backing(GByteArray *header, const char *backing) {
    const char *format = vmsnap_backing_get_format(backing);
    uint8_t extension[EXTENSION_HEADER_BYTES], end[EXTENSION_HEADER_BYTES] = {0};
    vmsnap_put_be32(extension, EXTENSION_BACKING_FORMAT);
    vmsnap_put_be32(extension + 4, (uint32_t)strlen(format));
    (void)g_byte_array_append(header, extension, sizeof extension);
    (void)g_byte_array_append(header, (const uint8_t *)format, (guint)strlen(format));
    /* The next one begins at a multiple of 8. */
    (void)g_byte_array_append(header, end, (8 - header->len % 8) % 8);
    (void)g_byte_array_append(header, end, sizeof end);
    vmsnap_put_be64(header->data + 8, header->len);
    vmsnap_put_be32(header->data + 16, (uint32_t)strlen(backing));
    (void)g_byte_array_append(header, (const uint8_t *)backing, (guint)strlen(backing));
}

/* Returns: (transfer full): the header of an image that has @backing, or none if that is NULL, without any places yet.
 */
static GByteArray *header_new(const char *backing) {
    static const uint8_t nothing[HEADER_BYTES];
    GByteArray *header = g_byte_array_new();
    (void)g_byte_array_append(header, nothing, sizeof nothing);
    if (backing)
        append_backing(header, backing);
    return header;
}

/* What is left at 0: no encryption, no internal snapshots, no features. */
static void fill_header(const Qcow2Layout *qcow2) {
    uint8_t *header = qcow2->header->data;
    vmsnap_put_be32(header, MAGIC);
    vmsnap_put_be32(header + 4, VERSION);
    vmsnap_put_be32(header + 20, g_bit_nth_lsf(qcow2->cluster_bytes, -1));
    vmsnap_put_be64(header + 24, qcow2->base.disk->disk->size_bytes);
    vmsnap_put_be32(header + 36, (uint32_t)qcow2->l1_entries);
    vmsnap_put_be64(header + 40, place(qcow2, PART_L1, 0));
    vmsnap_put_be64(header + 48, place(qcow2, PART_REFCOUNT_TABLE, 0));
    vmsnap_put_be32(header + 56, (uint32_t)qcow2->parts[PART_REFCOUNT_TABLE].count);
    vmsnap_put_be32(header + 96, REFCOUNT_ORDER);
    vmsnap_put_be32(header + 100, HEADER_BYTES);
}

static void compute_header(const Qcow2Layout *qcow2, uint64_t offset, size_t length, uint8_t *buffer) {
    const GByteArray *header = qcow2->header;
    memset(buffer, 0, length);
    if (offset < header->len)
        memcpy(buffer, header->data + offset, MIN(length, header->len - offset));
}

static const struct {
    EntryFunc entry;
    size_t entry_bytes;
} tables[N_PARTS] = {
    [PART_REFCOUNT_TABLE] = {refcount_table_entry, sizeof(uint64_t)},
    [PART_REFCOUNT_BLOCKS] = {refcount_entry, REFCOUNT_BYTES},
    [PART_L1] = {l1_entry, sizeof(uint64_t)},
    [PART_L2] = {l2_entry, sizeof(uint64_t)},
};

/* Gives a range of tables, which need not begin or end with an entry. */
static void compute_tables(const Qcow2Layout *qcow2, PartKind part, uint64_t offset, size_t length, uint8_t *buffer) {
    size_t entry_bytes = tables[part].entry_bytes;
    Cursor cursor = {0};
    for (size_t done = 0, step; done < length; done += step) {
        size_t skipped = (offset + done) % entry_bytes;
        uint64_t value = GUINT64_TO_BE(tables[part].entry(qcow2, (offset + done) / entry_bytes, &cursor));
        step = MIN(length - done, entry_bytes - skipped);
        memcpy(buffer + done, (const uint8_t *)&value + sizeof value - entry_bytes + skipped, step);
    }
}

static void qcow2_compute(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer) {
    const Qcow2Layout *qcow2 = (const Qcow2Layout *)layout;
    size_t done = 0;
    for (PartKind part = PART_HEADER; done < length; part++) {
        uint64_t start = place(qcow2, part, 0), end = place(qcow2, part, qcow2->parts[part].count);
        if (offset + done >= end)
            continue;
        size_t step = MIN(length - done, end - offset - done);
        if (part == PART_HEADER)
            compute_header(qcow2, offset + done, step, buffer + done);
        else
            compute_tables(qcow2, part, offset + done - start, step, buffer + done);
        done += step;
    }
}

static void qcow2_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    const Qcow2Layout *qcow2 = (const Qcow2Layout *)layout;
    uint64_t data_start = place(qcow2, PART_DATA, 0), in_cluster = offset % qcow2->cluster_bytes;
    uint64_t disk_bytes = layout->disk->disk->size_bytes;
    if (offset < data_start) {
        *ret_segment = (VmsnapSegment){.kind = VMSNAP_SEGMENT_COMPUTED, .length_bytes = data_start - offset};
        return;
    }
    VmsnapClusterRun run;
    vmsnap_cluster_map_select(qcow2->clusters, (offset - data_start) / qcow2->cluster_bytes, &run);
    uint64_t disk_offset = run.first * qcow2->cluster_bytes + in_cluster;
    uint64_t length_bytes = run.length * qcow2->cluster_bytes - in_cluster;
    if (disk_offset >= disk_bytes)
        *ret_segment = (VmsnapSegment){.kind = VMSNAP_SEGMENT_ZERO, .length_bytes = length_bytes};
    else
        vmsnap_segment_init_disk(ret_segment, layout->disk, disk_offset, MIN(length_bytes, disk_bytes - disk_offset));
}

static uint64_t qcow2_allocated_bytes(const VmsnapLayout *layout) {
    const Qcow2Layout *qcow2 = (const Qcow2Layout *)layout;
    if (is_overlay(qcow2))
        return layout->size_bytes;
    uint64_t zero_bytes = vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(layout->disk->scan));
    return place(qcow2, PART_DATA, 0) + layout->disk->disk->size_bytes - zero_bytes;
}

static void qcow2_free(VmsnapLayout *layout) {
    Qcow2Layout *qcow2 = (Qcow2Layout *)layout;
    vmsnap_cluster_map_free(qcow2->clusters);
    vmsnap_cluster_map_free(qcow2->tables);
    g_byte_array_unref(qcow2->header);
    g_free(qcow2);
}

static const VmsnapLayoutClass qcow2_class = {
    .segment_at = qcow2_segment_at,
    .compute = qcow2_compute,
    .allocated_bytes = qcow2_allocated_bytes,
    .free = qcow2_free,
};

/* The refcounts count themselves, too: so there are as few of them as are enough. */
static void place_parts(Qcow2Layout *qcow2) {
    Part *parts = qcow2->parts;
    parts[PART_HEADER].count = 1;
    parts[PART_L1].count = vmsnap_divide_up(qcow2->l1_entries * sizeof(uint64_t), qcow2->cluster_bytes);
    parts[PART_L2].count = vmsnap_cluster_map_get_data_count(qcow2->tables);
    parts[PART_DATA].count = vmsnap_cluster_map_get_data_count(qcow2->clusters);
    uint64_t total;
    do {
        total = qcow2->total_clusters;
        uint64_t n_blocks = vmsnap_divide_up(total * REFCOUNT_BYTES, qcow2->cluster_bytes);
        parts[PART_REFCOUNT_BLOCKS].count = n_blocks;
        parts[PART_REFCOUNT_TABLE].count = vmsnap_divide_up(n_blocks * sizeof(uint64_t), qcow2->cluster_bytes);
        qcow2->total_clusters = 0;
        for (PartKind part = PART_HEADER; part < N_PARTS; part++) {
            parts[part].first = qcow2->total_clusters;
            qcow2->total_clusters += parts[part].count;
        }
    } while (qcow2->total_clusters != total);
}

static VmsnapLayout *qcow2_layout_new(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot,
                                      VmsnapDiskView *const *disks, guint n_disks) {
    (void)snapshot;
    g_assert(n_disks == 1);
    const VmsnapExtentMap *content = vmsnap_scan_get_map(disks[0]->scan);
    const VmsnapExtentMap *changes = vmsnap_disk_view_get_changes(disks[0]);
    g_autofree char *backing = vmsnap_format_name_backing(options, disks[0]->disk);
    Qcow2Layout *qcow2 = g_new0(Qcow2Layout, 1);
    qcow2->base.class = &qcow2_class;
    qcow2->base.disk = disks[0];
    qcow2->cluster_bytes = options->cluster_bytes;
    qcow2->entries_per_table = qcow2->cluster_bytes / sizeof(uint64_t);
    qcow2->clusters = vmsnap_cluster_map_new(content, changes, qcow2->cluster_bytes);
    qcow2->tables =
        vmsnap_cluster_map_new(changes ? changes : content, NULL, qcow2->cluster_bytes * qcow2->entries_per_table);
    qcow2->l1_entries = vmsnap_cluster_map_get_count(qcow2->tables);
    place_parts(qcow2);
    qcow2->header = header_new(backing);
    fill_header(qcow2);
    qcow2->base.size_bytes = qcow2->total_clusters * qcow2->cluster_bytes;
    return &qcow2->base;
}

/* Whether QEMU would take the tables, should the whole disk be data. */
static gboolean disk_fits(uint64_t disk_bytes, uint64_t cluster_bytes) {
    uint64_t bytes_per_l1_entry = cluster_bytes / sizeof(uint64_t) * cluster_bytes;
    uint64_t bytes_per_refcount_block = cluster_bytes / REFCOUNT_BYTES * cluster_bytes;
    uint64_t tables_at_most = disk_bytes / cluster_bytes * sizeof(uint64_t) * 2 + MAX_L1_BYTES;
    return vmsnap_divide_up(disk_bytes, bytes_per_l1_entry) * sizeof(uint64_t) <= MAX_L1_BYTES &&
           vmsnap_divide_up(disk_bytes + tables_at_most, bytes_per_refcount_block) * sizeof(uint64_t) <=
               MAX_REFCOUNT_TABLE_BYTES;
}

static gboolean check_backing(const VmsnapFormatOptions *options, const VmsnapDisk *disk, GError **error) {
    g_autofree char *backing = vmsnap_format_name_backing(options, disk);
    g_autoptr(GByteArray) header = header_new(backing);
    if (!backing || (strlen(backing) <= MAX_BACKING_NAME_BYTES && header->len <= options->cluster_bytes))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to show disk '%s' as qcow2: the name of its backing file, '%s', has more than %d bytes or does "
                "not fit into a cluster; use a shorter one, or a larger cluster_size=",
                disk->name, backing, MAX_BACKING_NAME_BYTES);
    return FALSE;
}

static gboolean qcow2_check(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot, GError **error) {
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        if (disk->size_bytes % SECTOR_BYTES != 0) {
            g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                        "failed to show disk '%s' as qcow2: its %" G_GUINT64_FORMAT
                        " bytes are no whole sectors; use format=raw",
                        disk->name, disk->size_bytes);
            return FALSE;
        }
        if (!disk_fits(disk->size_bytes, options->cluster_bytes)) {
            g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                        "failed to show disk '%s' as qcow2: it is too large for clusters of %u bytes; use a larger "
                        "cluster_size=",
                        disk->name, options->cluster_bytes);
            return FALSE;
        }
        if (!check_backing(options, disk, error))
            return FALSE;
    }
    return TRUE;
}

/* So that copies of one snapshot after the other can lie in one directory. */
static const char *qcow2_tag(const VmsnapFormatOptions *options, const VmsnapDisk *disk) {
    (void)options;
    return disk->snapshot->checkpoint;
}

const VmsnapFormat vmsnap_format_qcow2 = {
    .name = "qcow2",
    .needs_maps = TRUE,
    .shows_changes = TRUE,
    .tag = qcow2_tag,
    .check = qcow2_check,
    .layout_new = qcow2_layout_new,
};
