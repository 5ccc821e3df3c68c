/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The counts are read one by one while readers go on, so they fit together only roughly. "transferred" counts what
 * need not be read any more, zero extents and data handed out, so that it reaches "total" when a sparse copy is done.
 * Where only changes are shown, so does what is clean, and of data and zeroes only those that have changed are told.
 */
#include "status.h"

#include "block_map.h"
#include "json.h"
#include "manifest.h"

typedef struct {
    uint64_t size_bytes;
    uint64_t zero_bytes;
    uint64_t data_bytes; /* known to be data */
    uint64_t read_bytes;
    uint64_t dirty_bytes;
    uint64_t hidden_bytes; /* clean, where only changes are shown */
    uint64_t released_bytes;
    gboolean has_scratch;
    uint64_t scratch_used_bytes;
    uint64_t scratch_left_bytes;
} DiskStatus;

static DiskStatus disk_status_take(const VmsnapDiskView *view) {
    const VmsnapExtentMap *map = vmsnap_scan_get_map(view->scan);
    DiskStatus status = {
        .size_bytes = view->disk->size_bytes,
        .zero_bytes = vmsnap_extent_map_get_zero_bytes(map),
        .read_bytes = vmsnap_progress_get_bytes(view->progress),
        .dirty_bytes = vmsnap_disk_view_get_dirty_bytes(view),
    };
    uint64_t known_bytes = vmsnap_extent_map_get_known_bytes(map);
    status.data_bytes = known_bytes - MIN(known_bytes, status.zero_bytes);
    if (view->shown) {
        status.hidden_bytes = vmsnap_block_map_count(view->shown, VMSNAP_RANGE_SAME);
        status.data_bytes = vmsnap_block_map_count(view->shown, VMSNAP_RANGE_DATA);
        status.zero_bytes = vmsnap_block_map_count(view->shown, VMSNAP_RANGE_ZERO);
    }

    if (view->release)
        status.released_bytes = vmsnap_release_get_bytes(view->release);
    status.has_scratch = vmsnap_disk_get_scratch(view->disk, &status.scratch_used_bytes, &status.scratch_left_bytes);
    return status;
}

static DiskStatus total_status_take(const VmsnapView *view) {
    DiskStatus total = {0};
    for (guint i = 0; i < view->disks->len; i++) {
        DiskStatus status = disk_status_take(g_ptr_array_index(view->disks, i));
        total.size_bytes += status.size_bytes;
        total.zero_bytes += status.zero_bytes;
        total.data_bytes += status.data_bytes;
        total.read_bytes += status.read_bytes;
        total.dirty_bytes += status.dirty_bytes;
        total.hidden_bytes += status.hidden_bytes;
        total.scratch_used_bytes += status.scratch_used_bytes;
    }
    return total;
}

static uint64_t transferred_bytes(const DiskStatus *status) {
    return MIN(status->hidden_bytes + status->zero_bytes + status->read_bytes, status->size_bytes);
}

static void add_disk(JsonBuilder *json, const VmsnapDiskView *view) {
    DiskStatus status = disk_status_take(view);
    json_builder_begin_object(json);
    vmsnap_json_add_string(json, "name", view->disk->name);
    vmsnap_json_add_bytes(json, "size", status.size_bytes);
    vmsnap_json_add_bytes(json, "data", status.data_bytes);
    vmsnap_json_add_bytes(json, "zero-bytes", status.zero_bytes);
    vmsnap_json_add_bytes(json, "read", status.read_bytes);
    vmsnap_json_add_bytes(json, "dirty", status.dirty_bytes);
    if (view->release)
        vmsnap_json_add_bytes(json, "released", status.released_bytes);
    if (view->disk->since)
        vmsnap_json_add_string(json, "since", view->disk->since);
    if (view->disk->full_reason)
        vmsnap_json_add_string(json, "full-reason", view->disk->full_reason);
    if (status.has_scratch) {
        vmsnap_json_add_bytes(json, "scratch-used", status.scratch_used_bytes);
        vmsnap_json_add_bytes(json, "scratch-left", status.scratch_left_bytes);
    }
    json_builder_end_object(json);
}

