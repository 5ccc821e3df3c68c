/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files of the formats that are computed, of any disks, against what a parser of their own makes of them. */
#include "extents.h"
#include "memory_backend.h"
#include "naive_formats.h"

#include "vmsnap/error.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)
#define TIB(n) ((uint64_t)(n) << 40)
/* What no healthy machine needs, however busy it is, for what should take some milliseconds. */
#define MAX_SECONDS 20

/* What other programs do meanwhile does not count. */
static gint64 cpu_us(void) {
    return (gint64)clock() * (G_USEC_PER_SEC / CLOCKS_PER_SEC);
}

static const VmsnapFormatOptions vma = {.format = &vmsnap_format_vma};

static VmsnapFormatOptions qcow2(uint32_t cluster_bytes) {
    return (VmsnapFormatOptions){.format = &vmsnap_format_qcow2, .cluster_bytes = cluster_bytes};
}

static GArray *extents_empty(void) {
    return g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
}

/* Runs of all lengths, those of clusters and of most of the disk among them. */
static GArray *extents_any(uint64_t size) {
    uint64_t max_length = 1 + (random_below(3) ? random_below(size / 4 + 1) : random_below(KIB(16)));
    return extents_random(size, MAX(max_length, size / 300 + 1));
}

static GArray *extents_one(VmsnapExtentKind kind, uint64_t size) {
    GArray *extents = extents_empty();
    if (size > 0)
        extents_append(extents, kind, size);
    return extents;
}

static void add_disk(VmsnapSnapshot *snapshot, GArray *extents) {
    g_autofree char *name = g_strdup_printf("vd%c", (char)('a' + snapshot->disks->len));
    (void)memory_snapshot_add_disk(snapshot, name, extents);
}

/* Files of each kind: an archive has those that describe the machine. */
static void add_files(VmsnapSnapshot *snapshot) {
    vmsnap_snapshot_add_file(snapshot, "domain.xml", g_bytes_new("<domain/>", 9), VMSNAP_FILE_CONFIG);
    vmsnap_snapshot_add_file(snapshot, "nvram.fd", g_bytes_new("nvram", 5), VMSNAP_FILE_BOOT);
    vmsnap_snapshot_add_file(snapshot, "backup.xml", g_bytes_new("<domainbackup/>", 15), VMSNAP_FILE_HIDDEN);
    vmsnap_snapshot_add_file(snapshot, "empty", g_bytes_new("", 0), VMSNAP_FILE_CONFIG);
}

/* @snapshot: (transfer full) */
static void check_snapshot(VmsnapSnapshot *snapshot, const VmsnapFormatOptions *format) {
    NaiveFixture fixture;
    naive_fixture_init(&fixture, snapshot, format);
    naive_check_files(&fixture);
    for (guint i = 0; i < fixture.layouts->len; i++) {
        const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, i);
        g_autoptr(GByteArray) file = naive_read_all(layout);
        naive_check_reads(&fixture, layout, file, 15);
        naive_check_computed(layout, file, 8);
        naive_check_seeks(layout, 15);
    }
    naive_fixture_clear(&fixture);
}

/* @extents: (transfer full) */
static void check_disk(GArray *extents, const VmsnapFormatOptions *format) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    add_disk(snapshot, extents);
    check_snapshot(snapshot, format);
}

/* A size below some bound, often close to a multiple of @step. */
static uint64_t random_size(uint64_t max_size, uint64_t step) {
    uint64_t size = random_below(max_size + 1), close = random_below(3);
    if (size < step || random_below(2))
        return size;
    return size / step * step + close - 1;
}

static void test_qcow2_of_any_disks_equals_naive(void) {
    for (int i = 0; i < 16; i++) {
        VmsnapFormatOptions format = qcow2(UINT32_C(512) << random_below(i % 16 ? 7 : 13));
        uint64_t cluster_bytes = format.cluster_bytes,
                 max_size = MIN(cluster_bytes * 600, MAX(MIB(1), cluster_bytes * 3));
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        for (uint64_t n_disks = 1 + random_below(3); snapshot->disks->len < n_disks;)
            add_disk(snapshot, extents_any(random_size(max_size, cluster_bytes) / 512 * 512));
        check_snapshot(snapshot, &format);
    }
}

