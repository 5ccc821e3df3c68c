/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The format "vma": the archive of Proxmox VE, all disks and what describes the machine in one file, computed. After
 * the header come extents, of a header and the blocks of up to 59 clusters each, in the order of the disks. An extent
 * stores only blocks that hold data: so it begins after as many blocks as lie before its first cluster, which is what
 * the cluster maps, here of blocks, tell; and the extent of an offset is found by bisection.
 *
 * Numbers are big-endian but for the lengths of blobs.
 */
#include "bytes.h"
#include "cluster_map.h"
#include "format.h"
#include "vmsnap/error.h"

#include <uuid/uuid.h>

#define MAGIC 0x564d4100        /* "VMA" and a zero */
#define EXTENT_MAGIC 0x564d4145 /* "VMAE" */
#define VERSION 1
#define HEADER_BYTES 12288
#define HEADER_ALIGNMENT 512
#define UUID_OFFSET 8
#define CTIME_OFFSET 24
#define HEADER_MD5_OFFSET 32
#define BLOB_OFFSET_OFFSET 48
#define CONFIG_NAMES_OFFSET 2044
#define CONFIG_DATA_OFFSET 3068
#define DEVICES_OFFSET 4096
#define DEVICE_BYTES 32
#define EXTENT_HEADER_BYTES 512
#define EXTENT_MD5_OFFSET 24
#define BLOCKINFO_OFFSET 40
#define CLUSTERS_PER_EXTENT 59
#define BLOCK_BYTES 4096
#define BLOCKS_PER_CLUSTER 16
#define MD5_BYTES 16

#define MAX_SAMPLES (UINT64_C(1) << 20)

#define MAX_DEVICES 254
#define MAX_CONFIGS 256
#define MAX_BLOB_BYTES 65535
/* Cluster numbers have 32 bits. */
#define MAX_DISK_BYTES (UINT64_C(1) << 48)

/* One disk, and what lies before it in the archive. Its number is its place in the list, from 1. */
typedef struct {
    VmsnapDiskView *disk;
    VmsnapClusterMap *blocks;
    uint64_t first_cluster;
    uint64_t first_data_block;
} Device;

typedef struct {
    VmsnapLayout base;
    uuid_t uuid;
    GByteArray *header;
    uint64_t n_clusters; /* of all devices */
    uint64_t n_data_blocks;
    uint64_t n_extents;
    uint64_t step;     /* in extents, between samples */
    uint64_t *samples; /* how many blocks of data lie before those extents */
    guint n_devices;
    Device devices[];
} VmaLayout;

/* The sum is taken over what has zeroes in its place. */
static void put_md5(uint8_t *data, size_t length, size_t md5_offset) {
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_MD5);
    gsize n_bytes = MD5_BYTES;
    g_checksum_update(checksum, data, (gssize)length);
    g_checksum_get_digest(checksum, data + md5_offset, &n_bytes);
}

/* Returns: the last device for which the number at @first, an offset in Device, is not more than @place. */
static const Device *find_device(const VmaLayout *vma, glong first, uint64_t place) {
    guint low = 0, high = vma->n_devices;
    while (high - low > 1) {
        guint middle = low + (high - low) / 2;
        if (G_STRUCT_MEMBER(uint64_t, &vma->devices[middle], first) <= place)
            low = middle;
        else
            high = middle;
    }
    return &vma->devices[low];
}

/* Returns: how many blocks of data lie before a cluster, which may be the count. */
static uint64_t data_blocks_before(const VmaLayout *vma, uint64_t cluster) {
    const Device *device = find_device(vma, G_STRUCT_OFFSET(Device, first_cluster), cluster);
    uint64_t block = (cluster - device->first_cluster) * BLOCKS_PER_CLUSTER;
    return device->first_data_block +
           vmsnap_cluster_map_rank(device->blocks, MIN(block, vmsnap_cluster_map_get_count(device->blocks)));
}

/* Finds a block of data. Returns: the device that has it. @ret_run begins with it. */
static const Device *find_block(const VmaLayout *vma, uint64_t data_block, VmsnapClusterRun *ret_run) {
    const Device *device = find_device(vma, G_STRUCT_OFFSET(Device, first_data_block), data_block);
    vmsnap_cluster_map_select(device->blocks, data_block - device->first_data_block, ret_run);
    return device;
}

/* Returns: the extent that stores a block of data, or the last one if there is no such block. */
static uint64_t find_extent_of_block(const VmaLayout *vma, uint64_t data_block) {
    if (data_block == vma->n_data_blocks)
        return vma->n_extents - 1;
    VmsnapClusterRun run;
    const Device *device = find_block(vma, data_block, &run);
    return (device->first_cluster + run.first / BLOCKS_PER_CLUSTER) / CLUSTERS_PER_EXTENT;
}

