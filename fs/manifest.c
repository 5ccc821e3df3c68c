/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The manifest lists what is in the mount, what was left out and why, and who made it. */
#include "manifest.h"

#include "json.h"

char *vmsnap_instant_format(int64_t instant_ns) {
    g_autoptr(GDateTime) seconds = g_date_time_new_from_unix_utc(instant_ns / 1000000000);
    g_autofree char *date = g_date_time_format(seconds, "%Y-%m-%dT%H:%M:%S");
    return g_strdup_printf("%s.%09" G_GINT64_FORMAT "Z", date, instant_ns % 1000000000);
}

static const char *consistency_name(const VmsnapSnapshot *snapshot) {
    static const char *const names[] = {
        [VMSNAP_CONSISTENCY_CRASH] = "crash",
        [VMSNAP_CONSISTENCY_FILESYSTEM] = "filesystem",
        [VMSNAP_CONSISTENCY_UNKNOWN] = "unknown",
    };
    return names[vmsnap_snapshot_get_consistency(snapshot)];
}

static void add_disk(JsonBuilder *json, const VmsnapFormatOptions *format, const VmsnapDiskView *view) {
    const VmsnapDisk *disk = view->disk;
    g_autofree char *file = vmsnap_format_name_file(format, disk);
    g_autofree char *modified = vmsnap_instant_format(disk->modified_ns);
    json_builder_begin_object(json);
    vmsnap_json_add_string(json, "name", disk->name);
    vmsnap_json_add_string(json, "file", file);
    vmsnap_json_add_string(json, "format", format->format->name);
    vmsnap_json_add_bytes(json, "size", disk->size_bytes);
    if (disk->source)
        vmsnap_json_add_string(json, "source", disk->source);
    vmsnap_json_add_string_or_null(json, "since", disk->since);
    if (disk->full_reason)
        vmsnap_json_add_string(json, "full-reason", disk->full_reason);
    vmsnap_json_add_bytes(json, "dirty", vmsnap_disk_view_get_dirty_bytes(view));
    vmsnap_json_add_string(json, "modified", modified);
    json_builder_end_object(json);
}

static void add_disks(JsonBuilder *json, const VmsnapView *view) {
    json_builder_set_member_name(json, "disks");
    json_builder_begin_array(json);
    for (guint i = 0; i < view->disks->len; i++)
        add_disk(json, &view->format, g_ptr_array_index(view->disks, i));
    json_builder_end_array(json);
}

static void add_left_out(JsonBuilder *json, const VmsnapSnapshot *snapshot) {
    json_builder_set_member_name(json, "left-out");
    json_builder_begin_array(json);
    for (guint i = 0; i < snapshot->left_out->len; i++) {
        const VmsnapLeftOut *left_out = g_ptr_array_index(snapshot->left_out, i);
        json_builder_begin_object(json);
        vmsnap_json_add_string(json, "name", left_out->name);
        vmsnap_json_add_string(json, "reason", left_out->reason);
        json_builder_end_object(json);
    }
    json_builder_end_array(json);
}

static void add_versions(JsonBuilder *json, const VmsnapSnapshot *snapshot) {
    json_builder_set_member_name(json, "versions");
    json_builder_begin_object(json);
    for (guint i = 0; i < snapshot->versions->len; i++) {
        const VmsnapVersion *version = g_ptr_array_index(snapshot->versions, i);
        vmsnap_json_add_string(json, version->program, version->version);
    }
    json_builder_end_object(json);
}

GBytes *vmsnap_manifest_build(const VmsnapView *view) {
    const VmsnapSnapshot *snapshot = view->snapshot;
    g_autoptr(JsonBuilder) json = json_builder_new();
    g_autofree char *instant = vmsnap_instant_format(snapshot->instant_ns);
    json_builder_begin_object(json);
    vmsnap_json_add_string(json, "uuid", snapshot->uuid);
    vmsnap_json_add_string(json, "instant", instant);
    vmsnap_json_add_string(json, "consistency", consistency_name(snapshot));
    if (snapshot->quiesce_error)
        vmsnap_json_add_string(json, "quiesce-error", snapshot->quiesce_error);
    json_builder_set_member_name(json, "source");
    json_builder_begin_object(json);
    vmsnap_json_add_string(json, "backend", snapshot->backend->name);
    vmsnap_json_add_string(json, "name", snapshot->machine);
    vmsnap_json_add_string(json, "uuid", snapshot->machine_uuid);
    json_builder_end_object(json);
    add_disks(json, view);
    add_left_out(json, snapshot);
    vmsnap_json_add_string_or_null(json, "checkpoint", snapshot->checkpoint);
    vmsnap_json_add_string_or_null(json, "since", snapshot->since);
    add_versions(json, snapshot);
    json_builder_end_object(json);

    char *text = vmsnap_json_to_text(json);
    return g_bytes_new_take(text, strlen(text));
}