static void test_qcow2_of_one_kind(void) {
    static const uint64_t sizes[] = {0, 512, 1024, KIB(32), KIB(32) + 512, KIB(64), MIB(1), MIB(1) - 512};
    for (uint32_t cluster_bytes = 512; cluster_bytes <= KIB(32); cluster_bytes *= 8) {
        VmsnapFormatOptions format = qcow2(cluster_bytes);
        for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
            check_disk(extents_one(VMSNAP_EXTENT_DATA, sizes[i]), &format);
            check_disk(extents_one(VMSNAP_EXTENT_ZERO, sizes[i]), &format);
        }
    }
    VmsnapFormatOptions largest = qcow2(MIB(2));
    check_disk(extents_one(VMSNAP_EXTENT_DATA, MIB(2) + 512), &largest);
}

static void test_qcow2_of_an_empty_disk_has_no_tables(void) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapFormatOptions format = qcow2(65536);
    add_disk(snapshot, extents_empty());
    naive_fixture_init(&fixture, snapshot, &format);
    /* The header, the refcount table and its block. */
    const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, 0);
    g_assert_cmpuint(layout->size_bytes, ==, 3 * 65536);
    naive_fixture_clear(&fixture);
}

/* The refcounts of so many clusters need a table of several clusters, and count those of the table, too. */
static void test_qcow2_may_have_many_refcounts(void) {
    VmsnapFormatOptions format = qcow2(512);
    for (uint64_t size = MIB(8) - KIB(2); size <= MIB(8) + KIB(2); size += 512)
        if (size % KIB(1) == 0)
            check_disk(extents_one(VMSNAP_EXTENT_DATA, size), &format);
}

static void test_vma_of_any_disks_equals_naive(void) {
    for (int i = 0; i < 16; i++) {
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        uint64_t max_size = i % 8 ? KIB(700) : MIB(9);
        for (uint64_t n_disks = 1 + random_below(5); snapshot->disks->len < n_disks;)
            add_disk(snapshot,
                     extents_any(random_below(6) ? random_size(max_size, random_below(2) ? 4096 : 65536) : 0));
        if (random_below(2))
            add_files(snapshot);
        check_snapshot(snapshot, &vma);
    }
}

/* Each cluster of an extent, and as many as fill extents. */
static void test_vma_of_one_kind(void) {
    static const uint64_t sizes[] = {
        1,         4095,     4096, 4097, 65535, 65536, 65537, KIB(80), 59 << 16, (59 << 16) + 1, (59 << 16) - 4096,
        118 << 16, 119 << 16};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        check_disk(extents_one(VMSNAP_EXTENT_DATA, sizes[i]), &vma);
        check_disk(extents_one(VMSNAP_EXTENT_ZERO, sizes[i]), &vma);
    }
}

/* Bit n of @which makes disk n one that has a size. */
static void check_vma_with_empty_disks(unsigned which) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    for (unsigned i = 0; i < 4; i++)
        add_disk(snapshot, which >> i & 1 ? extents_any(1 + random_below(KIB(300))) : extents_empty());
    add_files(snapshot);
    check_snapshot(snapshot, &vma);
}

static void test_vma_may_have_empty_disks_anywhere(void) {
    for (unsigned which = 0; which < 16; which++)
        check_vma_with_empty_disks(which);
}

static void test_vma_of_many_small_disks(void) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    for (int i = 0; i < 254; i++) {
        g_autofree char *name = g_strdup_printf("disk-%d", i);
        (void)memory_snapshot_add_disk(snapshot, name, extents_any(random_below(20000)));
    }
    check_snapshot(snapshot, &vma);
}

