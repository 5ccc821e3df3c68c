/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Kept too simple to be wrong: whole files in memory, and each byte looked at. */
#include "naive_formats.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <uuid/uuid.h>

#define MAX_CHECKED_BYTES (96 << 10)

static gboolean never(gpointer user_data) {
    (void)user_data;
    return FALSE;
}

void naive_fixture_init(NaiveFixture *fixture, VmsnapSnapshot *snapshot, const VmsnapFormatOptions *format) {
    const VmsnapViewOptions options = {.readahead_bytes = 1 << 20, .format = *format};
    g_autoptr(GError) error = NULL;
    (void)vmsnap_view_check(&options, snapshot, &error);
    g_assert_no_error(error);
    *fixture = (NaiveFixture){.snapshot = snapshot, .format = *format, .layouts = g_ptr_array_new()};
    fixture->view = vmsnap_view_new(snapshot, &options);
    (void)vmsnap_view_start(fixture->view, never, NULL, &error);
    g_assert_no_error(error);
    const VmsnapNode *root = vmsnap_tree_get(fixture->view->tree, VMSNAP_TREE_ROOT_ID);
    for (guint i = 0; i < snapshot->disks->len && (i == 0 || !format->format->one_file); i++) {
        g_autofree char *name = vmsnap_format_name_file(format, g_ptr_array_index(snapshot->disks, i));
        g_ptr_array_add(fixture->layouts, vmsnap_tree_lookup(root, name)->layout);
    }
}

void naive_fixture_clear(NaiveFixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
    g_ptr_array_unref(fixture->layouts);
}

typedef struct {
    Latch called;
    int error;
    GByteArray *data; /* of a reader */
} Reading;

static void reading_filled(int error, gpointer user_data) {
    Reading *reading = user_data;
    reading->error = error;
    latch_count(&reading->called);
}

void naive_read(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer) {
    Reading reading = {0};
    latch_init(&reading.called);
    vmsnap_layout_fill(layout, offset, length, buffer, reading_filled, &reading);
    latch_wait(&reading.called, 1);
    latch_clear(&reading.called);
    g_assert_cmpint(reading.error, ==, 0);
}

static gboolean reading_done(int error, const struct iovec *pieces, guint n_pieces, gpointer user_data) {
    Reading *reading = user_data;
    reading->error = error;
    for (guint i = 0; i < n_pieces; i++)
        g_byte_array_append(reading->data, pieces[i].iov_base, (guint)pieces[i].iov_len);
    latch_count(&reading->called);
    return error == 0;
}

GByteArray *naive_reader_read(VmsnapReader *reader, uint64_t offset, size_t length) {
    Reading reading = {.data = g_byte_array_new()};
    latch_init(&reading.called);
    vmsnap_reader_read(reader, offset, length, reading_done, &reading);
    latch_wait(&reading.called, 1);
    latch_clear(&reading.called);
    g_assert_cmpint(reading.error, ==, 0);
    return reading.data;
}

GByteArray *naive_read_all(const VmsnapLayout *layout) {
    GByteArray *file = g_byte_array_new();
    g_byte_array_set_size(file, (guint)layout->size_bytes);
    if (file->len > 0)
        naive_read(layout, 0, file->len, file->data);
    return file;
}

static uint64_t get_bytes(const GByteArray *file, uint64_t offset, size_t n_bytes) {
    uint64_t value = 0;
    g_assert_cmpuint(offset + n_bytes, <=, file->len);
    for (size_t i = 0; i < n_bytes; i++)
        value = value << 8 | file->data[offset + i];
    return value;
}

static uint64_t get16(const GByteArray *file, uint64_t offset) {
    return get_bytes(file, offset, 2);
}

static uint64_t get32(const GByteArray *file, uint64_t offset) {
    return get_bytes(file, offset, 4);
}

static uint64_t get64(const GByteArray *file, uint64_t offset) {
    return get_bytes(file, offset, 8);
}