char *vmsnap_status_build_json(const VmsnapView *view) {
    g_autofree char *break_reason = vmsnap_snapshot_dup_break_reason(view->snapshot);
    DiskStatus total = total_status_take(view);
    g_autoptr(JsonBuilder) json = json_builder_new();
    json_builder_begin_object(json);
    vmsnap_json_add_string(json, "status", break_reason ? "error" : "active");
    if (break_reason)
        vmsnap_json_add_string(json, "errmsg", break_reason);
    vmsnap_json_add_string(json, "uuid", view->snapshot->uuid);
    vmsnap_json_add_bytes(json, "start-time", (uint64_t)view->snapshot->instant_ns / 1000000000);
    vmsnap_json_add_bytes(json, "total", total.size_bytes);
    vmsnap_json_add_bytes(json, "transferred", transferred_bytes(&total));
    vmsnap_json_add_bytes(json, "zero-bytes", total.zero_bytes);
    vmsnap_json_add_bytes(json, "dirty", total.dirty_bytes);
    if (view->snapshot->checkpoint)
        vmsnap_json_add_string(json, "checkpoint", view->snapshot->checkpoint);
    if (view->snapshot->since)
        vmsnap_json_add_string(json, "since", view->snapshot->since);
    json_builder_set_member_name(json, "disks");
    json_builder_begin_array(json);
    for (guint i = 0; i < view->disks->len; i++)
        add_disk(json, g_ptr_array_index(view->disks, i));
    json_builder_end_array(json);
    json_builder_end_object(json);
    return vmsnap_json_to_text(json);
}

static void append_disk_line(GString *text, const VmsnapDiskView *view) {
    DiskStatus status = disk_status_take(view);
    g_autofree char *size = g_format_size_full(status.size_bytes, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *data = g_format_size_full(status.data_bytes, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *read = g_format_size_full(status.read_bytes, G_FORMAT_SIZE_IEC_UNITS);
    g_string_append_printf(text, "%-8s %s, %s of data, %s read", view->disk->name, size, data, read);
    if (view->disk->since) {
        g_autofree char *dirty = g_format_size_full(status.dirty_bytes, G_FORMAT_SIZE_IEC_UNITS);
        g_string_append_printf(text, ", %s changed since %s", dirty, view->disk->since);
    }
    if (view->release) {
        g_autofree char *released = g_format_size_full(status.released_bytes, G_FORMAT_SIZE_IEC_UNITS);
        g_string_append_printf(text, ", %s released", released);
    }
    if (view->disk->full_reason)
        g_string_append_printf(text, ", in full: %s", view->disk->full_reason);
    if (status.has_scratch) {
        g_autofree char *used = g_format_size_full(status.scratch_used_bytes, G_FORMAT_SIZE_IEC_UNITS);
        g_autofree char *left = g_format_size_full(status.scratch_left_bytes, G_FORMAT_SIZE_IEC_UNITS);
        g_string_append_printf(text, ", scratch %s used, %s left", used, left);
    }
    g_string_append_c(text, '\n');
}

char *vmsnap_status_build_text(const VmsnapView *view) {
    const VmsnapSnapshot *snapshot = view->snapshot;
    g_autofree char *break_reason = vmsnap_snapshot_dup_break_reason(view->snapshot);
    g_autofree char *instant = vmsnap_instant_format(snapshot->instant_ns);
    DiskStatus total = total_status_take(view);
    uint64_t percent = total.size_bytes ? transferred_bytes(&total) * 100 / total.size_bytes : 100;

    GString *text = g_string_new(NULL);
    g_string_append_printf(text, "snapshot %s of %s\n", snapshot->uuid, snapshot->machine);
    g_string_append_printf(text, "instant  %s\n", instant);
    if (snapshot->checkpoint)
        g_string_append_printf(text, "checkpoint %s\n", snapshot->checkpoint);
    if (break_reason)
        g_string_append_printf(text, "status   error: %s\n", break_reason);
    else
        g_string_append_printf(text, "status   active, %" G_GUINT64_FORMAT " %% done\n", percent);
    for (guint i = 0; i < view->disks->len; i++)
        append_disk_line(text, g_ptr_array_index(view->disks, i));
    /* GLib puts a no-break space before its units, which a terminal may not have and nobody searches for. */
    (void)g_string_replace(text, "\u00a0", " ", 0);
    return g_string_free(text, FALSE);
}