/* Blobs as large as they may be, and as many. */
static void test_vma_of_many_files(void) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    add_disk(snapshot, extents_any(100000));
    for (int i = 0; i < 256; i++) {
        g_autofree char *name = g_strdup_printf("file-%d", i);
        gsize length = i % 64 ? (gsize)i : 65535;
        char *content = g_malloc(length + 1);
        memset(content, i, length);
        vmsnap_snapshot_add_file(snapshot, name, g_bytes_new_take(content, length), VMSNAP_FILE_CONFIG);
    }
    check_snapshot(snapshot, &vma);
}

/* Disks of 16 TiB */

/* Runs of up to 1 MiB of data, far apart. */
static GArray *extents_sparse(uint64_t size, uint64_t max_zero_bytes) {
    GArray *extents = extents_empty();
    while (size > 0) {
        uint64_t zero = 1 + random_below(max_zero_bytes), data = 1 + random_below(MIB(1));
        zero = MIN(zero, size);
        data = MIN(data, size - zero);
        extents_append(extents, VMSNAP_EXTENT_ZERO, zero);
        if (data > 0)
            extents_append(extents, VMSNAP_EXTENT_DATA, data);
        size -= zero + data;
    }
    return extents;
}

/* Returns: how many clusters have a byte of data. */
static uint64_t count_clusters(const GArray *extents, uint64_t cluster_bytes) {
    uint64_t n = 0, counted = 0, start = 0; /* clusters before counted are */
    for (guint i = 0; i < extents->len; i++) {
        const VmsnapExtent *extent = &g_array_index(extents, VmsnapExtent, i);
        uint64_t first = start / cluster_bytes, end = (start + extent->length_bytes - 1) / cluster_bytes + 1;
        start += extent->length_bytes;
        first = MAX(first, counted);
        if (extent->kind == VMSNAP_EXTENT_ZERO || first >= end)
            continue;
        n += end - first;
        counted = end;
    }
    return n;
}

static uint64_t read64(const VmsnapLayout *layout, uint64_t offset) {
    uint64_t value;
    naive_read(layout, offset, sizeof value, (uint8_t *)&value);
    return GUINT64_FROM_BE(value);
}

/* Checks some bytes of the disk by way of the tables, as QEMU does. */
static void check_qcow2_spot(const VmsnapLayout *layout, const VmsnapDisk *disk, uint64_t cluster_bytes) {
    uint64_t offset = extents_random_offset(memory_disk_get_extents(disk), disk->size_bytes);
    uint64_t cluster = offset / cluster_bytes, per_table = cluster_bytes / 8;
    uint64_t length = MIN((cluster + 1) * cluster_bytes, disk->size_bytes) - offset;
    uint8_t data[4096] = {0}, expected[4096];
    length = MIN(length, sizeof data);
    memory_disk_expand(disk, expected, length, offset);
    uint64_t table = read64(layout, read64(layout, 40) + cluster / per_table * 8) & ~(UINT64_C(1) << 63);
    uint64_t place = table ? read64(layout, table + cluster % per_table * 8) & ~(UINT64_C(1) << 63) : 0;
    if (place)
        naive_read(layout, place + offset % cluster_bytes, length, data);
    g_assert_cmpmem(data, length, expected, length);
}

static void check_qcow2_size(const VmsnapLayout *layout, const VmsnapDisk *disk, uint64_t cluster_bytes) {
    const GArray *extents = memory_disk_get_extents(disk);
    uint64_t range = cluster_bytes * cluster_bytes / 8, n = layout->size_bytes / cluster_bytes;
    uint64_t n_blocks = (n * 2 + cluster_bytes - 1) / cluster_bytes;
    uint64_t n_l1_bytes = (disk->size_bytes + range - 1) / range * 8;
    g_assert_cmpuint(layout->size_bytes % cluster_bytes, ==, 0);
    g_assert_cmpuint(n, ==,
                     1 + n_blocks + (n_blocks * 8 + cluster_bytes - 1) / cluster_bytes +
                         (n_l1_bytes + cluster_bytes - 1) / cluster_bytes + count_clusters(extents, range) +
                         count_clusters(extents, cluster_bytes));
}