static uint64_t first_cluster_of_extent(const VmaLayout *vma, uint64_t extent) {
    return MIN(extent * CLUSTERS_PER_EXTENT, vma->n_clusters);
}

static uint64_t data_blocks_before_extent(const VmaLayout *vma, uint64_t extent) {
    if (extent < vma->n_extents && extent % vma->step == 0)
        return vma->samples[extent / vma->step];
    return data_blocks_before(vma, first_cluster_of_extent(vma, extent));
}

/* Where an extent begins, or the file ends. */
static uint64_t extent_start(const VmaLayout *vma, uint64_t extent) {
    return vma->header->len + extent * EXTENT_HEADER_BYTES + data_blocks_before_extent(vma, extent) * BLOCK_BYTES;
}

/* Bisects what lies from @low on, every so many extents. */
static uint64_t find_extent_by(const VmaLayout *vma, uint64_t offset, uint64_t low, uint64_t count, uint64_t step) {
    while (count > 1) {
        uint64_t half = count / 2;
        if (extent_start(vma, low + half * step) <= offset) {
            low += half * step;
            count -= half;
        } else {
            count = half;
        }
    }
    return low;
}

static uint64_t find_extent(const VmaLayout *vma, uint64_t offset) {
    uint64_t n_samples = vmsnap_divide_up(vma->n_extents, vma->step);
    uint64_t sampled = find_extent_by(vma, offset, 0, n_samples, vma->step);
    return find_extent_by(vma, offset, sampled, MIN(vma->step, vma->n_extents - sampled), 1);
}

/*
 * The headers of extents without blocks, and the next one, are one segment: of a disk that is mostly zeroes, there are
 * millions of them in a row.
 */
static void vma_segment_at(const VmsnapLayout *layout, uint64_t offset, VmsnapSegment *ret_segment) {
    const VmaLayout *vma = (const VmaLayout *)layout;
    if (offset < vma->header->len) {
        *ret_segment = (VmsnapSegment){.kind = VMSNAP_SEGMENT_MEMORY,
                                       .length_bytes = vma->header->len - offset,
                                       .memory = vma->header->data + offset};
        return;
    }
    uint64_t extent = find_extent(vma, offset), start = extent_start(vma, extent);
    uint64_t data_block = data_blocks_before_extent(vma, extent);
    if (offset < start + EXTENT_HEADER_BYTES) {
        uint64_t end = start + (find_extent_of_block(vma, data_block) - extent + 1) * EXTENT_HEADER_BYTES;
        *ret_segment = (VmsnapSegment){.kind = VMSNAP_SEGMENT_COMPUTED, .length_bytes = end - offset};
        return;
    }
    uint64_t in_blocks = offset - start - EXTENT_HEADER_BYTES, in_block = in_blocks % BLOCK_BYTES;
    VmsnapClusterRun run;
    const Device *device = find_block(vma, data_block + in_blocks / BLOCK_BYTES, &run);
    uint64_t disk_offset = run.first * BLOCK_BYTES + in_block, disk_bytes = device->disk->disk->size_bytes;
    uint64_t length_bytes = MIN(run.length * BLOCK_BYTES - in_block, extent_start(vma, extent + 1) - offset);
    if (disk_offset >= disk_bytes)
        *ret_segment = (VmsnapSegment){.kind = VMSNAP_SEGMENT_ZERO, .length_bytes = length_bytes};
    else
        vmsnap_segment_init_disk(ret_segment, device->disk, disk_offset, MIN(length_bytes, disk_bytes - disk_offset));
}

/* Returns: a bit for each block of a cluster that is stored. What lies behind the end of the disk is not. */
static uint16_t cluster_mask(const Device *device, uint64_t cluster) {
    uint64_t block = cluster * BLOCKS_PER_CLUSTER;
    uint64_t end = MIN(block + BLOCKS_PER_CLUSTER, vmsnap_cluster_map_get_count(device->blocks));
    VmsnapClusterRun run;
    vmsnap_cluster_map_find(device->blocks, block, &run);
    uint16_t mask = 0;
    for (; block < end; block++) {
        if (block - run.first >= run.length)
            vmsnap_cluster_map_advance(device->blocks, &run);
        if (run.kind == VMSNAP_CLUSTER_DATA)
            mask |= (uint16_t)(1U << block % BLOCKS_PER_CLUSTER);
    }
    return mask;
}

