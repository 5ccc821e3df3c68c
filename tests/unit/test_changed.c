/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw files of what has changed: what has not is a hole, zeroes that have are none, and a list tells the two apart. */
#include "fs/block_map.h"

#include "extents.h"
#include "memory_backend.h"
#include "naive_formats.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define WINDOW_BYTES VMSNAP_EXTENT_MAP_WINDOW_BYTES
#define MIB(n) ((uint64_t)(n) << 20)

/* Returns: (transfer full): the list of a disk as lines. */
static char *build_lines(const VmsnapDiskView *view) {
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(view);
    return vmsnap_block_map_to_lines(map);
}

static const VmsnapFormatOptions only_changed = {.format = &vmsnap_format_raw, .only_changed = TRUE};
static const VmsnapFormatOptions whole = {.format = &vmsnap_format_raw};

static const VmsnapNode *find(const NaiveFixture *fixture, const char *name) {
    return vmsnap_tree_lookup(vmsnap_tree_get(fixture->view->tree, VMSNAP_TREE_ROOT_ID), name);
}

static GArray *extents_one(VmsnapExtentKind kind, uint64_t size) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, kind, size);
    return extents;
}

/* What SEEK_DATA and SEEK_HOLE must give, by the list of changes alone. */
static int64_t naive_seek_changes(const GArray *changes, uint64_t size, uint64_t offset, int whence) {
    VmsnapExtentKind wanted = whence == SEEK_DATA ? VMSNAP_EXTENT_DIRTY : VMSNAP_EXTENT_CLEAN;
    for (uint64_t length; offset < size; offset += length)
        if (extents_find(changes, offset, &length) == wanted)
            return (int64_t)offset;
    return whence == SEEK_HOLE ? (int64_t)size : -ENXIO;
}

/* Whoever copies the data of the file over the disk as it was at the checkpoint has the disk as it is. */
static void check_content(const VmsnapLayout *layout, const GByteArray *file, const VmsnapDisk *disk) {
    const GArray *changes = memory_disk_get_changes(disk);
    g_autofree uint8_t *expected = g_malloc(disk->size_bytes);
    uint64_t length;
    g_assert_cmpuint(file->len, ==, disk->size_bytes);
    memory_disk_expand(disk, expected, disk->size_bytes, 0);
    for (uint64_t offset = 0; offset < disk->size_bytes; offset += length)
        if (extents_find(changes, offset, &length) == VMSNAP_EXTENT_CLEAN)
            memset(expected + offset, 0, length);
    g_assert_cmpmem(file->data, file->len, expected, disk->size_bytes);
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), ==,
                     disk->size_bytes - extents_count_zero(changes, 0, disk->size_bytes));
    for (int i = 0; i < 30; i++) {
        uint64_t offset = extents_random_offset(changes, disk->size_bytes);
        int whence = i % 2 ? SEEK_DATA : SEEK_HOLE;
        g_assert_cmpint(layout_seek(layout, offset, whence), ==,
                        naive_seek_changes(changes, disk->size_bytes, offset, whence));
    }
}

/* @extents, @changes: (transfer full) */
static void check_disk(GArray *extents, GArray *changes) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents);
    memory_disk_set_changes(disk, "cp1", changes);
    naive_fixture_init(&fixture, snapshot, &only_changed);
    const VmsnapLayout *layout = find(&fixture, "vda.changed.raw")->layout;
    g_autoptr(GByteArray) file = naive_read_all(layout);
    check_content(layout, file, disk);
    naive_check_segments(layout, file);
    naive_check_reads(&fixture, layout, file, 10);
    naive_check_computed(layout, file, 10);
    naive_fixture_clear(&fixture);
}

static void test_any_changes_equal_naive(void) {
    for (int i = 0; i < 20; i++) {
        uint64_t size = 1 + random_below(i % 10 ? 300000 : MIB(4));
        GArray *changes = extents_random(size, 1 + size / (1 + random_below(50)));
        check_disk(extents_random(size, 1 + size / (1 + random_below(50))), changes);
    }
}

static void test_changes_of_one_kind(void) {
    for (VmsnapExtentKind content = VMSNAP_EXTENT_DATA; content <= VMSNAP_EXTENT_ZERO; content++)
        for (VmsnapExtentKind change = VMSNAP_EXTENT_DIRTY; change <= VMSNAP_EXTENT_CLEAN; change++)
            for (uint64_t size = 1; size < MIB(2); size = size * 37 + 511)
                check_disk(extents_one(content, size), extents_one(change, size));
}