static void check_zero(const GByteArray *file, uint64_t offset, uint64_t end) {
    const uint8_t *bytes = file->data + offset;
    g_assert_cmpuint(offset, <=, end);
    g_assert_cmpuint(end, <=, file->len);
    if (offset < end && (bytes[0] != 0 || memcmp(bytes, bytes + 1, end - offset - 1) != 0))
        g_error("bytes %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT " are not zeroes", offset, end);
}

/* Whether a range, which may reach beyond the disk, has a byte of data. */
static gboolean has_data(const VmsnapDisk *disk, uint64_t offset, uint64_t length_bytes) {
    if (offset >= disk->size_bytes)
        return FALSE;
    length_bytes = MIN(length_bytes, disk->size_bytes - offset);
    return extents_count_zero(memory_disk_get_extents(disk), offset, length_bytes) < length_bytes;
}

/* Whether a range, which may reach beyond the disk, has a byte that has changed, or may have. */
static gboolean has_changed(const VmsnapDisk *disk, uint64_t offset, uint64_t length_bytes) {
    const GArray *changes = memory_disk_get_changes(disk);
    if (offset >= disk->size_bytes)
        return FALSE;
    length_bytes = MIN(length_bytes, disk->size_bytes - offset);
    return !changes || extents_count_zero(changes, offset, length_bytes) < length_bytes;
}

/* Checks that the bytes at @data are a range of the disk, with zeroes behind its end. */
static void check_disk_bytes(const VmsnapDisk *disk, uint64_t offset, const uint8_t *data, uint64_t length_bytes) {
    g_autofree uint8_t *expected = g_malloc0(length_bytes);
    if (offset < disk->size_bytes)
        memory_disk_expand(disk, expected, MIN(length_bytes, disk->size_bytes - offset), offset);
    g_assert_cmpmem(data, length_bytes, expected, length_bytes);
}

/* qcow2 */

#define QCOW2_HEADER_BYTES 104
#define QCOW2_COPIED (UINT64_C(1) << 63)

typedef struct {
    const GByteArray *file;
    const VmsnapDisk *disk;
    uint64_t cluster_bytes;
    uint64_t n_clusters;
    unsigned *uses; /* of each cluster of the file */
} Qcow2;

static void qcow2_use(const Qcow2 *qcow2, uint64_t offset, uint64_t n_clusters) {
    g_assert_cmpuint(offset % qcow2->cluster_bytes, ==, 0);
    for (uint64_t i = 0; i < n_clusters; i++) {
        g_assert_cmpuint(offset / qcow2->cluster_bytes + i, <, qcow2->n_clusters);
        qcow2->uses[offset / qcow2->cluster_bytes + i]++;
    }
}

char *naive_qcow2_dup_backing(const GByteArray *file, char **ret_format) {
    uint64_t name = get64(file, 8), name_bytes = get32(file, 16), offset = get32(file, 100);
    uint64_t cluster_bytes = UINT64_C(1) << get32(file, 20);
    if (name == 0) {
        g_assert_cmpuint(name_bytes, ==, 0);
        return NULL;
    }
    *ret_format = NULL;
    for (uint32_t type; (type = (uint32_t)get32(file, offset)) != 0;) {
        uint64_t length = get32(file, offset + 4);
        g_assert_cmphex(type, ==, 0xe2792aca);
        g_assert_null(*ret_format);
        *ret_format = g_strndup((const char *)file->data + offset + 8, length);
        offset += 8 + (length + 7) / 8 * 8;
        check_zero(file, offset - ((8 - length % 8) % 8), offset);
    }
    /* Behind the end of the extensions, and in the first cluster. */
    g_assert_cmpuint(get32(file, offset + 4), ==, 0);
    g_assert_cmpuint(name, ==, offset + 8);
    g_assert_cmpuint(name_bytes, >, 0);
    g_assert_cmpuint(name_bytes, <=, 1023);
    g_assert_cmpuint(name + name_bytes, <=, cluster_bytes);
    return g_strndup((const char *)file->data + name, name_bytes);
}

void naive_qcow2_expand(const GByteArray *file, GByteArray *disk) {
    uint64_t cluster_bytes = UINT64_C(1) << get32(file, 20), size = get64(file, 24), per_table = cluster_bytes / 8;
    const uint64_t place_mask = UINT64_C(0x00fffffffffffe00);
    g_assert_cmpuint(disk->len, ==, size);
    for (uint64_t offset = 0; offset < size; offset += cluster_bytes) {
        uint64_t cluster = offset / cluster_bytes, length = MIN(cluster_bytes, size - offset);
        g_assert_cmpuint(cluster / per_table, <, get32(file, 36));
        uint64_t table = get64(file, get64(file, 40) + cluster / per_table * 8) & place_mask;
        uint64_t entry = table ? get64(file, table + cluster % per_table * 8) : 0;
        g_assert_false(entry >> 62 & 1); /* compressed */
        if (entry & 1)
            memset(disk->data + offset, 0, length);
        else if (entry & place_mask)
            memcpy(disk->data + offset, file->data + (entry & place_mask), length);
    }
}

static void qcow2_check_header(const Qcow2 *qcow2) {
    const GByteArray *file = qcow2->file;
    g_assert_cmpmem(file->data, 4, "QFI\xfb", 4);
    g_assert_cmpuint(get32(file, 4), ==, 3);
    g_autofree char *format = NULL, *backing = naive_qcow2_dup_backing(file, &format);
    uint64_t name_end = backing ? get64(file, 8) + strlen(backing) : QCOW2_HEADER_BYTES;
    g_assert_cmpint(backing != NULL, ==, qcow2->disk->since != NULL);
    g_assert_cmpuint(UINT64_C(1) << get32(file, 20), ==, qcow2->cluster_bytes);
    g_assert_cmpuint(get64(file, 24), ==, qcow2->disk->size_bytes);
    check_zero(file, 32, 36); /* encryption */
    check_zero(file, 60, 96); /* snapshots and features */
    g_assert_cmpuint(get32(file, 96), ==, 4);
    g_assert_cmpuint(get32(file, 100), ==, QCOW2_HEADER_BYTES);
    check_zero(file, name_end, qcow2->cluster_bytes);
    qcow2_use(qcow2, 0, 1);
}

static void qcow2_check_refcounts(const Qcow2 *qcow2) {
    uint64_t table = get64(qcow2->file, 48), n_table_clusters = get32(qcow2->file, 56);
    uint64_t n_entries = n_table_clusters * qcow2->cluster_bytes / 8, per_block = qcow2->cluster_bytes / 2;
    qcow2_use(qcow2, table, n_table_clusters);
    for (uint64_t i = 0; i < n_entries; i++) {
        uint64_t block = get64(qcow2->file, table + i * 8);
        g_assert_cmpint(block != 0, ==, i * per_block < qcow2->n_clusters);
        if (block == 0)
            continue;
        qcow2_use(qcow2, block, 1);
        for (uint64_t k = 0; k < per_block; k++)
            g_assert_cmpuint(get16(qcow2->file, block + k * 2), ==, i * per_block + k < qcow2->n_clusters);
    }
    g_assert_cmpuint(n_entries * per_block, >=, qcow2->n_clusters);
}

static void qcow2_check_l2(const Qcow2 *qcow2, uint64_t table, uint64_t first_cluster) {
    uint64_t n_entries = qcow2->cluster_bytes / 8;
    qcow2_use(qcow2, table, 1);
    for (uint64_t i = 0; i < n_entries; i++) {
        uint64_t entry = get64(qcow2->file, table + i * 8), on_disk = (first_cluster + i) * qcow2->cluster_bytes;
        gboolean is_dirty = has_changed(qcow2->disk, on_disk, qcow2->cluster_bytes);
        gboolean is_stored = is_dirty && has_data(qcow2->disk, on_disk, qcow2->cluster_bytes);
        if (!is_stored) {
            /* Zeroes that hide what the backing file has there. */
            g_assert_cmphex(entry, ==, is_dirty && qcow2->disk->since ? 1 : 0);
            continue;
        }
        g_assert_cmphex(entry & QCOW2_COPIED, ==, QCOW2_COPIED);
        entry &= ~QCOW2_COPIED;
        qcow2_use(qcow2, entry, 1);
        check_disk_bytes(qcow2->disk, on_disk, qcow2->file->data + entry, qcow2->cluster_bytes);
    }
}

static void qcow2_check_l1(const Qcow2 *qcow2) {
    uint64_t n_entries = get32(qcow2->file, 36), table = get64(qcow2->file, 40);
    uint64_t per_table = qcow2->cluster_bytes / 8, range = per_table * qcow2->cluster_bytes;
    uint64_t n_clusters = (n_entries * 8 + qcow2->cluster_bytes - 1) / qcow2->cluster_bytes;
    g_assert_cmpuint(n_entries, ==, (qcow2->disk->size_bytes + range - 1) / range);
    qcow2_use(qcow2, table, n_clusters);
    check_zero(qcow2->file, table + n_entries * 8, table + n_clusters * qcow2->cluster_bytes);
    for (uint64_t i = 0; i < n_entries; i++) {
        uint64_t entry = get64(qcow2->file, table + i * 8);
        g_assert_cmpint(entry != 0, ==,
                        qcow2->disk->since ? has_changed(qcow2->disk, i * range, range)
                                           : has_data(qcow2->disk, i * range, range));
        if (entry == 0)
            continue;
        g_assert_cmphex(entry & QCOW2_COPIED, ==, QCOW2_COPIED);
        qcow2_check_l2(qcow2, entry & ~QCOW2_COPIED, i * per_table);
    }
}

void naive_check_qcow2(const GByteArray *file, const VmsnapDisk *disk, uint32_t cluster_bytes) {
    g_assert_cmpuint(file->len % cluster_bytes, ==, 0);
    uint64_t n_clusters = file->len / cluster_bytes;
    g_autofree unsigned *uses = g_new0(unsigned, n_clusters);
    Qcow2 qcow2 = {file, disk, cluster_bytes, n_clusters, uses};
    qcow2_check_header(&qcow2);
    qcow2_check_refcounts(&qcow2);
    qcow2_check_l1(&qcow2);
    for (uint64_t i = 0; i < n_clusters; i++)
        g_assert_cmpuint(uses[i], ==, 1);
}

/* vma */

#define VMA_HEADER_BYTES 12288
#define VMA_CLUSTER_BYTES 65536
#define VMA_BLOCK_BYTES 4096
#define VMA_EXTENT_HEADER_BYTES 512

typedef struct {
    const GByteArray *file;
    const VmsnapSnapshot *snapshot;
    uint64_t header_bytes;
    GPtrArray *seen; /* of GByteArray: for each disk, how often each of its clusters came; or NULL */
} Vma;

static void vma_check_md5(const GByteArray *file, uint64_t offset, uint64_t length, uint64_t sum_at) {
    static const uint8_t zeroes[16];
    uint8_t sum[16];
    gsize n_bytes = sizeof sum;
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_MD5);
    g_checksum_update(checksum, file->data + offset, (gssize)sum_at);
    g_checksum_update(checksum, zeroes, sizeof zeroes);
    g_checksum_update(checksum, file->data + offset + sum_at + 16, (gssize)(length - sum_at - 16));
    g_checksum_get_digest(checksum, sum, &n_bytes);
    g_assert_cmpmem(file->data + offset + sum_at, 16, sum, 16);
}