static void check_huge_qcow2(GArray *extents, uint32_t cluster_bytes) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapFormatOptions format = qcow2(cluster_bytes);
    gint64 start_us = cpu_us();
    add_disk(snapshot, extents);
    naive_fixture_init(&fixture, snapshot, &format);
    const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, 0);
    const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, 0);
    check_qcow2_size(layout, disk, cluster_bytes);
    for (int i = 0; i < 200; i++)
        check_qcow2_spot(layout, disk, cluster_bytes);
    g_assert_cmpint(layout_seek(layout, 0, SEEK_HOLE), ==, naive_seek(layout, 0, SEEK_HOLE));
    g_assert_cmpint(cpu_us() - start_us, <, MAX_SECONDS * G_USEC_PER_SEC);
    naive_fixture_clear(&fixture);
}

static void test_qcow2_of_a_huge_disk(void) {
    for (uint32_t cluster_bytes = 8192; cluster_bytes <= MIB(2); cluster_bytes *= 16) {
        uint64_t size = cluster_bytes == 8192 ? TIB(16) : TIB(16) - 512;
        check_huge_qcow2(extents_sparse(size, GIB(40)), cluster_bytes);
    }
    check_huge_qcow2(extents_sparse(TIB(16), GIB(8)), 65536);
    check_huge_qcow2(extents_one(VMSNAP_EXTENT_DATA, TIB(16)), 65536);
    check_huge_qcow2(extents_one(VMSNAP_EXTENT_ZERO, TIB(16)), 65536);
}

/* Checks the first extent that begins at an offset or after it. */
static void check_vma_spot(const VmsnapLayout *layout, const VmsnapSnapshot *snapshot, uint64_t offset) {
    uint64_t length = MIN(layout->size_bytes - offset, MIB(8));
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, (guint)length);
    naive_read(layout, offset, length, bytes->data);
    for (guint i = 0; i + 512 <= bytes->len; i += 512)
        if (memcmp(bytes->data + i, "VMAE", 5) == 0 && i + MIB(4) <= bytes->len) {
            g_byte_array_remove_range(bytes, 0, i);
            naive_check_vma_extent(bytes, snapshot);
            return;
        }
    g_assert_not_reached();
}

static void check_huge_vma(GArray *extents) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    gint64 start_us = cpu_us();
    uint64_t n_blocks = count_clusters(extents, 4096);
    add_disk(snapshot, extents);
    naive_fixture_init(&fixture, snapshot, &vma);
    const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, 0);
    const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, 0);
    uint64_t n_clusters = (disk->size_bytes + 65535) / 65536;
    g_assert_cmpuint(layout->size_bytes, ==, 12288 + 512 + (n_clusters + 58) / 59 * 512 + n_blocks * 4096);
    check_vma_spot(layout, snapshot, random_below(layout->size_bytes - MIB(8)) / 512 * 512);
    check_vma_spot(layout, snapshot, layout->size_bytes - MIN(layout->size_bytes, MIB(8)));
    g_assert_cmpint(cpu_us() - start_us, <, MAX_SECONDS * G_USEC_PER_SEC);
    naive_fixture_clear(&fixture);
}

static void test_vma_of_a_huge_disk(void) {
    check_huge_vma(extents_sparse(TIB(16) - 4711, GIB(40)));
    check_huge_vma(extents_sparse(TIB(16), GIB(8)));
    check_huge_vma(extents_one(VMSNAP_EXTENT_DATA, TIB(16)));
    check_huge_vma(extents_one(VMSNAP_EXTENT_ZERO, TIB(16)));
}

/* One worker of FUSE walks for a SEEK_HOLE, and others wait for it. */
static void test_vma_finds_what_is_far_away_in_time(void) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    GArray *extents = extents_one(VMSNAP_EXTENT_ZERO, TIB(16));
    extents_append(extents, VMSNAP_EXTENT_DATA, 1);
    add_disk(snapshot, extents);
    naive_fixture_init(&fixture, snapshot, &vma);
    const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, 0);
    gint64 start_us = cpu_us();
    g_assert_cmpint(layout_seek(layout, 0, SEEK_HOLE), ==, (int64_t)layout->size_bytes - 4095);
    g_assert_cmpint(cpu_us() - start_us, <, G_USEC_PER_SEC);
    naive_fixture_clear(&fixture);
}

