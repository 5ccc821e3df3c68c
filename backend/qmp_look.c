/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qmp_look.h"

#include "json_text.h"
#include "qmp_machine.h"
#include "vmsnap/error.h"

#include <string.h>

/* The first with all that is used: copy-before-write that breaks the snapshot and not the guest, in time. */
#define MIN_MAJOR 7
#define MIN_MINOR 1
#define NO_UUID "00000000-0000-0000-0000-000000000000"

void vmsnap_qmp_facts_free(VmsnapQmpFacts *facts) {
    if (!facts)
        return;
    g_free(facts->machine);
    g_free(facts->uuid);
    g_clear_pointer(&facts->drives, g_ptr_array_unref);
    g_clear_pointer(&facts->description, g_bytes_unref);
    g_free(facts);
}

/* Returns: (transfer full): a string member of what a command returns, or NULL if there is none that is of use. */
static char *query_string(VmsnapQmp *qmp, const char *command, const char *member) {
    g_autoptr(JsonNode) answer = vmsnap_qmp_call(qmp, NULL, command, NULL);
    return g_strdup(vmsnap_json_find_text(vmsnap_json_as_object(answer), member));
}

/* Returns: (transfer full): a property of an object, or NULL if it has none. */
static JsonNode *get_property(VmsnapQmp *qmp, const char *path, const char *property) {
    return vmsnap_qmp_call(qmp, NULL, "qom-get", "{'path': <%s>, 'property': <%s>}", path, property);
}

static char *get_string_property(VmsnapQmp *qmp, const char *path, const char *property) {
    g_autoptr(JsonNode) node = get_property(qmp, path, property);
    gboolean is_string = node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING;
    const char *text = is_string ? json_node_get_string(node) : NULL;
    return text && text[0] && g_utf8_validate(text, -1, NULL) ? g_strdup(text) : NULL;
}

/* A socket is called after its machine more often than not: /run/qemu-server/100.qmp. */
static char *name_of_socket(const char *path) {
    g_autofree char *base = g_path_get_basename(path);
    char *dot = strrchr(base, '.');
    if (dot && dot != base)
        *dot = '\0';
    return g_utf8_make_valid(base, -1);
}

/* The same for the same path, so that the files of its mounts are known again. */
static char *uuid_of_socket(const char *path) {
    g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA1, path, -1);
    return g_strdup_printf("%.8s-%.4s-%.4s-%.4s-%.12s", digest, digest + 8, digest + 12, digest + 16, digest + 20);
}

static gboolean check_version(VmsnapQmp *qmp, const char *machine, GError **error) {
    if (vmsnap_qmp_is_at_least(qmp, MIN_MAJOR, MIN_MINOR))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to mount machine '%s': its QEMU is %s, and %d.%d is needed; start it with a newer one", machine,
                vmsnap_qmp_get_version(qmp), MIN_MAJOR, MIN_MINOR);
    return FALSE;
}

/* While its disks belong to another QEMU, or are about to, no node of them can be written to. */
static gboolean check_status(VmsnapQmp *qmp, const char *machine, GError **error) {
    static const char *const away[] = {"inmigrate", "postmigrate", "finish-migrate", "save-vm", "restore-vm",
                                       "colo",      NULL};
    static const char *const settled[] = {"none", "completed", "failed", "cancelled", NULL};
    g_autofree char *status = query_string(qmp, "query-status", "status");
    g_autofree char *migration = query_string(qmp, "query-migrate", "status");
    gboolean is_away = status && g_strv_contains(away, status);
    if (!is_away && (!migration || g_strv_contains(settled, migration)))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to mount machine '%s': it is being migrated or saved (%s); try again when that is over",
                machine, is_away ? status : migration);
    return FALSE;
}

gboolean vmsnap_qmp_check_idle(VmsnapQmp *qmp, const char *machine, GError **error) {
    g_autoptr(GError) query_error = NULL;
    g_autoptr(JsonNode) answer = vmsnap_qmp_call(qmp, &query_error, "query-block-jobs", NULL);
    JsonArray *jobs = answer && JSON_NODE_HOLDS_ARRAY(answer) ? json_node_get_array(answer) : NULL;
    if (jobs && json_array_get_length(jobs) == 0)
        return TRUE;
    JsonObject *job = jobs ? vmsnap_json_get_object(jobs, 0) : NULL;
    JsonNode *name = vmsnap_json_find(job, "device", G_TYPE_STRING);
    JsonNode *type = vmsnap_json_find(job, "type", G_TYPE_STRING);
    if (job)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to mount machine '%s': its block job '%s' (%s) runs; wait until it ends, or cancel it",
                    machine, name ? json_node_get_string(name) : "?", type ? json_node_get_string(type) : "?");
    else
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to look for block jobs of machine '%s': %s",
                    machine, query_error ? query_error->message : "QEMU does not tell");
    return FALSE;
}

/* Without that, what was put into QEMU could not be taken out safely. */
static gboolean check_graph(VmsnapQmp *qmp, const char *machine, GError **error) {
    if (vmsnap_qmp_run(qmp, NULL, "x-debug-query-block-graph", NULL))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to mount machine '%s': its QEMU %s does not show its block graph (x-debug-query-block-graph); "
                "use another version",
                machine, vmsnap_qmp_get_version(qmp));
    return FALSE;
}