static void vma_check_uuid(const Vma *vma, uint64_t offset) {
    uuid_t uuid;
    char text[UUID_STR_LEN];
    memcpy(uuid, vma->file->data + offset, sizeof uuid);
    uuid_unparse_lower(uuid, text);
    g_assert_cmpstr(text, ==, vma->snapshot->uuid);
}

/* Checks the blob at an offset of the blobs. */
static void vma_check_blob(const Vma *vma, uint64_t blob, const void *expected, size_t length) {
    g_assert_cmpuint(blob, >, 0);
    uint64_t offset = VMA_HEADER_BYTES + blob;
    g_assert_cmpuint(offset + 2 + length, <=, vma->header_bytes);
    g_assert_cmpuint(vma->file->data[offset] | vma->file->data[offset + 1] << 8, ==, length);
    g_assert_cmpmem(vma->file->data + offset + 2, length, expected, length);
}

static void vma_check_configs(const Vma *vma) {
    guint n_configs = 0;
    for (guint i = 0; i < vma->snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(vma->snapshot->files, i);
        if (file->kind != VMSNAP_FILE_CONFIG)
            continue;
        gsize length;
        const void *content = g_bytes_get_data(file->content, &length);
        vma_check_blob(vma, get32(vma->file, 2044 + n_configs * 4), file->name, strlen(file->name) + 1);
        vma_check_blob(vma, get32(vma->file, 3068 + n_configs * 4), content, length);
        n_configs++;
    }
    check_zero(vma->file, 2044 + n_configs * 4, 3068);
    check_zero(vma->file, 3068 + n_configs * 4, 4092);
}

