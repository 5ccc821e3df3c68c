/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is found out of a machine before anything is begun: of a real QEMU, and of monitors that tell odd things. */
#include "backend/qmp_look.h"

#include "backend/qmp_machine.h"
#include "fake_peer.h"
#include "json_mutations.h"
#include "qemu_support.h"
#include "vmsnap/error.h"

#include <string.h>

#define TIMEOUT_MS 60000
#define UUID "6f1c2d3e-0000-4000-8000-00000000000a"
#define NO_UUID "00000000-0000-0000-0000-000000000000"

/* What the fake monitor returns to each command that it knows; qom-get answers for all objects alike, by property. */
#define ANSWERS                                                                                                        \
    "{\"query-name\": {\"name\": \"vm1\"}, \"query-uuid\": {\"UUID\": \"" UUID "\"}, "                                 \
    "\"query-status\": {\"status\": \"running\"}, \"query-migrate\": {}, \"query-block-jobs\": [], "                   \
    "\"x-debug-query-block-graph\": {}, "                                                                              \
    "\"query-block\": [{\"qdev\": \"vda\", \"inserted\": {\"node-name\": \"n0\", \"ro\": false, \"image\": "           \
    "{\"virtual-size\": 4096}}}], "                                                                                    \
    "\"qom-list\": [{\"name\": \"vu\", \"type\": \"child<vhost-user-blk-pci>\"}], "                                    \
    "\"qom-get\": {\"type\": \"virtio-blk-device\", \"share-rw\": false, \"parent_bus\": \"/machine/bus\"}}"

static JsonNode *answer_find(JsonObject *answers, JsonObject *command) {
    const char *name = json_object_get_string_member(command, "execute");
    JsonNode *answer = json_object_get_member(answers, name);
    if (!answer || !g_str_equal(name, "qom-get") || !JSON_NODE_HOLDS_OBJECT(answer))
        return answer;
    JsonObject *arguments = json_object_get_object_member(command, "arguments");
    return json_object_get_member(json_node_get_object(answer), json_object_get_string_member(arguments, "property"));
}

static void answer(FakePeer *peer, JsonObject *answers, const char *line) {
    static const char not_known[] = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"none\"}, \"id\": %d}";
    g_autoptr(JsonNode) command = json_from_string(line, NULL);
    int id = (int)fake_command_id(line);
    JsonNode *found = answers ? answer_find(answers, json_node_get_object(command)) : NULL;
    g_autofree char *value = found ? json_to_string(found, FALSE) : NULL;
    g_autofree char *text =
        found ? g_strdup_printf("{\"return\": %s, \"id\": %d}", value, id) : g_strdup_printf(not_known, id);
    fake_peer_say(peer, text);
}

static void serve(FakePeer *peer) {
    JsonNode *answers = g_atomic_pointer_get(&peer->data);
    if (!fake_monitor_enter(peer))
        return;
    for (char *line; (line = fake_peer_read_line(peer)); g_free(line))
        answer(peer, JSON_NODE_HOLDS_OBJECT(answers) ? json_node_get_object(answers) : NULL, line);
}

static VmsnapQmpFacts *look_at(FakePeer *peer, GError **error) {
    g_autoptr(VmsnapQmp) qmp = vmsnap_qmp_connect(peer->socket, TIMEOUT_MS, NULL, error);
    g_assert_nonnull(qmp);
    return vmsnap_qmp_look(qmp, peer->socket, error);
}

static VmsnapQmpFacts *look(JsonNode *answers, GError **error) {
    FakePeer peer;
    fake_peer_start(&peer, serve, answers);
    VmsnapQmpFacts *facts = look_at(&peer, error);
    fake_peer_clear(&peer);
    return facts;
}

/* @value: what to return to @command instead; NULL: it is not known */
static VmsnapQmpFacts *look_with(const char *command, const char *value, GError **error) {
    g_autoptr(JsonNode) answers = json_from_string(ANSWERS, NULL);
    if (value)
        json_object_set_member(json_node_get_object(answers), command, json_from_string(value, NULL));
    else
        json_object_remove_member(json_node_get_object(answers), command);
    return look(answers, error);
}

