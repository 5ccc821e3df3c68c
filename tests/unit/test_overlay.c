/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qcow2 files of what has changed, laid over any backing file by a reader that was written from QEMU's specification.
 */
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

static VmsnapFormatOptions qcow2(uint32_t cluster_bytes) {
    return (VmsnapFormatOptions){.format = &vmsnap_format_qcow2, .cluster_bytes = cluster_bytes};
}

static GArray *extents_one(VmsnapExtentKind kind, uint64_t size) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    if (size > 0)
        extents_append(extents, kind, size);
    return extents;
}

/* Runs of all lengths, those of clusters and of most of the disk among them. */
static GArray *extents_any(uint64_t size) {
    uint64_t max_length = 1 + (random_below(3) ? random_below(size / 4 + 1) : random_below(KIB(16)));
    return extents_random(size, MAX(max_length, size / 200 + 1));
}

/* @extents, @changes: (transfer full); without changes it is a full disk */
static VmsnapDisk *add_disk(VmsnapSnapshot *snapshot, GArray *extents, GArray *changes) {
    g_autofree char *name = g_strdup_printf("vd%c", (char)('a' + snapshot->disks->len));
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, name, extents);
    if (changes)
        memory_disk_set_changes(disk, "cp1", changes);
    return disk;
}

/* Returns: (transfer full): a backing file: what has not changed is as on the disk, and all else is something else. */
static GByteArray *base_new(const VmsnapDisk *disk) {
    GByteArray *base = g_byte_array_new();
    g_byte_array_set_size(base, (guint)disk->size_bytes);
    memory_disk_expand(disk, base->data, base->len, 0);
    uint64_t length;
    for (uint64_t offset = 0; offset < base->len; offset += length)
        if (extents_find(memory_disk_get_changes(disk), offset, &length) == VMSNAP_EXTENT_DIRTY)
            memset(base->data + offset, 0x5a, length);
    return base;
}

static void check_overlay(const GByteArray *file, const VmsnapDisk *disk) {
    g_autoptr(GByteArray) base = base_new(disk);
    g_autofree uint8_t *expected = g_malloc(disk->size_bytes + 1);
    memory_disk_expand(disk, expected, disk->size_bytes, 0);
    naive_qcow2_expand(file, base);
    g_assert_cmpmem(base->data, base->len, expected, disk->size_bytes);
}

/* @snapshot: (transfer full) */
static void check_snapshot(VmsnapSnapshot *snapshot, const VmsnapFormatOptions *format) {
    NaiveFixture fixture;
    naive_fixture_init(&fixture, snapshot, format);
    naive_check_files(&fixture);
    for (guint i = 0; i < fixture.layouts->len; i++) {
        const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, i);
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        g_autoptr(GByteArray) file = naive_read_all(layout);
        if (disk->since)
            check_overlay(file, disk);
        naive_check_reads(&fixture, layout, file, 12);
        naive_check_computed(layout, file, 8);
        naive_check_seeks(layout, 8);
    }
    naive_fixture_clear(&fixture);
}

/* @extents, @changes: (transfer full) */
static void check_disk(GArray *extents, GArray *changes, uint32_t cluster_bytes) {
    VmsnapFormatOptions format = qcow2(cluster_bytes);
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    (void)add_disk(snapshot, extents, changes);
    check_snapshot(snapshot, &format);
}

static void test_any_changes_equal_naive(void) {
    static const uint32_t clusters[] = {512, 4096, 65536, 512, 1024, 4096, 32768, 512};
    for (size_t i = 0; i < G_N_ELEMENTS(clusters); i++) {
        VmsnapFormatOptions format = qcow2(clusters[i]);
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        for (uint64_t n_disks = 1 + random_below(3); snapshot->disks->len < n_disks;) {
            uint64_t size = random_below(MIN(clusters[i] * UINT64_C(500), MIB(2))) / 512 * 512;
            gboolean is_full = size == 0 || random_below(4) == 0;
            (void)add_disk(snapshot, extents_any(size), is_full ? NULL : extents_any(size));
        }
        check_snapshot(snapshot, &format);
    }
    check_disk(extents_any(MIB(9) + 512), extents_random(MIB(9) + 512, MIB(3)), MIB(2));
}