static void vma_check_devices(const Vma *vma) {
    const GPtrArray *disks = vma->snapshot->disks;
    check_zero(vma->file, 4092, 4096 + 32); /* there is no device 0 */
    for (guint i = 0; i < disks->len; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(disks, i);
        uint64_t device = 4096 + 32 * (i + 1);
        vma_check_blob(vma, get32(vma->file, device), disk->name, strlen(disk->name) + 1);
        check_zero(vma->file, device + 4, device + 8);
        g_assert_cmpuint(get64(vma->file, device + 8), ==, disk->size_bytes);
        check_zero(vma->file, device + 16, device + 32);
    }
    check_zero(vma->file, 4096 + 32 * (disks->len + 1), VMA_HEADER_BYTES + 1);
}

static void vma_check_header(Vma *vma) {
    const GByteArray *file = vma->file;
    g_assert_cmpmem(file->data, 4, "VMA", 4);
    g_assert_cmpuint(get32(file, 4), ==, 1);
    vma_check_uuid(vma, 8);
    g_assert_cmpint((int64_t)get64(file, 24), ==, vma->snapshot->instant_ns / 1000000000);
    vma->header_bytes = get32(file, 56);
    g_assert_cmpuint(get32(file, 48), ==, VMA_HEADER_BYTES);
    g_assert_cmpuint(get32(file, 52), ==, vma->header_bytes - VMA_HEADER_BYTES);
    g_assert_cmpuint(vma->header_bytes % 512, ==, 0);
    vma_check_md5(file, 0, vma->header_bytes, 32);
    check_zero(file, 60, 2044);
    vma_check_configs(vma);
    vma_check_devices(vma);
}