static void make_extent_header(const VmaLayout *vma, uint64_t extent, uint8_t header[EXTENT_HEADER_BYTES]) {
    uint64_t cluster = first_cluster_of_extent(vma, extent), end = first_cluster_of_extent(vma, extent + 1);
    uint64_t n_blocks = data_blocks_before_extent(vma, extent + 1) - data_blocks_before_extent(vma, extent);
    memset(header, 0, EXTENT_HEADER_BYTES);
    vmsnap_put_be32(header, EXTENT_MAGIC);
    vmsnap_put_be16(header + 6, (uint16_t)n_blocks);
    memcpy(header + UUID_OFFSET, vma->uuid, sizeof vma->uuid);
    guint number = 0;
    for (uint8_t *info = header + BLOCKINFO_OFFSET; cluster < end; cluster++, info += sizeof(uint64_t)) {
        while (number < vma->n_devices && vma->devices[number].first_cluster <= cluster)
            number++;
        const Device *device = &vma->devices[number - 1];
        uint64_t in_device = cluster - device->first_cluster;
        vmsnap_put_be64(info, (uint64_t)cluster_mask(device, in_device) << 48 | (uint64_t)number << 32 | in_device);
    }
    put_md5(header, EXTENT_HEADER_BYTES, EXTENT_MD5_OFFSET);
}

static void vma_compute(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer) {
    const VmaLayout *vma = (const VmaLayout *)layout;
    uint64_t extent = find_extent(vma, offset);
    size_t skipped = offset - extent_start(vma, extent);
    for (size_t done = 0, step; done < length; done += step, skipped = 0) {
        uint8_t header[EXTENT_HEADER_BYTES];
        make_extent_header(vma, extent++, header);
        step = MIN(length - done, EXTENT_HEADER_BYTES - skipped);
        memcpy(buffer + done, header + skipped, step);
    }
}

static uint64_t vma_allocated_bytes(const VmsnapLayout *layout) {
    const VmaLayout *vma = (const VmaLayout *)layout;
    uint64_t allocated = vma->header->len + vma->n_extents * EXTENT_HEADER_BYTES;
    for (guint i = 0; i < vma->n_devices; i++) {
        const VmsnapDiskView *disk = vma->devices[i].disk;
        allocated += disk->disk->size_bytes - vmsnap_extent_map_get_zero_bytes(vmsnap_scan_get_map(disk->scan));
    }
    return allocated;
}

static void vma_free(VmsnapLayout *layout) {
    VmaLayout *vma = (VmaLayout *)layout;
    for (guint i = 0; i < vma->n_devices; i++)
        vmsnap_cluster_map_free(vma->devices[i].blocks);
    g_byte_array_unref(vma->header);
    g_free(vma->samples);
    g_free(vma);
}

static const VmsnapLayoutClass vma_class = {
    .segment_at = vma_segment_at,
    .compute = vma_compute,
    .allocated_bytes = vma_allocated_bytes,
    .free = vma_free,
};

/* Adds a blob behind the header. Returns: where it is, counted from the beginning of the blobs. */
static uint32_t header_add_blob(GByteArray *header, const void *data, size_t length) {
    uint32_t position = header->len - HEADER_BYTES;
    const uint8_t length_le[] = {(uint8_t)(length & 0xff), (uint8_t)(length >> 8)};
    g_byte_array_append(header, length_le, sizeof length_le);
    g_byte_array_append(header, data, (guint)length);
    return position;
}

static void header_add_device(GByteArray *header, guint number, const VmsnapDisk *disk) {
    uint32_t name = header_add_blob(header, disk->name, strlen(disk->name) + 1);
    uint8_t *device = header->data + DEVICES_OFFSET + (size_t)number * DEVICE_BYTES;
    vmsnap_put_be32(device, name);
    vmsnap_put_be64(device + 8, disk->size_bytes);
}

static void header_add_config(GByteArray *header, guint index, const VmsnapConfigFile *file) {
    gsize length;
    const void *content = g_bytes_get_data(file->content, &length);
    uint32_t name = header_add_blob(header, file->name, strlen(file->name) + 1);
    uint32_t data = header_add_blob(header, content, length);
    vmsnap_put_be32(header->data + CONFIG_NAMES_OFFSET + index * sizeof(uint32_t), name);
    vmsnap_put_be32(header->data + CONFIG_DATA_OFFSET + index * sizeof(uint32_t), data);
}

static void header_append_zeroes(GByteArray *header, guint length) {
    guint before = header->len;
    g_byte_array_set_size(header, before + length);
    memset(header->data + before, 0, length);
}

