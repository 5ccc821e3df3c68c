/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptions are a few words for people, and then JSON. */
#include "checkpoint.h"

#include "json_text.h"
#include "vmsnap/error.h"
#include "xml.h"

#include <json-glib/json-glib.h>
#include <string.h>

#define OWN_PREFIX "made by vmsnap: "
#define TRACKED_DISKS "/domaincheckpoint/disks/disk[@checkpoint='bitmap' and @name]"

static void disk_free(gpointer data) {
    VmsnapCheckpointDisk *disk = data;
    g_free(disk->name);
    g_free(disk->source);
    g_free(disk);
}

void vmsnap_checkpoint_free(VmsnapCheckpoint *checkpoint) {
    if (!checkpoint)
        return;
    g_free(checkpoint->name);
    g_free(checkpoint->snapshot);
    g_ptr_array_unref(checkpoint->disks);
    g_free(checkpoint);
}

static VmsnapCheckpointDisk *find_disk(const VmsnapCheckpoint *checkpoint, const char *name) {
    for (guint i = 0; i < checkpoint->disks->len; i++) {
        VmsnapCheckpointDisk *disk = g_ptr_array_index(checkpoint->disks, i);
        if (g_strcmp0(disk->name, name) == 0)
            return disk;
    }
    return NULL;
}

const VmsnapCheckpointDisk *vmsnap_checkpoint_find_disk(const VmsnapCheckpoint *checkpoint, const char *name) {
    return find_disk(checkpoint, name);
}

/* libvirt keeps with a checkpoint what the domain was then. */
static void sources_parse(VmsnapCheckpoint *checkpoint, xmlXPathContext *context) {
    g_autoptr(xmlXPathObject) found =
        xmlXPathEvalExpression((const xmlChar *)"/domaincheckpoint/domain/devices/disk", context);
    int n_found = found && found->nodesetval ? found->nodesetval->nodeNr : 0;
    for (int i = 0; i < n_found; i++) {
        context->node = found->nodesetval->nodeTab[i];
        g_autofree char *target = vmsnap_xml_find_text(context, "target/@dev");
        VmsnapCheckpointDisk *disk = find_disk(checkpoint, target);
        if (disk && !disk->source)
            disk->source = vmsnap_xml_find_source(context);
    }
    context->node = NULL;
}

static void disks_parse(VmsnapCheckpoint *checkpoint, xmlXPathContext *context) {
    g_autoptr(xmlXPathObject) found = xmlXPathEvalExpression((const xmlChar *)TRACKED_DISKS, context);
    int n_found = found && found->nodesetval ? found->nodesetval->nodeNr : 0;
    for (int i = 0; i < n_found; i++) {
        context->node = found->nodesetval->nodeTab[i];
        VmsnapCheckpointDisk *disk = g_new0(VmsnapCheckpointDisk, 1);
        disk->name = vmsnap_xml_find_text(context, "@name");
        g_ptr_array_add(checkpoint->disks, disk);
    }
    context->node = NULL;
}

static gint64 int_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_INT64);
    return node ? MAX(json_node_get_int(node), 0) : 0;
}

static void disk_note_parse(JsonArray *array, guint index, JsonNode *element, gpointer user_data) {
    (void)array;
    (void)index;
    const VmsnapCheckpoint *checkpoint = user_data;
    JsonObject *object = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
    JsonNode *name = object ? vmsnap_json_find(object, "name", G_TYPE_STRING) : NULL;
    VmsnapCheckpointDisk *disk = name ? find_disk(checkpoint, json_node_get_string(name)) : NULL;
    if (!disk)
        return;
    disk->size_bytes = (uint64_t)int_member(object, "size");
    disk->modified_ns = int_member(object, "modified");
}

static void note_parse(VmsnapCheckpoint *checkpoint, JsonObject *note) {
    JsonNode *snapshot = vmsnap_json_find(note, "snapshot", G_TYPE_STRING);
    JsonNode *committed = vmsnap_json_find(note, "committed", G_TYPE_BOOLEAN);
    JsonNode *disks = json_object_get_member(note, "disks");
    if (!snapshot)
        return;
    checkpoint->snapshot = g_strdup(json_node_get_string(snapshot));
    checkpoint->committed = committed && json_node_get_boolean(committed);
    if (disks && JSON_NODE_HOLDS_ARRAY(disks))
        json_array_foreach_element(json_node_get_array(disks), disk_note_parse, checkpoint);
}

static void description_parse(VmsnapCheckpoint *checkpoint, const char *description) {
    checkpoint->committed = TRUE;
    if (!description || !g_str_has_prefix(description, OWN_PREFIX))
        return;
    g_autoptr(JsonNode) note = vmsnap_json_parse(description + strlen(OWN_PREFIX), NULL);
    if (note)
        note_parse(checkpoint, json_node_get_object(note));
}

static void set_parse_error(GError **error) {
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                        "failed to read the XML of a checkpoint: it has no name");
}

VmsnapCheckpoint *vmsnap_checkpoint_parse(const char *xml, GError **error) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = document ? xmlXPathNewContext(document) : NULL;
    g_autoptr(VmsnapCheckpoint) checkpoint = g_new0(VmsnapCheckpoint, 1);
    checkpoint->disks = g_ptr_array_new_with_free_func(disk_free);
    checkpoint->name = context ? vmsnap_xml_find_text(context, "/domaincheckpoint/name") : NULL;
    if (!checkpoint->name) {
        set_parse_error(error);
        return NULL;
    }
    disks_parse(checkpoint, context);
    sources_parse(checkpoint, context);
    g_autofree char *description = vmsnap_xml_find_text(context, "/domaincheckpoint/description");
    description_parse(checkpoint, description);
    return g_steal_pointer(&checkpoint);
}