static void test_changes_of_one_kind(void) {
    static const uint64_t sizes[] = {512, KIB(32), KIB(32) + 512, MIB(1) - 512};
    static const uint32_t clusters[] = {512, 4096, 65536};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        for (size_t k = 0; k < G_N_ELEMENTS(clusters); k++) {
            uint64_t size = sizes[i];
            check_disk(extents_any(size), extents_one(VMSNAP_EXTENT_CLEAN, size), clusters[k]);
            check_disk(extents_any(size), extents_one(VMSNAP_EXTENT_DIRTY, size), clusters[k]);
            check_disk(extents_one(VMSNAP_EXTENT_ZERO, size), extents_any(size), clusters[k]);
            check_disk(extents_one(VMSNAP_EXTENT_ZERO, size), extents_one(VMSNAP_EXTENT_DIRTY, size), clusters[k]);
            check_disk(extents_one(VMSNAP_EXTENT_DATA, size), extents_any(size), clusters[k]);
        }
    }
}

static void test_an_empty_disk_may_have_a_checkpoint(void) {
    check_disk(extents_one(VMSNAP_EXTENT_DATA, 0), g_array_new(FALSE, FALSE, sizeof(VmsnapExtent)), 65536);
}

/* A single byte, at the borders of a cluster and of what an L2 table describes. */
static void test_a_byte_is_a_cluster(void) {
    const uint64_t size = 3 * 64 * 512 + 512, range = UINT64_C(64) * 512;
    const uint64_t dirty[] = {0, 511, 512, range - 1, range, 2 * range - 1, size - 1};
    for (size_t i = 0; i < G_N_ELEMENTS(dirty); i++) {
        for (VmsnapExtentKind kind = VMSNAP_EXTENT_DATA; kind <= VMSNAP_EXTENT_ZERO; kind++) {
            GArray *changes = extents_one(VMSNAP_EXTENT_CLEAN, dirty[i]);
            extents_append(changes, VMSNAP_EXTENT_DIRTY, 1);
            if (dirty[i] + 1 < size)
                extents_append(changes, VMSNAP_EXTENT_CLEAN, size - dirty[i] - 1);
            check_disk(extents_one(kind, size), changes, 512);
        }
    }
}

/* Nothing but the header, the refcounts and the L1 table; or an L2 table that says that all is zero. */
static void test_what_is_not_data_takes_no_room(void) {
    for (VmsnapExtentKind change = VMSNAP_EXTENT_DIRTY; change <= VMSNAP_EXTENT_CLEAN; change++) {
        NaiveFixture fixture;
        VmsnapFormatOptions format = qcow2(65536);
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        VmsnapExtentKind content = change == VMSNAP_EXTENT_DIRTY ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA;
        (void)add_disk(snapshot, extents_one(content, GIB(1)), extents_one(change, GIB(1)));
        naive_fixture_init(&fixture, snapshot, &format);
        const VmsnapLayout *layout = g_ptr_array_index(fixture.layouts, 0);
        g_assert_cmpuint(layout->size_bytes, ==, (change == VMSNAP_EXTENT_DIRTY ? 6 : 4) * 65536);
        naive_fixture_clear(&fixture);
    }
}

static GArray *extents_sparse(uint64_t size, VmsnapExtentKind rare) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    while (size > 0) {
        uint64_t most = 1 + random_below(GIB(80)), few = 1 + random_below(MIB(1));
        most = MIN(most, size);
        few = MIN(few, size - most);
        extents_append(extents, rare == VMSNAP_EXTENT_DATA ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, most);
        if (few > 0)
            extents_append(extents, rare, few);
        size -= most + few;
    }
    return extents;
}

static uint64_t read64(const VmsnapLayout *layout, uint64_t offset) {
    uint64_t value;
    naive_read(layout, offset, sizeof value, (uint8_t *)&value);
    return GUINT64_FROM_BE(value);
}

