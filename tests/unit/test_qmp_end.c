/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What becomes of a snapshot that a record tells of: in a real QEMU, and with a guest agent that is a fake. */
#include "backend/qmp_server.h"
#include "backend/qmp_snapshot.h"

#include "fake_peer.h"
#include "ordinary_user.h"
#include "qemu_support.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UUID "0123abcd-0000-4000-8000-000000000000"
#define SHORT_MS 100

/* A QEMU with a snapshot of one disk in it. */
typedef struct {
    Qemu qemu;
    VmsnapRecord *record;
    char *before; /* what QEMU was like without it */
} Fixture;

static void begin(Fixture *fixture) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapQmp) qmp = vmsnap_qmp_connect(fixture->qemu.socket, QEMU_TIMEOUT_MS, NULL, &error);
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_from_text(UUID, fixture->record->graph, NULL);
    int scratch_fd = qemu_make_image(&fixture->qemu, "scratch.qcow2");
    int listen_fd = qemu_listen_at(fixture->record->socket);
    (void)(qmp && vmsnap_qmp_server_start(qmp, listen_fd, &error) &&
           vmsnap_qmp_graph_insert(graph, 0, qmp, scratch_fd, &error) && vmsnap_qmp_graph_switch(graph, qmp, &error) &&
           vmsnap_qmp_graph_export(graph, 0, qmp, FALSE, &error));
    g_assert_no_error(error);
    (void)close(scratch_fd);
    (void)close(listen_fd);
}

static VmsnapRecord *record_of(const Qemu *qemu) {
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_new(UUID);
    VmsnapRecord *record = vmsnap_record_new();
    vmsnap_qmp_graph_add(graph, "vda", qemu_devices[0], "n0", NULL);
    record->uuid = g_strdup(UUID);
    record->machine = g_strdup("vm1");
    record->connect_uri = g_strdup(qemu->socket);
    record->agent = qemu_path(qemu, "agent.sock");
    record->graph = vmsnap_qmp_graph_to_text(graph);
    record->socket = qemu_path(qemu, "nbd.sock");
    record->scratch_dir = g_strdup(qemu->directory);
    record->timeout_ms = QEMU_TIMEOUT_MS;
    record->job = TRUE;
    return record;
}

static void fixture_set_up(Fixture *fixture, gconstpointer data) {
    (void)data;
    qemu_start(&fixture->qemu);
    fixture->record = record_of(&fixture->qemu);
    fixture->before = qemu_describe(&fixture->qemu);
    begin(fixture);
}

static void fixture_tear_down(Fixture *fixture, gconstpointer data) {
    (void)data;
    qemu_clear(&fixture->qemu);
    vmsnap_record_free(fixture->record);
    g_free(fixture->before);
}

static void check_clears(const Fixture *fixture, VmsnapQmpClearing expected) {
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(vmsnap_qmp_clear(fixture->record, QEMU_TIMEOUT_MS, &error), ==, expected);
    g_test_message("%s", error ? error->message : "no error");
}

static void check_fails(const Fixture *fixture, unsigned timeout_ms, const char *said) {
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(vmsnap_qmp_clear(fixture->record, timeout_ms, &error), ==, VMSNAP_QMP_FAILED);
    g_assert_nonnull(strstr(error->message, said));
}

static gboolean is_as_before(const Fixture *fixture) {
    g_autofree char *now = qemu_describe(&fixture->qemu);
    return g_str_equal(now, fixture->before);
}

static void test_a_snapshot_is_cleared_and_may_be_again(Fixture *fixture, gconstpointer data) {
    (void)data;
    for (int i = 0; i < 2; i++) {
        check_clears(fixture, VMSNAP_QMP_CLEARED);
        g_assert_true(is_as_before(fixture));
    }
}

static void test_without_qemu_all_is_gone(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autofree char *elsewhere = g_strconcat(fixture->qemu.socket, ".old", NULL);
    g_assert_cmpint(g_rename(fixture->qemu.socket, elsewhere), ==, 0);
    /* It lives, and only its monitor cannot be found. */
    check_fails(fixture, QEMU_TIMEOUT_MS, fixture->qemu.socket);
    (void)kill(fixture->qemu.pid, SIGKILL);
    while (vmsnap_qmp_server_look(fixture->record->socket) != VMSNAP_QMP_SERVER_NONE)
        g_usleep(1000);
    check_clears(fixture, VMSNAP_QMP_GONE);
    (void)close(qemu_listen_at(fixture->qemu.socket));
    check_clears(fixture, VMSNAP_QMP_GONE);
}

static void test_who_may_not_connect_leaves_it_to_others(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_assert_cmpint(g_chmod(fixture->qemu.socket, 0), ==, 0);
    check_clears(fixture, VMSNAP_QMP_DENIED);
    g_assert_false(vmsnap_qmp_recover(fixture->record, NULL));
    g_assert_true(fixture->record->job);
}

static void test_a_monitor_that_serves_another_is_tried_again(Fixture *fixture, gconstpointer data) {
    (void)data;
    VmsnapQmp *other = vmsnap_qmp_connect(fixture->qemu.socket, QEMU_TIMEOUT_MS, NULL, NULL);
    g_assert_nonnull(other);
    check_fails(fixture, SHORT_MS, "serve another program");
    vmsnap_qmp_free(other);
    check_clears(fixture, VMSNAP_QMP_CLEARED);
    g_assert_true(is_as_before(fixture));
}