/* Without a colon, which means something else to QEMU in the name of a backing file. */
char *vmsnap_checkpoint_make_name(void) {
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *seconds = g_date_time_format(now, "%Y%m%dT%H%M%S");
    return g_strdup_printf("vmsnap-%s.%03dZ", seconds, g_date_time_get_microsecond(now) / 1000);
}

static void add_disk(JsonBuilder *json, const VmsnapDisk *disk) {
    json_builder_begin_object(json);
    json_builder_set_member_name(json, "name");
    json_builder_add_string_value(json, disk->name);
    json_builder_set_member_name(json, "size");
    json_builder_add_int_value(json, (gint64)disk->size_bytes);
    json_builder_set_member_name(json, "modified");
    json_builder_add_int_value(json, disk->modified_ns);
    json_builder_end_object(json);
}

static void add_disks(JsonBuilder *json, const VmsnapSnapshot *snapshot) {
    json_builder_set_member_name(json, "disks");
    json_builder_begin_array(json);
    for (guint i = 0; i < snapshot->disks->len; i++)
        add_disk(json, g_ptr_array_index(snapshot->disks, i));
    json_builder_end_array(json);
}

char *vmsnap_checkpoint_describe(const VmsnapSnapshot *snapshot, gboolean committed) {
    g_autoptr(JsonBuilder) json = json_builder_new();
    json_builder_begin_object(json);
    json_builder_set_member_name(json, "snapshot");
    json_builder_add_string_value(json, snapshot->uuid);
    json_builder_set_member_name(json, "committed");
    json_builder_add_boolean_value(json, committed);
    if (committed)
        add_disks(json, snapshot);
    json_builder_end_object(json);
    g_autoptr(JsonNode) root = json_builder_get_root(json);
    g_autofree char *text = json_to_string(root, FALSE);
    return g_strconcat(OWN_PREFIX, text, NULL);
}

static void append_element(GString *xml, const char *name, const char *text) {
    g_autofree char *escaped = g_markup_escape_text(text, -1);
    g_string_append_printf(xml, "  <%s>%s</%s>\n", name, escaped, name);
}

char *vmsnap_checkpoint_build_xml(const char *name, const char *description, const VmsnapDomain *domain,
                                  const GPtrArray *selected) {
    GString *xml = g_string_new("<domaincheckpoint>\n");
    append_element(xml, "name", name);
    append_element(xml, "description", description);
    g_string_append(xml, "  <disks>\n");
    for (guint i = 0; i < domain->disks->len; i++) {
        const VmsnapDomainDisk *disk = g_ptr_array_index(domain->disks, i);
        gboolean tracked = disk->keeps_track && g_ptr_array_find((GPtrArray *)selected, disk, NULL);
        g_string_append(xml, "    <disk");
        vmsnap_xml_append_attribute(xml, "name", disk->base.name);
        vmsnap_xml_append_attribute(xml, "checkpoint", tracked ? "bitmap" : "no");
        g_string_append(xml, "/>\n");
    }
    g_string_append(xml, "  </disks>\n</domaincheckpoint>\n");
    return g_string_free(xml, FALSE);
}

/* Returns: (transfer none): the element of that name in the root element, which is made if there is none. */
static xmlNode *child_get(xmlNode *root, const char *name) {
    for (xmlNode *child = root->children; child; child = child->next)
        if (child->type == XML_ELEMENT_NODE && xmlStrEqual(child->name, (const xmlChar *)name))
            return child;
    return xmlNewChild(root, NULL, (const xmlChar *)name, NULL);
}

/* Returns: (transfer full): the document as text. */
static char *document_to_text(xmlDoc *document) {
    xmlChar *memory = NULL;
    int length = 0;
    xmlDocDumpMemory(document, &memory, &length);
    char *text = g_strndup((const char *)memory, (gsize)length);
    xmlFree(memory);
    return text;
}

char *vmsnap_checkpoint_untrack(const char *xml, const char *message) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = document ? xmlXPathNewContext(document) : NULL;
    g_autoptr(xmlXPathObject) found = context ? xmlXPathEvalExpression((const xmlChar *)TRACKED_DISKS, context) : NULL;
    int n_found = found && found->nodesetval ? found->nodesetval->nodeNr : 0;
    gboolean changed = FALSE;
    for (int i = 0; i < n_found; i++) {
        context->node = found->nodesetval->nodeTab[i];
        g_autofree char *name = vmsnap_xml_find_text(context, "@name");
        g_autofree char *quoted = g_strdup_printf("'%s'", name);
        if (!g_str_has_suffix(message, quoted))
            continue;
        (void)xmlSetProp(context->node, (const xmlChar *)"checkpoint", (const xmlChar *)"no");
        (void)xmlUnsetProp(context->node, (const xmlChar *)"bitmap");
        changed = TRUE;
    }
    return changed ? document_to_text(document) : NULL;
}

char *vmsnap_checkpoint_replace_description(const char *xml, const char *description, GError **error) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    xmlNode *root = document ? xmlDocGetRootElement(document) : NULL;
    if (!root) {
        set_parse_error(error);
        return NULL;
    }
    g_autofree char *escaped = g_markup_escape_text(description, -1);
    xmlNodeSetContent(child_get(root, "description"), (const xmlChar *)escaped);
    return document_to_text(document);
}
