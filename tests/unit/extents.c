/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Kept too simple to be wrong. Random numbers come from g_test_rand_int(), whose seed GLib's harness prints. */
#include "extents.h"

uint64_t random_below(uint64_t bound) {
    uint64_t number = (uint64_t)(uint32_t)g_test_rand_int() << 32 | (uint32_t)g_test_rand_int();
    return number % bound;
}

void extents_append(GArray *extents, VmsnapExtentKind kind, uint64_t length_bytes) {
    VmsnapExtent extent = {.length_bytes = length_bytes, .kind = kind};
    g_array_append_val(extents, extent);
}

/* As many lengths of each order of magnitude, so that single bytes meet gigabytes. */
static uint64_t random_length(uint64_t max_length_bytes) {
    unsigned bits = (unsigned)random_below(64 - (unsigned)__builtin_clzll(max_length_bytes)) + 1;
    uint64_t length = 1 + random_below(UINT64_C(1) << bits);
    return MIN(length, max_length_bytes);
}

GArray *extents_random(uint64_t size_bytes, uint64_t max_length_bytes) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    while (size_bytes > 0) {
        uint64_t length = random_length(max_length_bytes);
        length = MIN(length, size_bytes);
        extents_append(extents, random_below(2) ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, length);
        size_bytes -= length;
    }
    return extents;
}

GArray *extents_alternate(uint64_t size_bytes, uint64_t length_bytes) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    for (uint64_t offset = 0; offset < size_bytes; offset += length_bytes)
        extents_append(extents, extents->len % 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA,
                       MIN(length_bytes, size_bytes - offset));
    return extents;
}

VmsnapExtentKind extents_find(const GArray *extents, uint64_t offset, uint64_t *ret_length) {
    uint64_t start = 0;
    for (guint i = 0; i < extents->len; i++) {
        const VmsnapExtent *extent = &g_array_index(extents, VmsnapExtent, i);
        if (offset < start + extent->length_bytes) {
            *ret_length = start + extent->length_bytes - offset;
            return extent->kind;
        }
        start += extent->length_bytes;
    }
    g_assert_not_reached();
}

uint64_t extents_count_zero(const GArray *extents, uint64_t offset, uint64_t length_bytes) {
    uint64_t zero = 0, length = 0;
    for (uint64_t position = offset; position < offset + length_bytes; position += length) {
        VmsnapExtentKind kind = extents_find(extents, position, &length);
        length = MIN(length, offset + length_bytes - position);
        zero += kind == VMSNAP_EXTENT_ZERO ? length : 0;
    }
    return zero;
}

uint64_t extents_random_offset(const GArray *extents, uint64_t size_bytes) {
    uint64_t offset = random_below(size_bytes), to_border = 0;
    if (random_below(4) == 0)
        return offset;
    (void)extents_find(extents, offset, &to_border);
    uint64_t before = random_below(2) ? random_below(8) : random_below(64 << 10);
    offset += to_border;
    return MIN(offset - MIN(before, offset), size_bytes - 1);
}