/* A blob at 0 would be none: so the first byte of them is left out. */
static GByteArray *header_new(const VmaLayout *vma, const VmsnapSnapshot *snapshot) {
    GByteArray *header = g_byte_array_new();
    header_append_zeroes(header, HEADER_BYTES + 1);
    for (guint i = 0; i < vma->n_devices; i++)
        header_add_device(header, i + 1, vma->devices[i].disk->disk);
    guint n_configs = 0;
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        if (file->kind == VMSNAP_FILE_CONFIG)
            header_add_config(header, n_configs++, file);
    }
    header_append_zeroes(header, (HEADER_ALIGNMENT - header->len % HEADER_ALIGNMENT) % HEADER_ALIGNMENT);
    vmsnap_put_be32(header->data, MAGIC);
    vmsnap_put_be32(header->data + 4, VERSION);
    memcpy(header->data + UUID_OFFSET, vma->uuid, sizeof vma->uuid);
    vmsnap_put_be64(header->data + CTIME_OFFSET, (uint64_t)(snapshot->instant_ns / 1000000000));
    vmsnap_put_be32(header->data + BLOB_OFFSET_OFFSET, HEADER_BYTES);
    vmsnap_put_be32(header->data + BLOB_OFFSET_OFFSET + 4, header->len - HEADER_BYTES);
    vmsnap_put_be32(header->data + BLOB_OFFSET_OFFSET + 8, header->len);
    put_md5(header->data, header->len, HEADER_MD5_OFFSET);
    return header;
}

/* An extent of each offset is found by these, almost without a look at the cluster maps, which takes longer. */
static void take_samples(VmaLayout *vma) {
    vma->step = MAX(1, vmsnap_divide_up(vma->n_extents, MAX_SAMPLES));
    uint64_t n_samples = vmsnap_divide_up(vma->n_extents, vma->step);
    vma->samples = g_new(uint64_t, n_samples);
    for (uint64_t i = 0; i < n_samples; i++)
        vma->samples[i] = data_blocks_before(vma, first_cluster_of_extent(vma, i * vma->step));
}

static VmsnapLayout *vma_layout_new(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot,
                                    VmsnapDiskView *const *disks, guint n_disks) {
    (void)options;
    VmaLayout *vma = g_malloc0(sizeof *vma + n_disks * sizeof vma->devices[0]);
    vma->base.class = &vma_class;
    vma->n_devices = n_disks;
    for (guint i = 0; i < n_disks; i++) {
        VmsnapClusterMap *blocks = vmsnap_cluster_map_new(vmsnap_scan_get_map(disks[i]->scan), NULL, BLOCK_BYTES);
        vma->devices[i] = (Device){disks[i], blocks, vma->n_clusters, vma->n_data_blocks};
        vma->n_clusters += vmsnap_divide_up(vmsnap_cluster_map_get_count(blocks), BLOCKS_PER_CLUSTER);
        vma->n_data_blocks += vmsnap_cluster_map_get_data_count(blocks);
    }
    vma->n_extents = vmsnap_divide_up(vma->n_clusters, CLUSTERS_PER_EXTENT);
    take_samples(vma);
    (void)uuid_parse(snapshot->uuid, vma->uuid);
    vma->header = header_new(vma, snapshot);
    vma->base.size_bytes = vma->header->len + vma->n_extents * EXTENT_HEADER_BYTES + vma->n_data_blocks * BLOCK_BYTES;
    return &vma->base;
}

static gboolean refuse(const VmsnapSnapshot *snapshot, GError **error, const char *format, ...) G_GNUC_PRINTF(3, 4);

static gboolean refuse(const VmsnapSnapshot *snapshot, GError **error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *reason = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to show '%s' as vma: %s", snapshot->machine, reason);
    return FALSE;
}

static gboolean check_disks(const VmsnapSnapshot *snapshot, GError **error) {
    if (snapshot->disks->len > MAX_DEVICES)
        return refuse(snapshot, error,
                      "it has %u disks, and an archive holds at most %d; choose with disks=", snapshot->disks->len,
                      MAX_DEVICES);
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        if (disk->size_bytes > MAX_DISK_BYTES)
            return refuse(snapshot, error, "disk '%s' is larger than 256 TiB; leave it out with exclude=", disk->name);
    }
    return TRUE;
}

static gboolean check_configs(const VmsnapSnapshot *snapshot, GError **error) {
    guint n_configs = 0;
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        if (file->kind != VMSNAP_FILE_CONFIG)
            continue;
        n_configs++;
        if (g_bytes_get_size(file->content) > MAX_BLOB_BYTES)
            return refuse(snapshot, error, "'%s' has %zu bytes, and a file in an archive at most %d; use format=raw",
                          file->name, g_bytes_get_size(file->content), MAX_BLOB_BYTES);
    }
    return n_configs <= MAX_CONFIGS ||
           refuse(snapshot, error,
                  "it has %u files of configuration, and an archive holds at most %d; name fewer with config=",
                  n_configs, MAX_CONFIGS);
}

static gboolean vma_check(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot, GError **error) {
    (void)options;
    return check_disks(snapshot, error) && check_configs(snapshot, error);
}

const VmsnapFormat vmsnap_format_vma = {
    .name = "vma",
    .one_file = TRUE,
    .needs_maps = TRUE,
    .check = vma_check,
    .layout_new = vma_layout_new,
};