/* Checks one cluster. Returns: the offset behind its blocks. */
static uint64_t vma_check_cluster(const Vma *vma, uint64_t info, uint64_t offset) {
    uint64_t number = info >> 32 & 0xff, cluster = info & 0xffffffff, mask = info >> 48;
    g_assert_cmphex(info >> 40 & 0xff, ==, 0);
    g_assert_cmpuint(number, >=, 1);
    g_assert_cmpuint(number, <=, vma->snapshot->disks->len);
    const VmsnapDisk *disk = g_ptr_array_index(vma->snapshot->disks, number - 1);
    g_assert_cmpuint(cluster * VMA_CLUSTER_BYTES, <, disk->size_bytes);
    if (vma->seen)
        ((GByteArray *)g_ptr_array_index(vma->seen, number - 1))->data[cluster]++;
    for (unsigned i = 0; i < 16; i++) {
        uint64_t on_disk = cluster * VMA_CLUSTER_BYTES + i * VMA_BLOCK_BYTES;
        gboolean stored = mask >> i & 1;
        g_assert_cmpint(stored, ==, has_data(disk, on_disk, VMA_BLOCK_BYTES));
        if (!stored)
            continue;
        g_assert_cmpuint(offset + VMA_BLOCK_BYTES, <=, vma->file->len);
        check_disk_bytes(disk, on_disk, vma->file->data + offset, VMA_BLOCK_BYTES);
        offset += VMA_BLOCK_BYTES;
    }
    return offset;
}