static void check_refused(const char *command, const char *value, const char *said) {
    g_autoptr(GError) error = NULL;
    g_assert_null(look_with(command, value, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "machine 'vm1'"));
    g_assert_nonnull(strstr(error->message, said));
}

static void check_accepted(const char *command, const char *value) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapQmpFacts) facts = look_with(command, value, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(facts->machine, ==, "vm1");
}

static const VmsnapDrive *drive_at(const VmsnapQmpFacts *facts, guint index) {
    g_assert_cmpuint(index, <, facts->drives->len);
    return g_ptr_array_index(facts->drives, index);
}

static void test_a_real_machine_tells_all(void) {
    Qemu qemu;
    g_autoptr(GError) error = NULL;
    qemu_start(&qemu);
    g_autoptr(VmsnapQmpFacts) facts = vmsnap_qmp_look(qemu.qmp, qemu.socket, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(facts->machine, ==, "qmp");
    g_assert_true(g_uuid_string_is_valid(facts->uuid));
    g_assert_cmpuint(facts->drives->len, ==, QEMU_N_DISKS);
    g_assert_cmpstr(drive_at(facts, 0)->name, ==, "vda");
    g_assert_cmpstr(drive_at(facts, 1)->name, ==, "sda");
    for (guint i = 0; i < QEMU_N_DISKS; i++)
        g_assert_cmpint(drive_at(facts, i)->media, ==, VMSNAP_MEDIA_WRITABLE);
    g_autoptr(JsonNode) description = json_from_string(g_bytes_get_data(facts->description, NULL), NULL);
    g_assert_true(json_object_has_member(json_node_get_object(description), "block-graph"));
    qemu_clear(&qemu);
}

static void test_a_machine_has_its_own_name_and_uuid(void) {
    g_autoptr(VmsnapQmpFacts) facts = look_with("query-migrate", "{}", NULL);
    g_assert_cmpstr(facts->machine, ==, "vm1");
    g_assert_cmpstr(facts->uuid, ==, UUID);
    g_assert_cmpuint(facts->drives->len, ==, 3);
    g_assert_cmpint(drive_at(facts, 0)->media, ==, VMSNAP_MEDIA_WRITABLE);
    g_assert_cmpint(drive_at(facts, 1)->media, ==, VMSNAP_MEDIA_REFUSED);
}

static void test_a_machine_without_a_name_is_called_after_its_socket(void) {
    static const char *const names[] = {
        NULL, "{}", "{\"name\": \"\"}", "{\"name\": 5}", "[]", "{\"name\": \"\\ud800x\"}"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(VmsnapQmpFacts) facts = look_with("query-name", names[i], NULL);
        g_assert_cmpstr(facts->machine, ==, "peer");
    }
}

static void test_a_machine_without_a_uuid_has_one_of_its_socket(void) {
    FakePeer peer;
    g_autoptr(JsonNode) answers = json_from_string(ANSWERS, NULL);
    json_object_set_member(json_node_get_object(answers), "query-uuid",
                           json_from_string("{\"UUID\": \"" NO_UUID "\"}", NULL));
    fake_peer_start(&peer, serve, answers);
    g_autoptr(VmsnapQmpFacts) first = look_at(&peer, NULL), second = look_at(&peer, NULL);
    fake_peer_clear(&peer);
    g_assert_true(g_uuid_string_is_valid(first->uuid));
    g_assert_cmpstr(first->uuid, !=, NO_UUID);
    g_assert_cmpstr(first->uuid, ==, second->uuid);
}

static void greet_as_old(FakePeer *peer) {
    fake_peer_say(peer, "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 0, \"micro\": 1}}}}");
    for (char *line; (line = fake_peer_read_line(peer)); g_free(line)) {
        g_autofree char *text = g_strdup_printf("{\"return\": {}, \"id\": %d}", (int)fake_command_id(line));
        fake_peer_say(peer, text);
    }
}

static void test_an_old_qemu_is_refused(void) {
    FakePeer peer;
    g_autoptr(GError) error = NULL;
    fake_peer_start(&peer, greet_as_old, NULL);
    g_assert_null(look_at(&peer, &error));
    g_assert_nonnull(strstr(error->message, "its QEMU is 7.0.1, and 7.1 is needed"));
    fake_peer_clear(&peer);
}

static void test_a_machine_that_is_away_is_refused(void) {
    check_refused("query-status", "{\"status\": \"inmigrate\"}", "(inmigrate)");
    check_refused("query-status", "{\"status\": \"postmigrate\"}", "(postmigrate)");
    check_refused("query-migrate", "{\"status\": \"active\"}", "(active)");
    check_refused("query-migrate", "{\"status\": \"setup\"}", "(setup)");
    check_accepted("query-migrate", "{\"status\": \"completed\"}");
    check_accepted("query-migrate", NULL);
    check_accepted("query-status", "{\"status\": \"paused\"}");
    check_accepted("query-status", NULL);
}

static void test_a_block_job_is_in_the_way(void) {
    check_refused("query-block-jobs", "[{\"device\": \"job0\", \"type\": \"mirror\"}]",
                  "its block job 'job0' (mirror) runs");
    check_refused("query-block-jobs", "[{}]", "its block job '?' (?) runs");
    check_refused("query-block-jobs", "[null]", "QEMU does not tell");
    check_refused("query-block-jobs", "{}", "QEMU does not tell");
    check_refused("query-block-jobs", NULL, "none");
}

static void check_disk(const char *properties, VmsnapMedia media) {
    g_autoptr(VmsnapQmpFacts) facts = look_with("qom-get", properties, NULL);
    g_assert_cmpint(drive_at(facts, 0)->media, ==, media);
}

static void test_devices_are_judged_by_their_properties(void) {
    check_disk("{}", VMSNAP_MEDIA_WRITABLE);
    check_disk(NULL, VMSNAP_MEDIA_WRITABLE);
    check_disk("{\"type\": \"scsi-cd\"}", VMSNAP_MEDIA_LEFT_OUT);
    check_disk("{\"type\": \"scsi-block\"}", VMSNAP_MEDIA_REFUSED);
    check_disk("{\"share-rw\": true}", VMSNAP_MEDIA_REFUSED);
    check_disk("{\"share-rw\": \"true\"}", VMSNAP_MEDIA_WRITABLE);
    check_disk("{\"iothread\": \"/objects/io0\"}", VMSNAP_MEDIA_REFUSED);
    check_disk("{\"iothread\": \"\"}", VMSNAP_MEDIA_WRITABLE);
}

static void check_answers(JsonNode *answers, gconstpointer data) {
    FakePeer *peer = (FakePeer *)data;
    g_autoptr(GError) error = NULL;
    g_atomic_pointer_set(&peer->data, answers);
    g_autoptr(VmsnapQmpFacts) facts = look_at(peer, &error);
    g_assert_cmpint(facts == NULL, ==, error != NULL);
    if (facts)
        g_assert_true(g_utf8_validate(facts->machine, -1, NULL));
}

static void test_wrong_answers_do_no_harm(void) {
    FakePeer peer;
    fake_peer_start(&peer, serve, NULL);
    g_assert_cmpuint(json_mutate(ANSWERS, check_answers, &peer), >, 300);
    fake_peer_clear(&peer);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-look/a-real-machine-tells-all", test_a_real_machine_tells_all);
    g_test_add_func("/qmp-look/a-machine-has-its-own-name-and-uuid", test_a_machine_has_its_own_name_and_uuid);
    g_test_add_func("/qmp-look/a-machine-without-a-name-is-called-after-its-socket",
                    test_a_machine_without_a_name_is_called_after_its_socket);
    g_test_add_func("/qmp-look/a-machine-without-a-uuid-has-one-of-its-socket",
                    test_a_machine_without_a_uuid_has_one_of_its_socket);
    g_test_add_func("/qmp-look/an-old-qemu-is-refused", test_an_old_qemu_is_refused);
    g_test_add_func("/qmp-look/a-machine-that-is-away-is-refused", test_a_machine_that_is_away_is_refused);
    g_test_add_func("/qmp-look/a-block-job-is-in-the-way", test_a_block_job_is_in_the_way);
    g_test_add_func("/qmp-look/devices-are-judged-by-their-properties", test_devices_are_judged_by_their_properties);
    g_test_add_func("/qmp-look/wrong-answers-do-no-harm", test_wrong_answers_do_no_harm);
    return g_test_run();
}
