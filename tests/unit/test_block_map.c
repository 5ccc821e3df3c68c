/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The lists of ranges for tools, against the plain lists of extents and of changes; and those that are too long. */
#include "fs/block_map.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include <json-glib/json-glib.h>
#include <string.h>

#define MAX_RANGES (1U << 18)
#define TIB(n) ((uint64_t)(n) << 40)

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapDisk *disk;
    VmsnapDiskView *view;
} Fixture;

typedef struct {
    uint64_t start;
    uint64_t length_bytes;
    char kind; /* the first letter: d, z, s */
} Range;

/* Returns: (transfer full): the list of a disk as lines. */
static char *build_lines(const VmsnapDiskView *view) {
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(view);
    return vmsnap_block_map_to_lines(map);
}

/* Returns: (transfer full): the list of a disk as JSON. */
static char *build_json(const VmsnapDiskView *view) {
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(view);
    return vmsnap_block_map_to_json(map);
}

/* @extents, @changes: (transfer full); there may be no changes */
static void fixture_init(Fixture *fixture, GArray *extents, GArray *changes) {
    fixture->snapshot = memory_snapshot_new(NULL);
    fixture->disk = memory_snapshot_add_disk(fixture->snapshot, "vda", extents);
    if (changes)
        memory_disk_set_changes(fixture->disk, "cp1", changes);
    fixture->view = vmsnap_disk_view_new(fixture->disk, NULL);
}

static void map(VmsnapScan *scan, const VmsnapExtentMap *changes) {
    Latch complete;
    latch_init(&complete);
    vmsnap_scan_start(scan, changes);
    vmsnap_scan_wait(scan, G_MAXINT64, latch_count, &complete);
    latch_wait(&complete, 1);
    latch_clear(&complete);
    g_assert_true(vmsnap_scan_is_complete(scan));
}

/* @only_changes: whether the content of what is clean is not asked for */
static void fixture_map(const Fixture *fixture, gboolean only_changes) {
    if (fixture->view->changes)
        map(fixture->view->changes, NULL);
    map(fixture->view->scan, only_changes ? vmsnap_disk_view_get_changes(fixture->view) : NULL);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_disk_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

/* Walks both lists. Returns: (transfer full): ranges, as long as they can be */
static GArray *naive_ranges(const VmsnapDisk *disk) {
    const GArray *extents = memory_disk_get_extents(disk), *changes = memory_disk_get_changes(disk);
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    uint64_t extents_end = 0, changes_end = changes ? 0 : UINT64_MAX;
    VmsnapExtentKind content = VMSNAP_EXTENT_DATA, change = VMSNAP_EXTENT_DIRTY;
    guint i = 0, k = 0;
    for (uint64_t offset = 0, end; offset < disk->size_bytes; offset = end) {
        for (; extents_end <= offset; i++) {
            extents_end += g_array_index(extents, VmsnapExtent, i).length_bytes;
            content = g_array_index(extents, VmsnapExtent, i).kind;
        }
        for (; changes_end <= offset; k++) {
            changes_end += g_array_index(changes, VmsnapExtent, k).length_bytes;
            change = g_array_index(changes, VmsnapExtent, k).kind;
        }
        end = MIN(extents_end, changes_end);
        Range range = {offset, end - offset, content == VMSNAP_EXTENT_ZERO ? 'z' : 'd'};
        if (change == VMSNAP_EXTENT_CLEAN)
            range.kind = 's';
        Range *last = ranges->len > 0 ? &g_array_index(ranges, Range, ranges->len - 1) : NULL;
        if (last && last->kind == range.kind)
            last->length_bytes += range.length_bytes;
        else
            g_array_append_val(ranges, range);
    }
    return ranges;
}

static char kind_parse(const char *word) {
    g_assert_true(g_str_equal(word, "data") || g_str_equal(word, "zero") || g_str_equal(word, "same"));
    return word[0];
}

/* Also checks that each line is one. */
static GArray *lines_parse(const char *text) {
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    for (const char *line = text; *line; line += strlen("zero\n")) {
        char *end;
        Range range = {.start = g_ascii_strtoull(line, &end, 10)};
        g_assert_true(end > line && *end == ' ');
        line = end + 1;
        range.length_bytes = g_ascii_strtoull(line, &end, 10);
        g_assert_true(end > line && *end == ' ');
        line = end + 1;
        g_assert_true(strncmp(line, "data\n", 5) == 0 || strncmp(line, "zero\n", 5) == 0 ||
                      strncmp(line, "same\n", 5) == 0);
        range.kind = *line;
        g_array_append_val(ranges, range);
    }
    return ranges;
}

static GArray *json_parse(const char *text) {
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) root = json_from_string(text, &error);
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    g_assert_no_error(error);
    g_assert_true(g_str_has_suffix(text, "\n"));
    JsonArray *array = json_node_get_array(root);
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonObject *object = json_array_get_object_element(array, i);
        g_assert_cmpuint(json_object_get_size(object), ==, 3);
        Range range = {(uint64_t)json_object_get_int_member(object, "start"),
                       (uint64_t)json_object_get_int_member(object, "length"),
                       kind_parse(json_object_get_string_member(object, "type"))};
        g_array_append_val(ranges, range);
    }
    return ranges;
}