/* Returns: the offset behind the extent. */
static uint64_t vma_check_extent(const Vma *vma, uint64_t start) {
    g_assert_cmpuint(start + VMA_EXTENT_HEADER_BYTES, <=, vma->file->len);
    g_assert_cmpmem(vma->file->data + start, 4, "VMAE", 4);
    check_zero(vma->file, start + 4, start + 6);
    vma_check_uuid(vma, start + 8);
    vma_check_md5(vma->file, start, VMA_EXTENT_HEADER_BYTES, 24);
    uint64_t blocks_start = start + VMA_EXTENT_HEADER_BYTES, offset = blocks_start;
    gboolean ended = FALSE;
    for (unsigned i = 0; i < 59; i++) {
        uint64_t info = get64(vma->file, start + 40 + i * 8);
        g_assert_true(i > 0 || info != 0);
        g_assert_true(!ended || info == 0);
        ended = info == 0;
        if (!ended)
            offset = vma_check_cluster(vma, info, offset);
    }
    g_assert_true(!ended || !vma->seen || offset == vma->file->len);
    g_assert_cmpuint(get16(vma->file, start + 6) * VMA_BLOCK_BYTES, ==, offset - blocks_start);
    return offset;
}

void naive_check_vma(const GByteArray *file, const VmsnapSnapshot *snapshot) {
    Vma vma = {.file = file, .snapshot = snapshot};
    vma.seen = g_ptr_array_new_with_free_func((GDestroyNotify)g_byte_array_unref);
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        guint n_clusters = (guint)((disk->size_bytes + VMA_CLUSTER_BYTES - 1) / VMA_CLUSTER_BYTES);
        GByteArray *seen = g_byte_array_new();
        g_byte_array_set_size(seen, n_clusters);
        if (n_clusters > 0)
            memset(seen->data, 0, n_clusters);
        g_ptr_array_add(vma.seen, seen);
    }
    vma_check_header(&vma);
    for (uint64_t offset = vma.header_bytes; offset < file->len;)
        offset = vma_check_extent(&vma, offset);
    for (guint i = 0; i < vma.seen->len; i++) {
        const GByteArray *seen = g_ptr_array_index(vma.seen, i);
        for (guint k = 0; k < seen->len; k++)
            g_assert_cmpuint(seen->data[k], ==, 1);
    }
    g_ptr_array_unref(vma.seen);
}

void naive_check_vma_extent(const GByteArray *bytes, const VmsnapSnapshot *snapshot) {
    const Vma vma = {.file = bytes, .snapshot = snapshot};
    (void)vma_check_extent(&vma, 0);
}

/* Segments */

static void check_segment(const VmsnapLayout *layout, const GByteArray *file, uint64_t offset,
                          const VmsnapSegment *segment) {
    const uint8_t *bytes = file->data + offset;
    uint64_t length = segment->length_bytes;
    g_assert_cmpuint(length, >, 0);
    g_assert_cmpuint(length, <=, file->len - offset);
    if (segment->kind == VMSNAP_SEGMENT_ZERO) {
        check_zero(file, offset, offset + length);
    } else if (segment->kind == VMSNAP_SEGMENT_MEMORY) {
        g_assert_cmpmem(bytes, length, segment->memory, length);
    } else if (segment->kind == VMSNAP_SEGMENT_DISK) {
        g_assert_cmpuint(segment->disk_offset + length, <=, segment->disk->disk->size_bytes);
        check_disk_bytes(segment->disk->disk, segment->disk_offset, bytes, length);
    } else {
        g_assert_cmpint(segment->kind, ==, VMSNAP_SEGMENT_COMPUTED);
        g_autofree uint8_t *computed = g_malloc(length);
        vmsnap_layout_compute(layout, offset, length, computed);
        g_assert_cmpmem(computed, length, bytes, length);
    }
}

void naive_check_segments(const VmsnapLayout *layout, const GByteArray *file) {
    uint64_t allocated = 0;
    VmsnapSegment segment;
    g_assert_cmpuint(layout->size_bytes, ==, file->len);
    for (uint64_t offset = 0; offset < file->len; offset += segment.length_bytes) {
        vmsnap_layout_get_segment(layout, offset, &segment);
        check_segment(layout, file, offset, &segment);
        allocated += segment.kind == VMSNAP_SEGMENT_ZERO ? 0 : segment.length_bytes;
    }
    /* An overlay counts zeroes inside its clusters of data, too. */
    if (layout->disk && layout->disk->changes && allocated < layout->size_bytes)
        g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), <=, layout->size_bytes);
    else
        g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), ==, allocated);
}

