/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk is cut into windows of 2 GiB. A window is unknown, or an array of the positions at which data and zero take
 * turns: four bytes a change, found by binary search. A window is published once, with one atomic store, and never
 * changes after that, so readers take no lock.
 *
 * The map knows nothing of how extents are asked for (scan.c) or what is built on them (layouts).
 */
#include "extent_map.h"

#include <stdatomic.h>

/* In a window that has too many changes, zero extents shorter than this are the first to be taken for data. */
#define COARSEST_FIRST_BYTES 4096
/* However small the bound, a window may have this many changes. */
#define MIN_CHANGES 16

typedef struct {
    VmsnapExtentKind first_kind;
    uint32_t n_changes;
    uint32_t changes[]; /* ascending; the kind is the other one from each position on */
} Window;

struct VmsnapExtentWindow {
    uint64_t index;
    uint64_t length;
    uint64_t position;       /* filled in up to here */
    uint64_t min_zero_bytes; /* the bound for zero runs, should there be too many changes */
    uint32_t max_changes;
    VmsnapExtentKind first_kind;
    GArray *changes; /* of uint32_t, as in Window */
};

struct VmsnapExtentMap {
    uint64_t size_bytes;
    uint64_t n_windows;
    uint32_t max_changes; /* per window */
    _Atomic uint64_t known_bytes;
    _Atomic uint64_t zero_bytes;
    _Atomic size_t memory_bytes;
    _Atomic(Window *) windows[];
};

VmsnapExtentMap *vmsnap_extent_map_new(uint64_t size_bytes, size_t max_memory_bytes) {
    uint64_t n_windows = (size_bytes + VMSNAP_EXTENT_MAP_WINDOW_BYTES - 1) / VMSNAP_EXTENT_MAP_WINDOW_BYTES;
    VmsnapExtentMap *map = g_malloc0(sizeof *map + n_windows * sizeof map->windows[0]);
    map->size_bytes = size_bytes;
    map->n_windows = n_windows;
    uint64_t window_memory = max_memory_bytes / MAX(n_windows, 1);
    uint64_t max_changes = window_memory > sizeof(Window) ? (window_memory - sizeof(Window)) / sizeof(uint32_t) : 0;
    map->max_changes = (uint32_t)CLAMP(max_changes, MIN_CHANGES, G_MAXUINT32 / 2);
    return map;
}

void vmsnap_extent_map_free(VmsnapExtentMap *map) {
    if (!map)
        return;
    for (uint64_t i = 0; i < map->n_windows; i++)
        g_free(atomic_load(&map->windows[i]));
    g_free(map);
}

uint64_t vmsnap_extent_map_get_size(const VmsnapExtentMap *map) {
    return map->size_bytes;
}

uint64_t vmsnap_extent_map_get_window_count(const VmsnapExtentMap *map) {
    return map->n_windows;
}

uint64_t vmsnap_extent_map_get_window_length(const VmsnapExtentMap *map, uint64_t index) {
    return MIN(VMSNAP_EXTENT_MAP_WINDOW_BYTES, map->size_bytes - index * VMSNAP_EXTENT_MAP_WINDOW_BYTES);
}

gboolean vmsnap_extent_map_has_window(const VmsnapExtentMap *map, uint64_t index) {
    return atomic_load_explicit(&map->windows[index], memory_order_acquire) != NULL;
}

VmsnapExtentWindow *vmsnap_extent_window_new(const VmsnapExtentMap *map, uint64_t index) {
    g_assert(index < map->n_windows);
    VmsnapExtentWindow *window = g_new0(VmsnapExtentWindow, 1);
    window->index = index;
    window->length = vmsnap_extent_map_get_window_length(map, index);
    window->max_changes = map->max_changes;
    window->min_zero_bytes = COARSEST_FIRST_BYTES;
    window->changes = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    return window;
}

void vmsnap_extent_window_free(VmsnapExtentWindow *window) {
    if (!window)
        return;
    g_array_unref(window->changes);
    g_free(window);
}

static VmsnapExtentKind kind_after(VmsnapExtentKind first_kind, uint32_t n_changes) {
    gboolean zero = (first_kind == VMSNAP_EXTENT_ZERO) != (n_changes % 2 == 1);
    return zero ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA;
}

