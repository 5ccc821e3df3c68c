/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * query-block lists block backends: drives that the command line or a device has made. A drive is named after its
 * device, since that is what the guest and whoever starts the machine know; where the device has no id, after what
 * -drive calls it. Devices tell little of themselves there, so that the rest comes from the object tree.
 */
#include "qmp_machine.h"

#include "json_text.h"

#include <string.h>

#define PERIPHERAL "/machine/peripheral/"

static void drive_free(gpointer data) {
    VmsnapQmpDrive *drive = data;
    vmsnap_drive_clear(&drive->base);
    g_free(drive->device);
    g_free(drive->node);
    g_free(drive);
}

static gboolean boolean_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_BOOLEAN);
    return node && json_node_get_boolean(node);
}

static uint64_t size_of(JsonObject *image) {
    JsonNode *node = vmsnap_json_find(image, "virtual-size", G_TYPE_INT64);
    return node ? (uint64_t)MAX(json_node_get_int(node), 0) : 0;
}

/* Returns: (transfer full): the path of a device, which QEMU names by its id where it has one; or NULL */
static char *device_path(JsonObject *block) {
    const char *name = vmsnap_json_find_text(block, "qdev");
    if (!name)
        return NULL;
    return name[0] == '/' ? g_strdup(name) : g_strconcat(PERIPHERAL, name, NULL);
}

/* A virtio-blk has an inner device without an id, which is the one that has the drive. */
static char *device_id(const char *path) {
    if (!path || !g_str_has_prefix(path, PERIPHERAL))
        return NULL;
    const char *id = path + strlen(PERIPHERAL);
    return g_strndup(id, strcspn(id, "/"));
}

static gboolean name_is_taken(const GPtrArray *drives, const char *name) {
    for (guint i = 0; i < drives->len; i++)
        if (g_str_equal(((const VmsnapDrive *)g_ptr_array_index(drives, i))->name, name))
            return TRUE;
    return FALSE;
}

/* Returns: (transfer full): what a drive is called, whatever QEMU calls it. */
static char *name_choose(const GPtrArray *drives, const char *id, const char *drive, const char *node) {
    const char *const names[] = {id, drive, node};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        if (names[i] && vmsnap_drive_name_is_safe(names[i]) && names[i][0] != '#' && !name_is_taken(drives, names[i]))
            return g_strdup(names[i]);
    for (guint number = drives->len;; number++) {
        g_autofree char *name = g_strdup_printf("disk%u", number);
        if (!name_is_taken(drives, name))
            return g_steal_pointer(&name);
    }
}

static VmsnapQmpDrive *drive_parse(const GPtrArray *drives, JsonObject *block) {
    JsonObject *inserted = vmsnap_json_find_object(block, "inserted");
    JsonObject *image = vmsnap_json_find_object(inserted, "image");
    VmsnapQmpDrive *drive = g_new0(VmsnapQmpDrive, 1);
    drive->device = device_path(block);
    drive->node = g_strdup(vmsnap_json_find_text(inserted, "node-name"));
    drive->size_bytes = size_of(image);
    g_autofree char *id = device_id(drive->device);
    drive->base.name = name_choose(drives, id, vmsnap_json_find_text(block, "device"), drive->node);
    drive->base.source = g_strdup(vmsnap_json_find_text(inserted, "file"));
    drive->base.media = VMSNAP_MEDIA_LEFT_OUT;
    if (!drive->device)
        drive->base.reason = "belongs to no device";
    else if (!drive->node)
        drive->base.reason = "has no medium";
    else if (boolean_member(inserted, "ro"))
        drive->base.reason = "is read-only";
    else
        drive->base.media = VMSNAP_MEDIA_WRITABLE;
    return drive;
}

GPtrArray *vmsnap_qmp_drives_parse(JsonNode *blocks) {
    GPtrArray *drives = g_ptr_array_new_with_free_func(drive_free);
    JsonArray *list = vmsnap_json_as_array(blocks);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *block = vmsnap_json_get_object(list, i);
        if (block)
            g_ptr_array_add(drives, drive_parse(drives, block));
    }
    return drives;
}