void naive_check_range(const VmsnapLayout *layout, const GByteArray *file, uint64_t offset, size_t length) {
    if (length == 0)
        return;
    g_autofree uint8_t *buffer = g_malloc(length);
    naive_read(layout, offset, length, buffer);
    g_assert_cmpmem(buffer, length, file->data + offset, length);
}

/* Reads and seeks */

void naive_check_reads(const NaiveFixture *fixture, const VmsnapLayout *layout, const GByteArray *file, int n) {
    VmsnapReader *reader = vmsnap_reader_new(layout, &fixture->view->resources);
    for (int i = 0; i < n; i++) {
        uint64_t offset = random_below(file->len),
                 length = 1 + random_below(random_below(4) ? 5000 : MAX_CHECKED_BYTES);
        length = MIN(length, file->len - offset);
        naive_check_range(layout, file, offset, length);
        g_autoptr(GByteArray) data = naive_reader_read(reader, offset, length + 1);
        length = MIN(length + 1, file->len - offset);
        g_assert_cmpmem(data->data, data->len, file->data + offset, length);
    }
    vmsnap_reader_close(reader);
}

void naive_check_computed(const VmsnapLayout *layout, const GByteArray *file, int n) {
    for (int i = 0; i < n; i++) {
        VmsnapSegment segment;
        uint64_t offset = random_below(random_below(2) ? file->len : MIN(file->len, (64 << 10)));
        vmsnap_layout_get_segment(layout, offset, &segment);
        if (segment.kind != VMSNAP_SEGMENT_COMPUTED)
            continue;
        size_t length = 1 + random_below(segment.length_bytes);
        g_autofree uint8_t *computed = g_malloc(length);
        vmsnap_layout_compute(layout, offset, length, computed);
        g_assert_cmpmem(computed, length, file->data + offset, length);
    }
}

typedef struct {
    Latch called;
    int error;
    uint64_t offset;
} Answer;

static void seek_done(int error, uint64_t offset, gpointer user_data) {
    Answer *answer = user_data;
    answer->error = error;
    answer->offset = offset;
    latch_count(&answer->called);
}

int64_t layout_seek(const VmsnapLayout *layout, uint64_t offset, int whence) {
    Answer answer;
    latch_init(&answer.called);
    vmsnap_layout_seek(layout, offset, whence, seek_done, &answer);
    latch_wait(&answer.called, 1);
    latch_clear(&answer.called);
    return answer.error ? answer.error : (int64_t)answer.offset;
}

int64_t naive_seek(const VmsnapLayout *layout, uint64_t offset, int whence) {
    VmsnapSegment segment;
    for (; offset < layout->size_bytes; offset += segment.length_bytes) {
        vmsnap_layout_get_segment(layout, offset, &segment);
        if ((segment.kind == VMSNAP_SEGMENT_ZERO) == (whence == SEEK_HOLE))
            return (int64_t)offset;
    }
    return whence == SEEK_HOLE ? (int64_t)layout->size_bytes : -ENXIO;
}

void naive_check_seeks(const VmsnapLayout *layout, int n) {
    for (int i = 0; i < n; i++) {
        uint64_t offset = random_below(layout->size_bytes);
        int whence = random_below(2) ? SEEK_DATA : SEEK_HOLE;
        g_assert_cmpint(layout_seek(layout, offset, whence), ==, naive_seek(layout, offset, whence));
    }
}

void naive_check_files(const NaiveFixture *fixture) {
    for (guint i = 0; i < fixture->layouts->len; i++) {
        const VmsnapLayout *layout = g_ptr_array_index(fixture->layouts, i);
        const VmsnapDisk *disk = g_ptr_array_index(fixture->snapshot->disks, i);
        g_autoptr(GByteArray) file = naive_read_all(layout);
        if (fixture->format.format == &vmsnap_format_qcow2)
            naive_check_qcow2(file, disk, fixture->format.cluster_bytes);
        else if (fixture->format.format == &vmsnap_format_vma)
            naive_check_vma(file, fixture->snapshot);
        else if (!fixture->format.only_changed)
            check_disk_bytes(disk, 0, file->data, file->len);
        naive_check_segments(layout, file);
    }
}