/* Looks at a cluster by way of the tables, as QEMU does. */
static void check_spot(const VmsnapLayout *layout, const VmsnapDisk *disk, uint64_t cluster_bytes) {
    uint64_t offset = extents_random_offset(memory_disk_get_changes(disk), disk->size_bytes);
    uint64_t cluster = offset / cluster_bytes, per_table = cluster_bytes / 8, start = cluster * cluster_bytes;
    uint64_t length = MIN(cluster_bytes, disk->size_bytes - start);
    gboolean clean = extents_count_zero(memory_disk_get_changes(disk), start, length) == length;
    gboolean zero = extents_count_zero(memory_disk_get_extents(disk), start, length) == length;
    uint64_t table = read64(layout, read64(layout, 40) + cluster / per_table * 8) & ~(UINT64_C(1) << 63);
    uint64_t entry = table ? read64(layout, table + cluster % per_table * 8) : 0;
    if (clean || zero) {
        g_assert_cmphex(entry, ==, clean ? 0 : 1);
        return;
    }
    uint8_t data[512], expected[512];
    length = MIN(sizeof data, start + length - offset);
    memory_disk_expand(disk, expected, length, offset);
    naive_read(layout, (entry & ~(UINT64_C(1) << 63)) + offset - start, length, data);
    g_assert_cmpmem(data, length, expected, length);
}

static void test_a_huge_disk_takes_little(void) {
    static const uint32_t clusters[] = {65536, MIB(2)};
    for (size_t i = 0; i < G_N_ELEMENTS(clusters); i++) {
        NaiveFixture fixture;
        VmsnapFormatOptions format = qcow2(clusters[i]);
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        gint64 start = (gint64)clock();
        VmsnapDisk *disk = add_disk(snapshot, extents_sparse(TIB(16), i ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA),
                                    extents_sparse(TIB(16), VMSNAP_EXTENT_DIRTY));
        naive_fixture_init(&fixture, snapshot, &format);
        for (int n = 0; n < 150; n++)
            check_spot(g_ptr_array_index(fixture.layouts, 0), disk, clusters[i]);
        g_assert_cmpint((gint64)clock() - start, <, MAX_SECONDS * (gint64)CLOCKS_PER_SEC);
        naive_fixture_clear(&fixture);
    }
}

/* Names */

/* @backing: the pattern, or NULL; @expected, @expected_format: what the header says */
static void check_backing(const char *backing, const char *since, const char *expected, const char *expected_format) {
    NaiveFixture fixture;
    VmsnapFormatOptions format = qcow2(4096);
    format.backing = backing;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_any(MIB(1)));
    memory_disk_set_changes(disk, since, extents_any(MIB(1)));
    g_autofree char *name = vmsnap_format_name_backing(&format, disk);
    g_assert_cmpstr(name, ==, expected);
    naive_fixture_init(&fixture, snapshot, &format);
    g_autoptr(GByteArray) file = naive_read_all(g_ptr_array_index(fixture.layouts, 0));
    g_autofree char *found_format = NULL, *found = naive_qcow2_dup_backing(file, &found_format);
    g_assert_cmpstr(found, ==, expected);
    g_assert_cmpstr(found_format, ==, expected_format);
    naive_fixture_clear(&fixture);
}