/* A sum of those that are data, which a status tells as well. */
static void check_equal(const VmsnapDiskView *view, const GArray *ranges, const GArray *expected) {
    uint64_t data_bytes = 0;
    g_assert_cmpuint(ranges->len, ==, expected->len);
    for (guint i = 0; i < ranges->len; i++) {
        const Range *range = &g_array_index(ranges, Range, i), *naive = &g_array_index(expected, Range, i);
        g_assert_cmpuint(range->start, ==, naive->start);
        g_assert_cmpuint(range->length_bytes, ==, naive->length_bytes);
        g_assert_cmpint(range->kind, ==, naive->kind);
        data_bytes += range->kind == 'd' ? range->length_bytes : 0;
    }
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(view);
    g_assert_cmpuint(vmsnap_block_map_count(map, VMSNAP_RANGE_DATA), ==, data_bytes);
}

/* @extents, @changes: (transfer full); there may be no changes */
static void check_disk(GArray *extents, GArray *changes) {
    for (int only_changes = 0; only_changes < (changes ? 2 : 1); only_changes++) {
        Fixture fixture;
        fixture_init(&fixture, g_array_ref(extents), changes ? g_array_ref(changes) : NULL);
        fixture_map(&fixture, only_changes);
        g_autofree char *lines = build_lines(fixture.view);
        g_autofree char *json = build_json(fixture.view);
        g_autoptr(GArray) expected = naive_ranges(fixture.disk);
        g_autoptr(GArray) of_lines = lines_parse(lines), of_json = json_parse(json);
        check_equal(fixture.view, of_lines, expected);
        check_equal(fixture.view, of_json, expected);
        fixture_clear(&fixture);
    }
    g_array_unref(extents);
    if (changes)
        g_array_unref(changes);
}

static GArray *extents_one(VmsnapExtentKind kind, uint64_t size) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, kind, size);
    return extents;
}

static void test_any_disk_equals_naive(void) {
    for (int i = 0; i < 40; i++) {
        uint64_t size = 1 + random_below(UINT64_C(1) << (10 + random_below(24)));
        GArray *changes = random_below(3) ? extents_random(size, 1 + size / (1 + random_below(100))) : NULL;
        check_disk(extents_random(size, 1 + size / (1 + random_below(100))), changes);
    }
}

/* Runs go on over the windows that extents are asked for in. */
static void test_one_kind_is_one_range(void) {
    const uint64_t sizes[] = {1, 513, 3 * VMSNAP_EXTENT_MAP_WINDOW_BYTES + 5, TIB(16)};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        for (VmsnapExtentKind kind = VMSNAP_EXTENT_DATA; kind <= VMSNAP_EXTENT_ZERO; kind++) {
            check_disk(extents_one(kind, sizes[i]), NULL);
            check_disk(extents_one(kind, sizes[i]), extents_one(VMSNAP_EXTENT_DIRTY, sizes[i]));
            check_disk(extents_one(kind, sizes[i]), extents_one(VMSNAP_EXTENT_CLEAN, sizes[i]));
        }
    }
}