/* Data to the end, in pieces: no hole is told before it, whether there is one or not, and that after no long walk. */
static void check_looks_no_further(const VmsnapFormatOptions *format, GArray *extents) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    add_disk(snapshot, extents);
    naive_fixture_init(&fixture, snapshot, format);
    const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, 0);
    gint64 start_us = cpu_us();
    g_assert_cmpint(layout_seek(layout, 0, SEEK_HOLE), ==, (int64_t)layout->size_bytes);
    g_assert_cmpint(cpu_us() - start_us, <, G_USEC_PER_SEC);
    g_assert_cmpint(layout_seek(layout, 4711, SEEK_DATA), ==, 4711);
    naive_fixture_clear(&fixture);
}

static void test_no_hole_is_looked_for_without_end(void) {
    static const VmsnapFormatOptions qcow2 = {.format = &vmsnap_format_qcow2, .cluster_bytes = 4096};
    const uint64_t fragmented_bytes = UINT64_C(24000) * 4096;
    check_looks_no_further(&vma, extents_one(VMSNAP_EXTENT_DATA, TIB(16)));
    check_looks_no_further(&vma, extents_alternate(fragmented_bytes, 4096));
    check_looks_no_further(&qcow2, extents_one(VMSNAP_EXTENT_DATA, TIB(4)));
    check_looks_no_further(&qcow2, extents_alternate(fragmented_bytes, 4096));
}

/* What a format cannot hold */

/* @snapshot: (transfer full); @reason: why it is refused, or NULL if it is not */
static void check_check(VmsnapSnapshot *snapshot, const VmsnapFormatOptions *format, const char *reason) {
    g_autoptr(GError) error = NULL;
    gboolean accepted = vmsnap_format_check(format, snapshot, &error);
    g_assert_cmpint(accepted, ==, reason == NULL);
    if (reason) {
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
        if (!strstr(error->message, reason))
            g_error("'%s' does not say '%s'", error->message, reason);
    }
    g_assert_no_error(reason ? NULL : error);
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static VmsnapSnapshot *snapshot_with_disk(uint64_t size) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    add_disk(snapshot, extents_one(VMSNAP_EXTENT_ZERO, size));
    return snapshot;
}

static void test_vma_has_at_most_254_disks(void) {
    for (guint n_disks = 254; n_disks <= 255; n_disks++) {
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        for (guint i = 0; i < n_disks; i++) {
            g_autofree char *name = g_strdup_printf("disk-%u", i);
            (void)memory_snapshot_add_disk(snapshot, name, extents_empty());
        }
        check_check(snapshot, &vma, n_disks == 254 ? NULL : "255 disks");
    }
}

static VmsnapSnapshot *snapshot_with_file(gsize length, VmsnapFileKind kind) {
    VmsnapSnapshot *snapshot = snapshot_with_disk(1);
    vmsnap_snapshot_add_file(snapshot, "notes", g_bytes_new_take(g_malloc0(length), length), kind);
    return snapshot;
}

static void test_vma_has_files_of_at_most_65535_bytes(void) {
    check_check(snapshot_with_file(65535, VMSNAP_FILE_CONFIG), &vma, NULL);
    check_check(snapshot_with_file(65536, VMSNAP_FILE_CONFIG), &vma, "'notes' has 65536 bytes");
    check_check(snapshot_with_file(65536, VMSNAP_FILE_BOOT), &vma, NULL);
    check_check(snapshot_with_file(65536, VMSNAP_FILE_HIDDEN), &vma, NULL);
    VmsnapFormatOptions format = qcow2(65536);
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    vmsnap_snapshot_add_file(snapshot, "notes", g_bytes_new_take(g_malloc0(65536), 65536), VMSNAP_FILE_CONFIG);
    check_check(snapshot, &format, NULL);
}