/* Over several windows, in some of which nothing has changed. */
static void test_a_large_disk_has_large_holes(void) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    GArray *changes = extents_one(VMSNAP_EXTENT_CLEAN, 3 * WINDOW_BYTES - 17);
    extents_append(changes, VMSNAP_EXTENT_DIRTY, 4711);
    extents_append(changes, VMSNAP_EXTENT_CLEAN, 5 * WINDOW_BYTES);
    const uint64_t size = 8 * WINDOW_BYTES - 17 + 4711, dirty = 3 * WINDOW_BYTES - 17;
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_one(VMSNAP_EXTENT_DATA, size));
    memory_disk_set_changes(disk, "cp1", changes);
    naive_fixture_init(&fixture, snapshot, &only_changed);
    /* Of the changes one for each window, and of the content for the two that have some. */
    g_assert_cmpuint(memory_snapshot_count(snapshot).questions, ==, 9 + 2);
    const VmsnapLayout *layout = find(&fixture, "vda.changed.raw")->layout;
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), ==, 4711);
    g_assert_cmpint(layout_seek(layout, 0, SEEK_DATA), ==, (int64_t)dirty);
    g_assert_cmpint(layout_seek(layout, dirty, SEEK_HOLE), ==, (int64_t)dirty + 4711);
    g_assert_cmpint(layout_seek(layout, dirty + 4711, SEEK_DATA), ==, -ENXIO);
    uint8_t data[5000], expected[5000] = {0};
    naive_read(layout, dirty - 100, sizeof data, data);
    memory_disk_expand(disk, expected + 100, 4711, dirty);
    g_assert_cmpmem(data, sizeof data, expected, sizeof expected);
    naive_fixture_clear(&fixture);
}

/* What a list that has become coarse calls data is the disk's: a hole would be copied over it as zeroes. */
static void test_a_file_is_as_coarse_as_its_list(void) {
    const uint64_t size = ((UINT64_C(1) << 18) + 1000) * 4096;
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_one(VMSNAP_EXTENT_DATA, size));
    memory_disk_set_changes(disk, "cp1", extents_alternate(size, 4096));
    naive_fixture_init(&fixture, snapshot, &only_changed);
    const VmsnapDiskView *view = g_ptr_array_index(fixture.view->disks, 0);
    const VmsnapLayout *layout = find(&fixture, "vda.changed.raw")->layout;
    g_assert_cmpuint(vmsnap_block_map_count(view->shown, VMSNAP_RANGE_DATA), >, size / 2);
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(layout), >, size / 2);
    for (int i = 0; i < 200; i++) {
        uint8_t data[4096], expected[4096] = {0};
        uint64_t offset = random_below(size / 4096) * 4096, length;
        if (vmsnap_block_map_find(view->shown, offset, &length) == VMSNAP_RANGE_DATA)
            memory_disk_expand(disk, expected, sizeof expected, offset);
        naive_read(layout, offset, sizeof data, data);
        g_assert_cmpmem(data, sizeof data, expected, sizeof expected);
    }
    naive_fixture_clear(&fixture);
}

static void check_map_file(const NaiveFixture *fixture, const char *name, guint i) {
    const VmsnapNode *node = find(fixture, name);
    g_autofree char *lines = build_lines(g_ptr_array_index(fixture->view->disks, i));
    g_assert_nonnull(node);
    g_autoptr(GByteArray) content = naive_read_all(node->layout);
    g_assert_cmpmem(content->data, content->len, lines, strlen(lines));
}

/* Full disks are as they would be without. */
static void test_each_disk_is_shown_by_what_is_known(void) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *vda = memory_snapshot_add_disk(snapshot, "vda", extents_alternate(MIB(1), 4096));
    VmsnapDisk *vdb = memory_snapshot_add_disk(snapshot, "vdb", extents_alternate(MIB(1), 4096));
    memory_disk_set_changes(vda, "cp1", extents_alternate(MIB(1), 8192));
    snapshot->checkpoint = g_strdup("cp2");
    naive_fixture_init(&fixture, snapshot, &only_changed);
    check_map_file(&fixture, "vda.changed.map", 0);
    g_assert_nonnull(find(&fixture, "vda.changed.raw"));
    g_assert_null(find(&fixture, "vda.raw"));
    g_assert_null(find(&fixture, "vdb.changed.raw"));
    g_assert_null(find(&fixture, "vdb.changed.map"));
    const VmsnapLayout *full = find(&fixture, "vdb.raw")->layout;
    g_autoptr(GByteArray) file = naive_read_all(full);
    g_autofree uint8_t *expected = g_malloc(MIB(1));
    memory_disk_expand(vdb, expected, MIB(1), 0);
    g_assert_cmpmem(file->data, file->len, expected, MIB(1));
    g_assert_cmpuint(vmsnap_layout_get_allocated_bytes(full), ==, MIB(1) / 2);
    g_assert_cmpint(layout_seek(full, 0, SEEK_HOLE), ==, 4096);
    naive_fixture_clear(&fixture);
}