static void test_the_text_is_as_documented(void) {
    Fixture fixture;
    GArray *extents = extents_one(VMSNAP_EXTENT_DATA, 4096), *changes = extents_one(VMSNAP_EXTENT_DIRTY, 6000);
    extents_append(extents, VMSNAP_EXTENT_ZERO, 4096);
    extents_append(changes, VMSNAP_EXTENT_CLEAN, 2192);
    fixture_init(&fixture, extents, changes);
    fixture_map(&fixture, FALSE);
    g_autofree char *lines = build_lines(fixture.view);
    g_autofree char *json = build_json(fixture.view);
    g_assert_cmpstr(lines, ==, "0 4096 data\n4096 1904 zero\n6000 2192 same\n");
    g_assert_cmpstr(json, ==,
                    "[\n{\"start\": 0, \"length\": 4096, \"type\": \"data\"},\n"
                    "{\"start\": 4096, \"length\": 1904, \"type\": \"zero\"},\n"
                    "{\"start\": 6000, \"length\": 2192, \"type\": \"same\"}\n]\n");
    fixture_clear(&fixture);
}

static void test_an_empty_disk_has_no_ranges(void) {
    Fixture fixture;
    fixture_init(&fixture, g_array_new(FALSE, FALSE, sizeof(VmsnapExtent)), NULL);
    g_autofree char *lines = build_lines(fixture.view);
    g_autofree char *json = build_json(fixture.view);
    g_autoptr(GArray) ranges = json_parse(json);
    g_assert_cmpstr(lines, ==, "");
    g_assert_cmpuint(ranges->len, ==, 0);
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(fixture.view);
    g_assert_cmpuint(vmsnap_block_map_count(map, VMSNAP_RANGE_DATA), ==, 0);
    fixture_clear(&fixture);
}

/* In doubt it is data: who skips a range must not miss anything. */
static void test_what_is_not_known_is_data(void) {
    const uint64_t window = VMSNAP_EXTENT_MAP_WINDOW_BYTES;
    for (int with_changes = 0; with_changes < 2; with_changes++) {
        Fixture fixture;
        Latch called;
        latch_init(&called);
        GArray *changes = with_changes ? extents_one(VMSNAP_EXTENT_CLEAN, 3 * window) : NULL;
        fixture_init(&fixture, extents_one(VMSNAP_EXTENT_ZERO, 3 * window), changes);
        g_autofree char *before = build_lines(fixture.view);
        g_assert_cmpstr(before, ==, "0 6442450944 data\n");
        VmsnapScan *scan = with_changes ? fixture.view->changes : fixture.view->scan;
        vmsnap_scan_resolve(scan, window, latch_count, &called);
        latch_wait(&called, 1);
        g_autofree char *lines = build_lines(fixture.view);
        g_assert_cmpstr(lines, ==,
                        with_changes ? "0 2147483648 data\n2147483648 2147483648 same\n4294967296 2147483648 data\n"
                                     : "0 2147483648 data\n2147483648 2147483648 zero\n4294967296 2147483648 data\n");
        latch_clear(&called);
        fixture_clear(&fixture);
    }
}

/* Too many ranges */

/* Returns: (transfer full): @n extents of by turns both kinds, of lengths from 1 to @longest sectors */
static GArray *extents_many(guint n, uint64_t longest) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    for (guint i = 0; i < n; i++)
        extents_append(extents, i % 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, 512 * (1 + random_below(longest)));
    return extents;
}

static uint64_t size_of(const GArray *extents) {
    uint64_t size = 0;
    for (guint i = 0; i < extents->len; i++)
        size += g_array_index(extents, VmsnapExtent, i).length_bytes;
    return size;
}