static void test_vma_has_at_most_256_files(void) {
    for (guint n_files = 256; n_files <= 257; n_files++) {
        VmsnapSnapshot *snapshot = snapshot_with_disk(1);
        for (guint i = 0; i < n_files; i++)
            vmsnap_snapshot_add_file(snapshot, "notes", g_bytes_new("", 0), VMSNAP_FILE_CONFIG);
        vmsnap_snapshot_add_file(snapshot, "hidden", g_bytes_new("", 0), VMSNAP_FILE_HIDDEN);
        check_check(snapshot, &vma, n_files == 256 ? NULL : "257 files");
    }
}

static void test_vma_has_disks_of_at_most_256_tib(void) {
    check_check(snapshot_with_disk(TIB(256)), &vma, NULL);
    check_check(snapshot_with_disk(TIB(256) + 1), &vma, "256 TiB");
}

static void test_qcow2_has_whole_sectors(void) {
    static const uint64_t bad_sizes[] = {1, 511, 513, 1023, TIB(1) + 1};
    VmsnapFormatOptions format = qcow2(65536);
    for (size_t i = 0; i < G_N_ELEMENTS(bad_sizes); i++)
        check_check(snapshot_with_disk(bad_sizes[i]), &format, "no whole sectors");
    check_check(snapshot_with_disk(0), &format, NULL);
    check_check(snapshot_with_disk(512), &format, NULL);
}

/* The refcount table would grow beyond 8 MiB, or the L1 table beyond 32. */
static void test_qcow2_has_disks_that_qemu_takes(void) {
    for (uint32_t cluster_bytes = 512; cluster_bytes <= MIB(2); cluster_bytes *= 2) {
        VmsnapFormatOptions format = qcow2(cluster_bytes);
        uint64_t per_refcount_block = (uint64_t)cluster_bytes * cluster_bytes / 2;
        uint64_t per_l2_table = (uint64_t)cluster_bytes * cluster_bytes / 8;
        uint64_t too_large = MIN(per_refcount_block * MIB(1), per_l2_table * MIB(4));
        check_check(snapshot_with_disk(too_large / 10 * 9 / 512 * 512), &format, NULL);
        check_check(snapshot_with_disk(too_large), &format, "too large");
    }
    VmsnapFormatOptions usual = qcow2(65536);
    check_check(snapshot_with_disk(TIB(64)), &usual, NULL);
}

/* The one that is too large is the last. */
static void test_each_disk_is_looked_at(void) {
    VmsnapFormatOptions format = qcow2(512);
    VmsnapSnapshot *snapshot = snapshot_with_disk(512);
    add_disk(snapshot, extents_one(VMSNAP_EXTENT_ZERO, TIB(1)));
    check_check(snapshot, &format, "'vdb'");
    snapshot = snapshot_with_disk(512);
    add_disk(snapshot, extents_one(VMSNAP_EXTENT_ZERO, 513));
    check_check(snapshot, &format, "'vdb'");
}

static void test_names_of_files_have_at_most_255_bytes(void) {
    VmsnapFormatOptions format = qcow2(512);
    for (size_t length = 249; length <= 250; length++) {
        g_autofree char *name = g_strnfill(length, 'x');
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        (void)memory_snapshot_add_disk(snapshot, name, extents_empty());
        check_check(snapshot, &format, length == 249 ? NULL : "longer than 255 bytes");

        snapshot = snapshot_with_disk(512);
        g_free(snapshot->machine);
        snapshot->machine = g_strconcat("yy", name, NULL);
        check_check(snapshot, &vma, length == 249 ? NULL : "longer than 255 bytes");
    }
}