/* Whose iothread it is: the device's own, or that of the controller whose bus it is on. */
static gboolean device_has_iothread(VmsnapQmp *qmp, const char *device) {
    g_autofree char *own = get_string_property(qmp, device, "iothread");
    if (own)
        return TRUE;
    g_autofree char *bus = get_string_property(qmp, device, "parent_bus");
    g_autofree char *controller = bus ? g_path_get_dirname(bus) : NULL;
    g_autofree char *shared = controller ? get_string_property(qmp, controller, "iothread") : NULL;
    return shared != NULL;
}

static void drive_judge(VmsnapQmp *qmp, VmsnapQmpDrive *drive) {
    if (!drive->device)
        return;
    g_autofree char *type = get_string_property(qmp, drive->device, "type");
    g_autoptr(JsonNode) share = get_property(qmp, drive->device, "share-rw");
    const VmsnapQmpDevice device = {
        .type = type,
        .is_shareable = share && JSON_NODE_HOLDS_VALUE(share) && json_node_get_value_type(share) == G_TYPE_BOOLEAN &&
                        json_node_get_boolean(share),
        .has_iothread = device_has_iothread(qmp, drive->device),
    };
    vmsnap_qmp_drive_judge(drive, &device, vmsnap_qmp_is_at_least(qmp, VMSNAP_QEMU_IOTHREAD_MAJOR, 0));
}

static gboolean facts_add_drives(VmsnapQmpFacts *facts, VmsnapQmp *qmp, GError **error) {
    g_autoptr(GError) query_error = NULL;
    g_autoptr(JsonNode) blocks = vmsnap_qmp_call(qmp, &query_error, "query-block", NULL);
    if (!blocks) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to learn the disks of machine '%s': %s",
                    facts->machine, query_error->message);
        return FALSE;
    }
    facts->drives = vmsnap_qmp_drives_parse(blocks);
    for (guint i = 0; i < facts->drives->len; i++)
        drive_judge(qmp, g_ptr_array_index(facts->drives, i));
    static const char *const containers[] = {"/machine/peripheral", "/machine/peripheral-anon"};
    for (size_t i = 0; i < G_N_ELEMENTS(containers); i++) {
        g_autoptr(JsonNode) objects = vmsnap_qmp_call(qmp, NULL, "qom-list", "{'path': <%s>}", containers[i]);
        if (objects)
            vmsnap_qmp_drives_add_foreign(facts->drives, objects);
    }
    return TRUE;
}

/* What QEMU cannot tell is not there: older ones know less. */
static void description_add(JsonBuilder *json, VmsnapQmp *qmp, const char *member, const char *command,
                            const char *arguments) {
    g_autoptr(JsonNode) answer = vmsnap_qmp_call(qmp, NULL, command, arguments);
    if (!answer)
        return;
    json_builder_set_member_name(json, member);
    json_builder_add_value(json, json_node_copy(answer));
}

static GBytes *description_build(VmsnapQmp *qmp) {
    static const struct {
        const char *member;
        const char *command;
        const char *arguments;
    } parts[] = {
        {"version", "query-version", NULL},
        {"name", "query-name", NULL},
        {"uuid", "query-uuid", NULL},
        {"status", "query-status", NULL},
        {"machine", "qom-get", "{'path': <'/machine'>, 'property': <'type'>}"},
        {"accelerator", "query-kvm", NULL},
        {"memory", "query-memory-size-summary", NULL},
        {"memory-devices", "query-memory-devices", NULL},
        {"cpus", "query-cpus-fast", NULL},
        {"devices", "qom-list", "{'path': <'/machine/peripheral'>}"},
        {"pci", "query-pci", NULL},
        {"chardevs", "query-chardev", NULL},
        {"block", "query-block", NULL},
        {"block-nodes", "query-named-block-nodes", "{'flat': <true>}"},
        {"block-graph", "x-debug-query-block-graph", NULL},
    };
    g_autoptr(JsonBuilder) json = json_builder_new();
    json_builder_begin_object(json);
    for (size_t i = 0; i < G_N_ELEMENTS(parts); i++)
        description_add(json, qmp, parts[i].member, parts[i].command, parts[i].arguments);
    json_builder_end_object(json);
    g_autoptr(JsonNode) root = json_builder_get_root(json);
    g_autofree char *text = json_to_string(root, TRUE);
    char *lines = g_strconcat(text, "\n", NULL);
    return g_bytes_new_take(lines, strlen(lines));
}

VmsnapQmpFacts *vmsnap_qmp_look(VmsnapQmp *qmp, const char *path, GError **error) {
    g_autoptr(VmsnapQmpFacts) facts = g_new0(VmsnapQmpFacts, 1);
    facts->machine = query_string(qmp, "query-name", "name");
    if (!facts->machine)
        facts->machine = name_of_socket(path);
    facts->uuid = query_string(qmp, "query-uuid", "UUID");
    if (!facts->uuid || g_str_equal(facts->uuid, NO_UUID)) {
        g_free(facts->uuid);
        facts->uuid = uuid_of_socket(path);
    }
    if (!check_version(qmp, facts->machine, error) || !check_status(qmp, facts->machine, error) ||
        !vmsnap_qmp_check_idle(qmp, facts->machine, error) || !check_graph(qmp, facts->machine, error) ||
        !facts_add_drives(facts, qmp, error))
        return NULL;
    facts->description = description_build(qmp);
    return g_steal_pointer(&facts);
}
