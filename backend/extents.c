/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "extents.h"

static void extents_append(GArray *extents, VmsnapExtentKind kind, uint64_t length_bytes) {
    VmsnapExtent *last = extents->len > 0 ? &g_array_index(extents, VmsnapExtent, extents->len - 1) : NULL;
    const VmsnapExtent extent = {.length_bytes = length_bytes, .kind = kind};
    if (last && last->kind == kind)
        last->length_bytes += length_bytes;
    else
        g_array_append_val(extents, extent);
}

GArray *vmsnap_extents_overlay(const VmsnapExtent *content, size_t n_content, const VmsnapExtent *kept, size_t n_kept) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    uint64_t content_left = n_content > 0 ? content->length_bytes : 0;
    uint64_t kept_left = n_kept > 0 ? kept->length_bytes : 0;
    while (n_content > 0 && n_kept > 0) {
        uint64_t length = MIN(content_left, kept_left);
        if (length > 0)
            extents_append(extents, kept->kind == VMSNAP_EXTENT_DATA ? VMSNAP_EXTENT_DATA : content->kind, length);
        content_left -= length;
        kept_left -= length;
        if (content_left == 0 && --n_content > 0)
            content_left = (++content)->length_bytes;
        if (kept_left == 0 && --n_kept > 0)
            kept_left = (++kept)->length_bytes;
    }
    return extents;
}
