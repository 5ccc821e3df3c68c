/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block_map.h"

/* As JSON, a quarter of a million ranges are some 15 MiB. */
#define MAX_RANGES (1U << 18)
#define COARSEST_FIRST_BYTES 4096

static const char *const kind_names[] = {
    [VMSNAP_RANGE_DATA] = "data",
    [VMSNAP_RANGE_ZERO] = "zero",
    [VMSNAP_RANGE_SAME] = "same",
};

typedef struct {
    uint64_t start;
    uint64_t length_bytes;
    VmsnapRangeKind kind;
} Range;

struct VmsnapBlockMap {
    GArray *ranges; /* of Range, gapless, ascending */
};

/* Returns: how far the run goes on from @offset; the next one may be of the same kind. */
static uint64_t look_up(const VmsnapDiskView *view, uint64_t offset, VmsnapRangeKind *ret_kind) {
    const VmsnapExtentMap *changes = vmsnap_disk_view_get_changes(view);
    VmsnapExtentKind change = VMSNAP_EXTENT_DIRTY, content = VMSNAP_EXTENT_DATA;
    uint64_t change_bytes = UINT64_MAX, content_bytes;
    if (changes && vmsnap_extent_map_lookup(changes, offset, &change, &change_bytes) && change == VMSNAP_EXTENT_CLEAN) {
        *ret_kind = VMSNAP_RANGE_SAME;
        return change_bytes;
    }
    gboolean known = vmsnap_extent_map_lookup(vmsnap_scan_get_map(view->scan), offset, &content, &content_bytes);
    *ret_kind = known && content == VMSNAP_EXTENT_ZERO ? VMSNAP_RANGE_ZERO : VMSNAP_RANGE_DATA;
    return MIN(change_bytes, content_bytes);
}

/* Returns: a whole range, however many extents it is in. */
static Range find_range(const VmsnapDiskView *view, uint64_t offset) {
    Range range = {.start = offset};
    uint64_t end = offset + look_up(view, offset, &range.kind);
    while (end < view->disk->size_bytes) {
        VmsnapRangeKind kind;
        uint64_t length_bytes = look_up(view, end, &kind);
        if (kind != range.kind)
            break;
        end += length_bytes;
    }
    range.length_bytes = end - offset;
    return range;
}

static void ranges_add(GArray *ranges, Range range) {
    Range *last = ranges->len > 0 ? &g_array_index(ranges, Range, ranges->len - 1) : NULL;
    if (last && last->kind == range.kind)
        last->length_bytes += range.length_bytes;
    else
        g_array_append_val(ranges, range);
}

/* Returns: FALSE if there are too many, of which ranges shorter than @min_bytes counted as data. */
static gboolean ranges_collect(GArray *ranges, const VmsnapDiskView *view, uint64_t min_bytes) {
    g_array_set_size(ranges, 0);
    for (uint64_t offset = 0; offset < view->disk->size_bytes && ranges->len <= MAX_RANGES;) {
        Range range = find_range(view, offset);
        offset += range.length_bytes;
        if (range.length_bytes < min_bytes)
            range.kind = VMSNAP_RANGE_DATA;
        ranges_add(ranges, range);
    }
    return ranges->len <= MAX_RANGES;
}

VmsnapBlockMap *vmsnap_block_map_new(const VmsnapDiskView *view) {
    VmsnapBlockMap *map = g_new0(VmsnapBlockMap, 1);
    map->ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    for (uint64_t min_bytes = 0; !ranges_collect(map->ranges, view, min_bytes);)
        min_bytes = MAX(min_bytes * 2, COARSEST_FIRST_BYTES);
    return map;
}

void vmsnap_block_map_free(VmsnapBlockMap *map) {
    if (!map)
        return;
    g_array_unref(map->ranges);
    g_free(map);
}

/* For g_array_binary_search(): a range that holds the beginning of another is equal to it. */
static gint range_compare(gconstpointer one, gconstpointer other) {
    const Range *range = one, *sought = other;
    if (sought->start < range->start)
        return 1;
    return sought->start - range->start < range->length_bytes ? 0 : -1;
}

VmsnapRangeKind vmsnap_block_map_find(const VmsnapBlockMap *map, uint64_t offset, uint64_t *ret_length) {
    const Range sought = {.start = offset};
    guint index = 0;
    gboolean found = g_array_binary_search(map->ranges, &sought, range_compare, &index);
    g_assert(found);
    const Range *range = &g_array_index(map->ranges, Range, index);
    *ret_length = range->start + range->length_bytes - offset;
    return range->kind;
}

uint64_t vmsnap_block_map_count(const VmsnapBlockMap *map, VmsnapRangeKind kind) {
    uint64_t total_bytes = 0;
    for (guint i = 0; i < map->ranges->len; i++) {
        const Range *range = &g_array_index(map->ranges, Range, i);
        total_bytes += range->kind == kind ? range->length_bytes : 0;
    }
    return total_bytes;
}

char *vmsnap_block_map_to_lines(const VmsnapBlockMap *map) {
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < map->ranges->len; i++) {
        const Range *range = &g_array_index(map->ranges, Range, i);
        g_string_append_printf(text, "%" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT " %s\n", range->start,
                               range->length_bytes, kind_names[range->kind]);
    }
    return g_string_free(text, FALSE);
}

/* Not by json-glib, which would make objects of them first, ten times the size of the text. */
char *vmsnap_block_map_to_json(const VmsnapBlockMap *map) {
    GString *text = g_string_new("[");
    for (guint i = 0; i < map->ranges->len; i++) {
        const Range *range = &g_array_index(map->ranges, Range, i);
        g_string_append_printf(
            text, "%s\n{\"start\": %" G_GUINT64_FORMAT ", \"length\": %" G_GUINT64_FORMAT ", \"type\": \"%s\"}",
            i > 0 ? "," : "", range->start, range->length_bytes, kind_names[range->kind]);
    }
    g_string_append(text, "\n]\n");
    return g_string_free(text, FALSE);
}