static void test_backing_files_have_names(void) {
    static const struct {
        const char *backing;
        const char *since;
        const char *expected;
        const char *format;
    } cases[] = {
        {NULL, "cp1", "vda.cp1.qcow2", "qcow2"},
        {NULL, "a b", "vda.a b.qcow2", "qcow2"},
        {NULL, "a:b", "./vda.a:b.qcow2", "qcow2"},
        {NULL, "100%", "vda.100%.qcow2", "qcow2"},
        {NULL, "%d", "vda.%d.qcow2", "qcow2"},
        {NULL, "x.raw", "vda.x.raw.qcow2", "qcow2"},
        {"%d", "cp1", "vda", "qcow2"},
        {"%s", "cp1", "cp1", "qcow2"},
        {"%d.%s.qcow2", "cp1", "vda.cp1.qcow2", "qcow2"},
        {"%s-%d-%s", "cp1", "cp1-vda-cp1", "qcow2"},
        {"%%", "cp1", "%", "qcow2"},
        {"%%d%%%s", "%d", "%d%%d", "qcow2"},
        {"../%s/%d.raw", "cp1", "../cp1/vda.raw", "raw"},
        {"/srv/%d.img", "cp1", "/srv/vda.img", "raw"},
        {"fixed", "cp1", "fixed", "qcow2"},
        {"%s:%d", "cp1", "./cp1:vda", "qcow2"},
        {"nbd:%d", "cp1", "./nbd:vda", "qcow2"},
        {"json:{}", "cp1", "./json:{}", "qcow2"},
        {"%s/%d", "a:b", "./a:b/vda", "qcow2"},
        {"dir/a:%d", "cp1", "dir/a:vda", "qcow2"},
        {"/a:%d", "cp1", "/a:vda", "qcow2"},
        {"./a:%d", "cp1", "./a:vda", "qcow2"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_backing(cases[i].backing, cases[i].since, cases[i].expected, cases[i].format);
}

static void test_patterns_make_sense(void) {
    static const char *const good[] = {"x", "%d", "%s", "%%", "%d%s%%", "/a/%d b", "%%%%", "%%d"};
    static const char *const bad[] = {"",   "%",   "%%%", "%x",  "a%",    "%D",
                                      "%S", "% d", "%d%", "%1d", "%%s%t", "%\xc3\xbc"};
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++)
        g_assert_true(vmsnap_backing_pattern_is_valid(good[i]));
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        g_assert_false(vmsnap_backing_pattern_is_valid(bad[i]));
}

static void test_names_tell_formats(void) {
    static const char *const raw[] = {"a.raw", "a.img", ".raw", "a.qcow2.raw", "/x/y.img", "a b.raw"};
    static const char *const other[] = {"a",           "",      "a.qcow2",   "raw",   "img",
                                        "a.raw.qcow2", "a.RAW", "a.raw.bak", "a.img "};
    for (size_t i = 0; i < G_N_ELEMENTS(raw); i++)
        g_assert_cmpstr(vmsnap_backing_get_format(raw[i]), ==, "raw");
    for (size_t i = 0; i < G_N_ELEMENTS(other); i++)
        g_assert_cmpstr(vmsnap_backing_get_format(other[i]), ==, "qcow2");
}

/* With a new checkpoint it is in the name, so that a directory can hold a chain. */
static void test_files_are_named_after_the_new_checkpoint(void) {
    VmsnapFormatOptions format = qcow2(65536);
    const VmsnapFormatOptions raw = {.format = &vmsnap_format_raw}, vma = {.format = &vmsnap_format_vma};
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *changed = add_disk(snapshot, extents_any(4096), extents_any(4096));
    VmsnapDisk *full = add_disk(snapshot, extents_any(4096), NULL);
    for (int with_new = 0; with_new < 2; with_new++) {
        snapshot->checkpoint = with_new ? g_strdup("cp2") : NULL;
        g_autofree char *changed_name = vmsnap_format_name_file(&format, changed);
        g_autofree char *full_name = vmsnap_format_name_file(&format, full);
        g_autofree char *raw_name = vmsnap_format_name_file(&raw, changed);
        g_autofree char *vma_name = vmsnap_format_name_file(&vma, full);
        g_autofree char *backing = vmsnap_format_name_backing(&format, full);
        g_assert_cmpstr(changed_name, ==, with_new ? "vda.cp2.qcow2" : "vda.qcow2");
        g_assert_cmpstr(full_name, ==, with_new ? "vdb.cp2.qcow2" : "vdb.qcow2");
        g_assert_cmpstr(raw_name, ==, "vda.raw");
        g_assert_cmpstr(vma_name, ==, "vm1.vma");
        g_assert_null(backing);
    }
    check_snapshot(snapshot, &format);
}

/* The file of the next round has the name that the round after it rests on. */
static void test_a_chain_has_joints(void) {
    VmsnapFormatOptions format = qcow2(65536);
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *disk = add_disk(snapshot, extents_any(4096), NULL);
    snapshot->checkpoint = g_strdup("cp2");
    g_autofree char *file = vmsnap_format_name_file(&format, disk);
    memory_disk_set_changes(disk, "cp2", extents_any(4096));
    g_autofree char *backing = vmsnap_format_name_backing(&format, disk);
    g_assert_cmpstr(file, ==, backing);
    check_snapshot(snapshot, &format);
}

/* What cannot be */

/* @since_bytes: how long the name of the checkpoint is; @said: why it is refused, or NULL if it is not */
static void check_check(uint32_t cluster_bytes, const char *backing, size_t since_bytes, const char *said) {
    g_autoptr(GError) error = NULL;
    VmsnapFormatOptions format = qcow2(cluster_bytes);
    format.backing = backing;
    g_autofree char *since = g_strnfill(since_bytes, 'x');
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    (void)add_disk(snapshot, extents_any(4096), NULL);
    VmsnapDisk *disk = add_disk(snapshot, extents_any(4096), NULL);
    memory_disk_set_changes(disk, since, extents_any(4096));
    gboolean accepted = vmsnap_format_check(&format, snapshot, &error);
    g_assert_cmpint(accepted, ==, said == NULL);
    if (said) {
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
        g_assert_nonnull(strstr(error->message, said));
        g_assert_nonnull(strstr(error->message, "disk 'vdb'"));
        memory_snapshot_end(snapshot);
        vmsnap_snapshot_free(snapshot);
    } else {
        check_snapshot(snapshot, &format);
    }
}

/* Of a cluster of 512 bytes, 128 are taken before the name; "raw" takes as much room as "qcow2". */
static void test_the_name_must_fit_into_a_cluster(void) {
    check_check(512, "%s", 384, NULL);
    check_check(512, "%s", 385, "does not fit into a cluster");
    check_check(512, "%s.raw", 380, NULL);
    check_check(512, "%s.raw", 381, "does not fit into a cluster");
    check_check(512, NULL, 384 - strlen("vdb..qcow2"), NULL);
    check_check(512, NULL, 385 - strlen("vdb..qcow2"), "cluster_size=");
    check_check(1024, "%s", 896, NULL);
    check_check(1024, "%s", 897, "does not fit into a cluster");
}

static void test_the_name_has_at_most_1023_bytes(void) {
    static const uint32_t clusters[] = {2048, 4096, 65536};
    for (size_t i = 0; i < G_N_ELEMENTS(clusters); i++) {
        check_check(clusters[i], "%s", 1023, NULL);
        check_check(clusters[i], "%s", 1024, "more than 1023 bytes");
    }
}

/* The name of the file itself counts, too. */
static void test_a_long_checkpoint_does_not_fit_into_a_file_name(void) {
    for (size_t length = 255 - strlen("vda..qcow2"); length <= 256 - strlen("vda..qcow2"); length++) {
        g_autoptr(GError) error = NULL;
        VmsnapFormatOptions format = qcow2(65536);
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        (void)add_disk(snapshot, extents_any(4096), NULL);
        snapshot->checkpoint = g_strnfill(length, 'x');
        gboolean fits = length + strlen("vda..qcow2") <= 255;
        g_assert_cmpint(vmsnap_format_check(&format, snapshot, &error), ==, fits);
        g_assert_true(fits || strstr(error->message, "longer than 255 bytes"));
        memory_snapshot_end(snapshot);
        vmsnap_snapshot_free(snapshot);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/overlay/" path, function)
    ADD("any-changes-equal-naive", test_any_changes_equal_naive);
    ADD("changes-of-one-kind", test_changes_of_one_kind);
    ADD("an-empty-disk-may-have-a-checkpoint", test_an_empty_disk_may_have_a_checkpoint);
    ADD("a-byte-is-a-cluster", test_a_byte_is_a_cluster);
    ADD("what-is-not-data-takes-no-room", test_what_is_not_data_takes_no_room);
    ADD("a-huge-disk-takes-little", test_a_huge_disk_takes_little);
    ADD("backing-files-have-names", test_backing_files_have_names);
    ADD("patterns-make-sense", test_patterns_make_sense);
    ADD("names-tell-formats", test_names_tell_formats);
    ADD("files-are-named-after-the-new-checkpoint", test_files_are_named_after_the_new_checkpoint);
    ADD("a-chain-has-joints", test_a_chain_has_joints);
    ADD("the-name-must-fit-into-a-cluster", test_the_name_must_fit_into_a_cluster);
    ADD("the-name-has-at-most-1023-bytes", test_the_name_has_at_most_1023_bytes);
    ADD("a-long-checkpoint-does-not-fit-into-a-file-name", test_a_long_checkpoint_does_not_fit_into_a_file_name);
#undef ADD
    return g_test_run();
}