void vmsnap_qmp_drives_add_foreign(GPtrArray *drives, JsonNode *objects) {
    JsonArray *list = vmsnap_json_as_array(objects);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *object = vmsnap_json_get_object(list, i);
        const char *type = vmsnap_json_find_text(object, "type");
        if (!type || !g_str_has_prefix(type, "child<vhost-user-blk"))
            continue;
        VmsnapQmpDrive *drive = g_new0(VmsnapQmpDrive, 1);
        drive->base.name = name_choose(drives, vmsnap_json_find_text(object, "name"), NULL, NULL);
        drive->base.media = VMSNAP_MEDIA_REFUSED;
        drive->base.reason = "is served by another process than QEMU";
        g_ptr_array_add(drives, drive);
    }
}

void vmsnap_qmp_drive_judge(VmsnapQmpDrive *drive, const VmsnapQmpDevice *device, gboolean iothread_is_safe) {
    const char *type = device->type ? device->type : "";
    const struct {
        gboolean applies;
        VmsnapMedia media;
        const char *reason;
    } rules[] = {
        {g_str_has_suffix(type, "-cd"), VMSNAP_MEDIA_LEFT_OUT, "is a CD-ROM"},
        {g_str_equal(type, "floppy"), VMSNAP_MEDIA_LEFT_OUT, "is a floppy"},
        {drive->base.media == VMSNAP_MEDIA_LEFT_OUT, VMSNAP_MEDIA_LEFT_OUT, drive->base.reason},
        {g_str_equal(type, "scsi-block") || g_str_equal(type, "scsi-generic"), VMSNAP_MEDIA_REFUSED,
         "is a SCSI passthrough, which bypasses QEMU's block layer"},
        {device->is_shareable, VMSNAP_MEDIA_REFUSED, "is shareable, so that other machines may write to it"},
        {device->has_iothread && !iothread_is_safe, VMSNAP_MEDIA_REFUSED, VMSNAP_DRIVE_IOTHREAD_REASON},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rules); i++) {
        if (!rules[i].applies)
            continue;
        drive->base.media = rules[i].media;
        drive->base.reason = rules[i].reason;
        return;
    }
}

static gint64 number_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_INT64);
    return node ? json_node_get_int(node) : -1;
}

static JsonArray *array_member(JsonNode *owner, const char *name) {
    return vmsnap_json_as_array(vmsnap_json_find_any(vmsnap_json_as_object(owner), name));
}

/* Returns: (transfer none): the vertex of that number, or NULL */
static JsonObject *vertex_find(JsonArray *vertices, gint64 id) {
    for (guint i = 0; i < json_array_get_length(vertices); i++)
        if (number_member(vmsnap_json_get_object(vertices, i), "id") == id)
            return vmsnap_json_get_object(vertices, i);
    return NULL;
}

static gboolean vertex_is(JsonObject *vertex, const char *type, const char *name) {
    return g_strcmp0(vmsnap_json_find_text(vertex, "type"), type) == 0 &&
           (!name || g_strcmp0(vmsnap_json_find_text(vertex, "name"), name) == 0);
}

const char *vmsnap_qmp_find_child(JsonNode *graph, const char *parent) {
    JsonArray *vertices = array_member(graph, "nodes"), *edges = array_member(graph, "edges");
    for (guint i = 0; i < json_array_get_length(edges); i++) {
        JsonObject *edge = vmsnap_json_get_object(edges, i);
        JsonObject *above = vertex_find(vertices, number_member(edge, "parent"));
        if (vertex_is(above, "block-driver", parent) && g_strcmp0(vmsnap_json_find_text(edge, "name"), "file") == 0)
            return vmsnap_json_find_text(vertex_find(vertices, number_member(edge, "child")), "name");
    }
    return NULL;
}

gboolean vmsnap_qmp_is_root(JsonNode *graph, const char *name) {
    JsonArray *vertices = array_member(graph, "nodes"), *edges = array_member(graph, "edges");
    gboolean has_device = FALSE;
    for (guint i = 0; i < json_array_get_length(edges); i++) {
        JsonObject *edge = vmsnap_json_get_object(edges, i);
        if (!vertex_is(vertex_find(vertices, number_member(edge, "child")), "block-driver", name))
            continue;
        if (!vertex_is(vertex_find(vertices, number_member(edge, "parent")), "block-backend", NULL))
            return FALSE;
        has_device = TRUE;
    }
    return has_device;
}

const char *vmsnap_qmp_find_node(JsonNode *blocks, const char *device) {
    JsonArray *list = vmsnap_json_as_array(blocks);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *block = vmsnap_json_get_object(list, i);
        g_autofree char *path = device_path(block);
        if (g_strcmp0(path, device) == 0)
            return vmsnap_json_find_text(vmsnap_json_find_object(block, "inserted"), "node-name");
    }
    return NULL;
}