/* A machine that is a URI has no name that a file could have. */
static void test_names_of_archives_are_names_of_files(void) {
    static const struct {
        const char *machine;
        const char *name;
    } cases[] = {
        {"vm1", "vm1.vma"},
        {"odd: name?", "odd: name?.vma"},
        {"nbd://host:10809", "nbd_host_10809.vma"},
        {"nbd://backup.example.com/", "nbd_backup.example.com.vma"},
        {"nbd+unix:///a%2Fb?socket=/run/x-1.sock", "nbd_unix_a_2Fb_socket_run_x-1.sock.vma"},
        {"/../.hidden", "hidden.vma"},
        {"//\xc3\xbc", "machine.vma"},
    };
    const VmsnapFormatOptions archive = {.format = &vmsnap_format_vma};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        const VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_empty());
        g_free(snapshot->machine);
        snapshot->machine = g_strdup(cases[i].machine);
        g_autofree char *name = vmsnap_format_name_file(&archive, disk);
        g_assert_cmpstr(name, ==, cases[i].name);
        memory_snapshot_end(snapshot);
        vmsnap_snapshot_free(snapshot);
    }
}

static void test_formats_have_names(void) {
    g_assert_true(vmsnap_format_find("raw") == &vmsnap_format_raw);
    g_assert_true(vmsnap_format_find("qcow2") == &vmsnap_format_qcow2);
    g_assert_true(vmsnap_format_find("vma") == &vmsnap_format_vma);
    g_assert_null(vmsnap_format_find("vmdk"));
    g_assert_null(vmsnap_format_find(""));
    g_assert_null(vmsnap_format_find("RAW"));
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qcow2/of-any-disks-equals-naive", test_qcow2_of_any_disks_equals_naive);
    g_test_add_func("/qcow2/of-one-kind", test_qcow2_of_one_kind);
    g_test_add_func("/qcow2/of-an-empty-disk-has-no-tables", test_qcow2_of_an_empty_disk_has_no_tables);
    g_test_add_func("/qcow2/may-have-many-refcounts", test_qcow2_may_have_many_refcounts);
    g_test_add_func("/qcow2/has-whole-sectors", test_qcow2_has_whole_sectors);
    g_test_add_func("/qcow2/has-disks-that-qemu-takes", test_qcow2_has_disks_that_qemu_takes);
    g_test_add_func("/vma/of-any-disks-equals-naive", test_vma_of_any_disks_equals_naive);
    g_test_add_func("/vma/of-one-kind", test_vma_of_one_kind);
    g_test_add_func("/vma/may-have-empty-disks-anywhere", test_vma_may_have_empty_disks_anywhere);
    g_test_add_func("/vma/of-many-small-disks", test_vma_of_many_small_disks);
    g_test_add_func("/vma/of-many-files", test_vma_of_many_files);
    g_test_add_func("/vma/finds-what-is-far-away-in-time", test_vma_finds_what_is_far_away_in_time);
    g_test_add_func("/vma/has-at-most-254-disks", test_vma_has_at_most_254_disks);
    g_test_add_func("/vma/has-files-of-at-most-65535-bytes", test_vma_has_files_of_at_most_65535_bytes);
    g_test_add_func("/vma/has-at-most-256-files", test_vma_has_at_most_256_files);
    g_test_add_func("/vma/has-disks-of-at-most-256-tib", test_vma_has_disks_of_at_most_256_tib);
    g_test_add_func("/formats/each-disk-is-looked-at", test_each_disk_is_looked_at);
    g_test_add_func("/formats/names-of-files-have-at-most-255-bytes", test_names_of_files_have_at_most_255_bytes);
    g_test_add_func("/formats/names-of-archives-are-names-of-files", test_names_of_archives_are_names_of_files);
    g_test_add_func("/formats/have-names", test_formats_have_names);
    if (!FINDS_RACES) {
        g_test_add_func("/qcow2/of-a-huge-disk", test_qcow2_of_a_huge_disk);
        g_test_add_func("/vma/of-a-huge-disk", test_vma_of_a_huge_disk);
        g_test_add_func("/formats/no-hole-is-looked-for-without-end", test_no_hole_is_looked_for_without_end);
    }
    return g_test_run();
}