static void test_the_list_is_there_before_it_is_opened(void) {
    static const char expected[] = "0 1000 same\n1000 24 data\n1024 1976 zero\n3000 1096 same\n";
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    GArray *changes = extents_one(VMSNAP_EXTENT_CLEAN, 1000), *extents = extents_one(VMSNAP_EXTENT_DATA, 1024);
    extents_append(changes, VMSNAP_EXTENT_DIRTY, 2000);
    extents_append(changes, VMSNAP_EXTENT_CLEAN, 1096);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 3072);
    memory_disk_set_changes(memory_snapshot_add_disk(snapshot, "vda", extents), "cp1", changes);
    naive_fixture_init(&fixture, snapshot, &only_changed);
    const VmsnapNode *node = find(&fixture, "vda.changed.map");
    g_assert_cmpuint(node->layout->size_bytes, ==, strlen(expected));
    g_autoptr(GByteArray) content = naive_read_all(node->layout);
    g_assert_cmpmem(content->data, content->len, expected, strlen(expected));
    naive_fixture_clear(&fixture);
}

/* Without the option, a raw file is the whole disk, whatever is known of its changes. */
static void test_raw_files_are_whole_disks(void) {
    NaiveFixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_random(MIB(1), 5000));
    memory_disk_set_changes(disk, "cp1", extents_random(MIB(1), 5000));
    naive_fixture_init(&fixture, snapshot, &whole);
    naive_check_files(&fixture);
    g_assert_null(find(&fixture, "vda.changed.raw"));
    g_assert_null(find(&fixture, "vda.changed.map"));
    g_assert_cmpint(layout_seek(find(&fixture, "vda.raw")->layout, 0, SEEK_DATA), !=, -ENXIO);
    naive_fixture_clear(&fixture);
}

static void test_names_of_lists_are_taken(void) {
    static const struct {
        const char *file;
        gboolean accepted;
    } cases[] = {{"vda.raw", TRUE},
                 {"vda.changed.raw", FALSE},
                 {"vda.changed.map", FALSE},
                 {"vdb.changed.map", TRUE},
                 {"vdb.raw", FALSE}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const VmsnapViewOptions options = {.format = only_changed};
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        VmsnapDisk *vda = memory_snapshot_add_disk(snapshot, "vda", extents_alternate(4096, 512));
        memory_disk_set_changes(vda, "cp1", extents_alternate(4096, 512));
        (void)memory_snapshot_add_disk(snapshot, "vdb", extents_alternate(4096, 512));
        vmsnap_snapshot_add_file(snapshot, cases[i].file, g_bytes_new("", 0), VMSNAP_FILE_CONFIG);
        g_assert_cmpint(vmsnap_view_check(&options, snapshot, NULL), ==, cases[i].accepted);
        memory_snapshot_end(snapshot);
        vmsnap_snapshot_free(snapshot);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/changed/" path, function)
    ADD("any-changes-equal-naive", test_any_changes_equal_naive);
    ADD("changes-of-one-kind", test_changes_of_one_kind);
    ADD("a-large-disk-has-large-holes", test_a_large_disk_has_large_holes);
    ADD("a-file-is-as-coarse-as-its-list", test_a_file_is_as_coarse_as_its_list);
    ADD("each-disk-is-shown-by-what-is-known", test_each_disk_is_shown_by_what_is_known);
    ADD("the-list-is-there-before-it-is-opened", test_the_list_is_there_before_it_is_opened);
    ADD("raw-files-are-whole-disks", test_raw_files_are_whole_disks);
    ADD("names-of-lists-are-taken", test_names_of_lists_are_taken);
#undef ADD
    return g_test_run();
}