static void test_a_record_that_is_wrong_clears_nothing(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_free(fixture->record->graph);
    fixture->record->graph = g_strdup("{\"places\": [{}]}");
    check_fails(fixture, QEMU_TIMEOUT_MS, UUID);
    g_assert_false(is_as_before(fixture));
}

/* A FIFO without a reader is a filesystem that hangs. */
static void test_nothing_is_taken_out_while_scratch_hangs(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autofree char *probe = qemu_path(&fixture->qemu, "probe");
    g_assert_cmpint(mkfifo(probe, 0600), ==, 0);
    g_autofree char *during = qemu_describe(&fixture->qemu);
    check_fails(fixture, SHORT_MS, "does not answer; it is tried again");
    g_autofree char *after = qemu_describe(&fixture->qemu);
    g_assert_cmpstr(after, ==, during);
    int fd = open(probe, O_RDONLY | O_CLOEXEC);
    char byte;
    while (read(fd, &byte, sizeof byte) > 0)
        ;
    (void)close(fd);
    check_clears(fixture, VMSNAP_QMP_CLEARED);
    g_assert_true(is_as_before(fixture));
}

static void test_a_record_is_recovered(Fixture *fixture, gconstpointer data) {
    g_autoptr(GError) error = NULL;
    (void)data;
    g_assert_true(vmsnap_qmp_recover(fixture->record, &error));
    g_assert_no_error(error);
    g_assert_false(fixture->record->job);
    g_assert_true(is_as_before(fixture));
    g_assert_true(vmsnap_qmp_recover(fixture->record, NULL));
}

/* An agent that cannot be found may have frozen its guest nevertheless, as long as there is one. */
static void test_a_guest_is_frozen_until_it_is_gone(Fixture *fixture, gconstpointer data) {
    g_autoptr(GError) error = NULL;
    (void)data;
    fixture->record->frozen = TRUE;
    g_assert_false(vmsnap_qmp_recover(fixture->record, &error));
    g_assert_nonnull(strstr(error->message, "guest agent"));
    g_assert_false(fixture->record->job);
    g_assert_true(fixture->record->frozen);
    (void)kill(fixture->qemu.pid, SIGKILL);
    while (!vmsnap_qmp_recover(fixture->record, NULL))
        g_usleep(1000);
    g_assert_false(fixture->record->frozen);
}

static void be_an_agent(FakePeer *peer) {
    g_autofree char *sync = fake_peer_read_line(peer);
    if (!sync)
        return;
    g_autoptr(JsonNode) command = json_from_string(sync + 1, NULL);
    JsonObject *arguments = json_object_get_object_member(json_node_get_object(command), "arguments");
    g_autofree char *answer =
        g_strdup_printf("\xff{\"return\": %" G_GINT64_FORMAT "}\n", json_object_get_int_member(arguments, "id"));
    fake_peer_say(peer, answer);
    g_free(fake_peer_read_line(peer));
    fake_peer_say(peer, peer->data);
    fake_peer_wait_end(peer);
}

/* @answer: to the command that thaws */
static void check_thaw(Fixture *fixture, const char *answer, gboolean is_thawed) {
    FakePeer agent;
    g_autoptr(GError) error = NULL;
    fake_peer_start(&agent, be_an_agent, answer);
    g_free(fixture->record->agent);
    fixture->record->agent = g_strdup(agent.socket);
    fixture->record->frozen = TRUE;
    g_assert_cmpint(vmsnap_qmp_recover(fixture->record, &error), ==, is_thawed);
    g_assert_cmpint(error == NULL, ==, is_thawed);
    g_assert_cmpint(fixture->record->frozen, ==, !is_thawed);
    fake_peer_clear(&agent);
}

static void test_a_guest_that_may_be_frozen_is_thawed(Fixture *fixture, gconstpointer data) {
    (void)data;
    check_thaw(fixture, "{\"error\": {\"desc\": \"no\"}}\n", FALSE);
    g_assert_false(fixture->record->job);
    g_assert_true(is_as_before(fixture));
    check_thaw(fixture, "{\"return\": 2}\n", TRUE);
}

static void add(const char *name, void (*test)(Fixture *, gconstpointer)) {
    g_test_add(name, Fixture, NULL, fixture_set_up, test, fixture_tear_down);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    become_ordinary_user();
    add("/qmp-end/a-snapshot-is-cleared-and-may-be-again", test_a_snapshot_is_cleared_and_may_be_again);
    add("/qmp-end/without-qemu-all-is-gone", test_without_qemu_all_is_gone);
    add("/qmp-end/who-may-not-connect-leaves-it-to-others", test_who_may_not_connect_leaves_it_to_others);
    add("/qmp-end/a-monitor-that-serves-another-is-tried-again", test_a_monitor_that_serves_another_is_tried_again);
    add("/qmp-end/a-record-that-is-wrong-clears-nothing", test_a_record_that_is_wrong_clears_nothing);
    add("/qmp-end/nothing-is-taken-out-while-scratch-hangs", test_nothing_is_taken_out_while_scratch_hangs);
    add("/qmp-end/a-record-is-recovered", test_a_record_is_recovered);
    add("/qmp-end/a-guest-is-frozen-until-it-is-gone", test_a_guest_is_frozen_until_it_is_gone);
    add("/qmp-end/a-guest-that-may-be-frozen-is-thawed", test_a_guest_that_may_be_frozen_is_thawed);
    return g_test_run();
}