/* Takes closed zero runs shorter than min_zero_bytes for data. The last run may still grow: it stays. */
static void window_drop_short_zeroes(VmsnapExtentWindow *window) {
    uint32_t *changes = (uint32_t *)(void *)window->changes->data;
    uint32_t n_read = window->changes->len, read = 0, write = 0;
    if (window->first_kind == VMSNAP_EXTENT_ZERO && changes[0] < window->min_zero_bytes) {
        window->first_kind = VMSNAP_EXTENT_DATA;
        read = 1;
    }
    while (read < n_read) {
        gboolean begins_zero = kind_after(window->first_kind, write + 1) == VMSNAP_EXTENT_ZERO;
        if (begins_zero && read + 1 < n_read && changes[read + 1] - changes[read] < window->min_zero_bytes)
            read += 2;
        else
            changes[write++] = changes[read++];
    }
    g_array_set_size(window->changes, write);
}

/*
 * Takes no more zero runs for data than it has to, shortest first; but makes room for many changes at once, so that the
 * next one does not lead here again.
 */
static void window_make_room(VmsnapExtentWindow *window) {
    window_drop_short_zeroes(window);
    while (window->changes->len > window->max_changes / 4 * 3) {
        window->min_zero_bytes *= 2;
        window_drop_short_zeroes(window);
    }
}

void vmsnap_extent_window_append(VmsnapExtentWindow *window, VmsnapExtentKind kind, uint64_t length_bytes) {
    length_bytes = MIN(length_bytes, vmsnap_extent_window_get_missing(window));
    if (length_bytes == 0)
        return;
    if (window->position == 0) {
        window->first_kind = kind;
    } else if (kind != kind_after(window->first_kind, window->changes->len)) {
        uint32_t change = (uint32_t)window->position;
        g_array_append_val(window->changes, change);
    }
    window->position += length_bytes;
    if (window->changes->len > window->max_changes)
        window_make_room(window);
}

uint64_t vmsnap_extent_window_get_missing(const VmsnapExtentWindow *window) {
    return window->length - window->position;
}

static uint64_t window_zero_bytes(const Window *window, uint64_t length) {
    uint64_t zero = 0, start = 0;
    for (uint32_t i = 0; i <= window->n_changes; i++) {
        uint64_t end = i < window->n_changes ? window->changes[i] : length;
        zero += kind_after(window->first_kind, i) == VMSNAP_EXTENT_ZERO ? end - start : 0;
        start = end;
    }
    return zero;
}

void vmsnap_extent_map_publish(VmsnapExtentMap *map, VmsnapExtentWindow *window) {
    g_assert(vmsnap_extent_window_get_missing(window) == 0 && !vmsnap_extent_map_has_window(map, window->index));
    size_t memory = sizeof(Window) + window->changes->len * sizeof(uint32_t);
    Window *published = g_malloc(memory);
    published->first_kind = window->first_kind;
    published->n_changes = window->changes->len;
    if (published->n_changes > 0)
        memcpy(published->changes, window->changes->data, published->n_changes * sizeof(uint32_t));

    atomic_fetch_add(&map->memory_bytes, memory);
    atomic_fetch_add(&map->zero_bytes, window_zero_bytes(published, window->length));
    atomic_store_explicit(&map->windows[window->index], published, memory_order_release);
    atomic_fetch_add(&map->known_bytes, window->length);
    vmsnap_extent_window_free(window);
}

/* Returns: how many changes lie at or before @position. */
static uint32_t window_rank(const Window *window, uint32_t position) {
    uint32_t low = 0, high = window->n_changes;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (window->changes[middle] <= position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

gboolean vmsnap_extent_map_lookup(const VmsnapExtentMap *map, uint64_t offset, VmsnapExtentKind *ret_kind,
                                  uint64_t *ret_length) {
    g_assert(offset < map->size_bytes);
    uint64_t index = offset / VMSNAP_EXTENT_MAP_WINDOW_BYTES;
    uint64_t position = offset % VMSNAP_EXTENT_MAP_WINDOW_BYTES;
    uint64_t length = vmsnap_extent_map_get_window_length(map, index);
    const Window *window = atomic_load_explicit(&map->windows[index], memory_order_acquire);
    if (!window) {
        *ret_length = length - position;
        return FALSE;
    }
    uint32_t rank = window_rank(window, (uint32_t)position);
    uint64_t end = rank < window->n_changes ? window->changes[rank] : length;
    *ret_kind = kind_after(window->first_kind, rank);
    *ret_length = end - position;
    return TRUE;
}

uint64_t vmsnap_extent_map_get_known_bytes(const VmsnapExtentMap *map) {
    return atomic_load(&map->known_bytes);
}

uint64_t vmsnap_extent_map_get_zero_bytes(const VmsnapExtentMap *map) {
    return atomic_load(&map->zero_bytes);
}

size_t vmsnap_extent_map_get_memory_bytes(const VmsnapExtentMap *map) {
    return atomic_load(&map->memory_bytes);
}