/* Ranges that join, of which none claims more than the naive ones do. */
static void check_coarse(const GArray *ranges, const GArray *naive, uint64_t size) {
    uint64_t end = 0;
    guint k = 0;
    g_assert_cmpuint(ranges->len, <=, MAX_RANGES);
    for (guint i = 0; i < ranges->len; i++) {
        const Range *range = &g_array_index(ranges, Range, i);
        g_assert_cmpuint(range->start, ==, end);
        g_assert_cmpuint(range->length_bytes, >, 0);
        g_assert_true(i == 0 || range->kind != g_array_index(ranges, Range, i - 1).kind);
        end += range->length_bytes;
        if (range->kind == 'd')
            continue;
        while (g_array_index(naive, Range, k).start + g_array_index(naive, Range, k).length_bytes <= range->start)
            k++;
        const Range *exact = &g_array_index(naive, Range, k);
        g_assert_cmpint(exact->kind, ==, range->kind);
        g_assert_cmpuint(exact->start, <=, range->start);
        g_assert_cmpuint(exact->start + exact->length_bytes, >=, end);
    }
    g_assert_cmpuint(end, ==, size);
}

/* @extents, @changes: (transfer full); there may be no changes */
static void check_long_list(GArray *extents, GArray *changes) {
    Fixture fixture;
    fixture_init(&fixture, extents, changes);
    fixture_map(&fixture, FALSE);
    g_autofree char *lines = build_lines(fixture.view);
    g_autoptr(GArray) naive = naive_ranges(fixture.disk), ranges = lines_parse(lines);
    check_coarse(ranges, naive, fixture.disk->size_bytes);
    /* What is long enough is still told, where there is anything such. */
    if (naive->len <= MAX_RANGES)
        g_assert_cmpuint(ranges->len, ==, naive->len);
    g_assert_cmpuint(ranges->len, >, 1);
    fixture_clear(&fixture);
}

static void test_too_many_ranges_are_coarse(void) {
    check_long_list(extents_many(MAX_RANGES, 16), NULL);
    check_long_list(extents_many(MAX_RANGES + 1, 16), NULL);
    check_long_list(extents_many(MAX_RANGES + MAX_RANGES / 4, 100), NULL);
}

static void test_too_many_changes_are_coarse(void) {
    GArray *changes = extents_many(MAX_RANGES + 1000, 20);
    check_long_list(extents_one(VMSNAP_EXTENT_ZERO, size_of(changes)), changes);
}

static void test_a_coarse_list_is_json_too(void) {
    Fixture fixture;
    fixture_init(&fixture, extents_many(MAX_RANGES + 1000, 16), NULL);
    fixture_map(&fixture, FALSE);
    g_autofree char *lines = build_lines(fixture.view);
    g_autofree char *json = build_json(fixture.view);
    guint n_lines = 0, n_objects = 0;
    for (const char *c = lines; *c; c++)
        n_lines += *c == '\n';
    for (const char *c = json; *c; c++)
        n_objects += *c == '{';
    g_assert_cmpuint(n_objects, ==, n_lines);
    g_assert_cmpuint(n_lines, <=, MAX_RANGES);
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/block-map/" path, function)
    ADD("any-disk-equals-naive", test_any_disk_equals_naive);
    ADD("one-kind-is-one-range", test_one_kind_is_one_range);
    ADD("the-text-is-as-documented", test_the_text_is_as_documented);
    ADD("an-empty-disk-has-no-ranges", test_an_empty_disk_has_no_ranges);
    ADD("what-is-not-known-is-data", test_what_is_not_known_is_data);
    ADD("too-many-ranges-are-coarse", test_too_many_ranges_are_coarse);
    ADD("too-many-changes-are-coarse", test_too_many_changes_are_coarse);
    ADD("a-coarse-list-is-json-too", test_a_coarse_list_is_json_too);
#undef ADD
    return g_test_run();
}
