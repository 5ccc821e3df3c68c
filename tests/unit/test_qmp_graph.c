/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The nodes of a snapshot, in a real QEMU: what it makes of the commands is what counts. In the end it must be as it
 * was before, from wherever one has to go back.
 */
#include "backend/qmp_graph.h"

#include "backend/qmp_server.h"

#include "backend/json_socket.h"
#include "fake_peer.h"
#include "json_mutations.h"
#include "nbd_support.h"
#include "qemu_support.h"
#include "vmsnap/error.h"

#include <string.h>
#include <unistd.h>

#define UUID "0123abcd-0000-4000-8000-000000000000"
#define PREFIX "vmsnap-0123abcd"
#define MAX_NODE_NAME 31
#define MAX_MESSAGE_BYTES ((size_t)1 << 20)
#define N_COMMANDS 22
#define MIB (UINT64_C(1) << 20)
#define CLUSTER_BYTES (UINT64_C(64) << 10)

/* A QEMU with a graph that is not in it yet. */
typedef struct {
    Qemu qemu;
    VmsnapQmpGraph *graph;
    char *nbd_socket;
    char *before; /* what QEMU was like */
} Fixture;

static void fixture_set_up(Fixture *fixture, gconstpointer data) {
    (void)data;
    qemu_start(&fixture->qemu);
    fixture->graph = vmsnap_qmp_graph_new(UUID);
    vmsnap_qmp_graph_add(fixture->graph, "vda", qemu_devices[0], "n0", NULL);
    vmsnap_qmp_graph_add(fixture->graph, "sda", qemu_devices[1], "n1", NULL);
    fixture->nbd_socket = qemu_path(&fixture->qemu, "nbd.sock");
    g_assert_true(qemu_io(&fixture->qemu, qemu_devices[0], "write -P 0x11 0 1M"));
    g_assert_true(qemu_io(&fixture->qemu, qemu_devices[1], "write -P 0x22 0 1M"));
    fixture->before = qemu_describe(&fixture->qemu);
}

static void fixture_tear_down(Fixture *fixture, gconstpointer data) {
    (void)data;
    qemu_clear(&fixture->qemu);
    vmsnap_qmp_graph_free(fixture->graph);
    g_free(fixture->nbd_socket);
    g_free(fixture->before);
}

static VmsnapQmp *enter(const char *socket) {
    g_autoptr(GError) error = NULL;
    VmsnapQmp *qmp = vmsnap_qmp_connect(socket, QEMU_TIMEOUT_MS, NULL, &error);
    g_assert_no_error(error);
    return qmp;
}

static void check_is_as_before(const Fixture *fixture) {
    g_autofree char *now = qemu_describe(&fixture->qemu);
    g_assert_cmpstr(now, ==, fixture->before);
}

static gboolean start_server(const Fixture *fixture, VmsnapQmp *qmp, GError **error) {
    int fd = qemu_listen_at(fixture->nbd_socket);
    gboolean started = vmsnap_qmp_server_start(qmp, fd, error);
    (void)close(fd);
    return started;
}

static gboolean insert(const Fixture *fixture, guint place, VmsnapQmp *qmp, GError **error) {
    g_autofree char *name = g_strdup_printf("scratch%u.qcow2", place);
    g_autofree char *path = qemu_path(&fixture->qemu, name);
    (void)unlink(path);
    int fd = qemu_make_image(&fixture->qemu, name);
    gboolean inserted = vmsnap_qmp_graph_insert(fixture->graph, place, qmp, fd, error);
    (void)close(fd);
    return inserted;
}

static gboolean insert_all(const Fixture *fixture, VmsnapQmp *qmp, GError **error) {
    for (guint i = 0; i < fixture->graph->places->len; i++)
        if (!insert(fixture, i, qmp, error))
            return FALSE;
    return TRUE;
}

static gboolean export_all(const Fixture *fixture, VmsnapQmp *qmp, GError **error) {
    for (guint i = 0; i < fixture->graph->places->len; i++)
        if (!vmsnap_qmp_graph_export(fixture->graph, i, qmp, i % 2, error))
            return FALSE;
    return TRUE;
}

static gboolean begin(const Fixture *fixture, VmsnapQmp *qmp, GError **error) {
    return start_server(fixture, qmp, error) && insert_all(fixture, qmp, error) &&
           vmsnap_qmp_graph_switch(fixture->graph, qmp, error) && export_all(fixture, qmp, error);
}

static gboolean end(const Fixture *fixture, VmsnapQmp *qmp, GError **error) {
    return vmsnap_qmp_graph_remove(fixture->graph, qmp, error) &&
           vmsnap_qmp_server_stop(qmp, fixture->nbd_socket, error);
}

static VmsnapQmp *enter_and_begin(const Fixture *fixture) {
    g_autoptr(GError) error = NULL;
    VmsnapQmp *qmp = enter(fixture->qemu.socket);
    (void)begin(fixture, qmp, &error);
    g_assert_no_error(error);
    return qmp;
}

static void check_ends(const Fixture *fixture, VmsnapQmp *qmp) {
    g_autoptr(GError) error = NULL;
    (void)end(fixture, qmp, &error);
    g_assert_no_error(error);
}

/* By way of NBD and cluster by cluster, as a mount does it: HACKING.md says what QEMU does else. */
static void check_export(const Fixture *fixture, const char *name, uint8_t expected) {
    g_autofree char *uri = g_strdup_printf("nbd+unix:///%s?socket=%s", name, fixture->nbd_socket);
    Client client;
    client_open_within(&client, uri, 1, QEMU_TIMEOUT_MS);
    g_assert_true(vmsnap_io_threads_start(client.threads, NULL));
    for (uint64_t offset = 0; offset < MIB; offset += CLUSTER_BYTES) {
        Call call;
        call_read(&call, &client, offset, CLUSTER_BYTES);
        latch_wait(&call.called, 1);
        g_assert_cmpint(call.error, ==, 0);
        for (size_t i = 0; i < call.length; i++)
            if (call.buffer[i] != expected)
                g_error("byte %zu from %" G_GUINT64_FORMAT " of %s is not of the instant", i, offset, name);
        call_clear(&call);
    }
    client_clear(&client);
}

static void test_the_instant_stays_while_the_guest_writes(Fixture *fixture, gconstpointer data) {
    const Qemu *qemu = &fixture->qemu;
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter_and_begin(fixture);
    g_assert_true(qemu_io(qemu, qemu_devices[0], "write -P 0x33 64k 128k"));
    g_assert_true(qemu_io(qemu, qemu_devices[1], "write -P 0x44 1M 64k"));
    g_assert_true(qemu_io(qemu, qemu_devices[0], "write -P 0x55 512k 1k"));
    g_assert_true(qemu_io(qemu, qemu_devices[1], "write -P 0x66 0 64k"));
    g_assert_true(qemu_io(qemu, PREFIX "-1-access", "read -P 0 1M 64k"));
    check_export(fixture, "vda", 0x11);
    check_export(fixture, "sda", 0x22);
    g_assert_true(qemu_io(qemu, qemu_devices[0], "read -P 0x33 64k 128k"));
    check_ends(fixture, qmp);
    g_assert_true(qemu_io(qemu, "n0", "read -P 0x33 64k 128k"));
    g_assert_true(qemu_io(qemu, "n1", "read -P 0x44 1M 64k"));
}

static void test_qemu_is_as_it_was_before(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter(fixture->qemu.socket);
    for (int i = 0; i < 3; i++) {
        g_autoptr(GError) error = NULL;
        (void)begin(fixture, qmp, &error);
        g_assert_no_error(error);
        check_ends(fixture, qmp);
        check_is_as_before(fixture);
    }
}

/* While a guest does not run, QEMU (7.2) keeps what was passed to it. */
static void test_no_descriptor_stays_in_a_running_machine(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_assert_true(vmsnap_qmp_run(fixture->qemu.qmp, NULL, "cont", NULL));
    g_autoptr(VmsnapQmp) qmp = enter_and_begin(fixture);
    g_autofree char *descriptors = qemu_ask(&fixture->qemu, "query-fdsets");
    g_assert_null(strstr(descriptors, "\"fd\""));
    check_ends(fixture, qmp);
}

static void test_exports_are_called_after_disks(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter_and_begin(fixture);
    g_autofree char *exports = qemu_ask(&fixture->qemu, "query-block-exports");
    g_assert_nonnull(strstr(exports, "\"" PREFIX "-0-scratch\""));
    g_assert_nonnull(strstr(exports, "\"" PREFIX "-1-access\""));
    check_ends(fixture, qmp);
}

static JsonNode *receive_from(VmsnapJsonSocket *qemu, gint64 deadline_us) {
    g_autoptr(GError) error = NULL;
    JsonNode *message = vmsnap_json_socket_receive(qemu, deadline_us, &error);
    g_assert_no_error(error);
    return message;
}

/* @line: a command, with the file that came along */
static void pass_on(FakePeer *peer, const char *line, VmsnapJsonSocket *qemu, gint64 deadline_us) {
    g_assert_true(vmsnap_json_socket_send(qemu, line, peer->received_fd, deadline_us, NULL));
    if (peer->received_fd >= 0)
        (void)close(peer->received_fd);
    peer->received_fd = -1;
}

/* The monitor, up to a number of commands: then the connection is cut. */
static void pass_on_some(FakePeer *peer) {
    int code, left = g_atomic_int_get(&peer->number);
    gint64 deadline_us = g_get_monotonic_time() + (gint64)QEMU_TIMEOUT_MS * 1000;
    g_autoptr(VmsnapJsonSocket) qemu = vmsnap_json_socket_connect(peer->data, MAX_MESSAGE_BYTES, deadline_us, &code);
    for (;;) {
        g_autoptr(JsonNode) message = receive_from(qemu, deadline_us);
        if (json_object_has_member(json_node_get_object(message), "event"))
            continue;
        g_autofree char *said = json_to_string(message, FALSE);
        fake_peer_say(peer, said);
        g_autofree char *line = left-- > 0 ? fake_peer_read_line(peer) : NULL;
        if (!line)
            return;
        pass_on(peer, line, qemu, deadline_us);
    }
}

typedef gboolean (*ProxyFunc)(const Fixture *fixture, VmsnapQmp *qmp, GError **error);

/* Returns: whether it was done before the connection was cut. */
static gboolean do_some(const Fixture *fixture, ProxyFunc func, int n_commands) {
    FakePeer peer;
    fake_peer_start(&peer, pass_on_some, fixture->qemu.socket);
    g_atomic_int_set(&peer.number, n_commands);
    VmsnapQmp *qmp = vmsnap_qmp_connect(peer.socket, QEMU_TIMEOUT_MS, NULL, NULL);
    gboolean done = qmp && func(fixture, qmp, NULL);
    vmsnap_qmp_free(qmp);
    fake_peer_clear(&peer);
    return done;
}

static void check_all_is_cleared(const Fixture *fixture) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapQmp) qmp = enter(fixture->qemu.socket);
    (void)end(fixture, qmp, &error);
    g_assert_no_error(error);
    check_is_as_before(fixture);
}

static void test_there_is_a_way_back_from_each_command(Fixture *fixture, gconstpointer data) {
    int n_commands = 0;
    (void)data;
    while (!do_some(fixture, begin, n_commands)) {
        check_all_is_cleared(fixture);
        n_commands++;
    }
    check_all_is_cleared(fixture);
    g_assert_cmpint(n_commands, ==, N_COMMANDS);
}

static gboolean end_anyhow(const Fixture *fixture, VmsnapQmp *qmp, GError **error) {
    return end(fixture, qmp, error);
}

static void test_the_way_back_can_be_gone_on_with(Fixture *fixture, gconstpointer data) {
    gboolean done = FALSE;
    (void)data;
    /* One disk, for the time it takes. */
    g_ptr_array_set_size(fixture->graph->places, 1);
    /* QEMU keeps one descriptor more from try to try while the machine is paused, which is one command more. */
    for (int n_commands = 0; !done; n_commands += 2) {
        vmsnap_qmp_free(enter_and_begin(fixture));
        done = do_some(fixture, end_anyhow, n_commands);
        check_all_is_cleared(fixture);
    }
}

static void test_nothing_is_removed_twice(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter(fixture->qemu.socket);
    check_ends(fixture, qmp);
    check_is_as_before(fixture);
}

static gboolean set_drive(const Fixture *fixture, const char *node) {
    g_autoptr(GError) error = NULL;
    gboolean set = vmsnap_qmp_run(fixture->qemu.qmp, &error, "qom-set",
                                  "{'path': <%s>, 'property': <'drive'>, 'value': <%s>}", qemu_devices[0], node);
    g_test_message("%s", error ? error->message : "set");
    return set;
}

/* Which QEMU allows before the instant alone. */
static void test_somebody_else_may_put_the_old_node_back(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter(fixture->qemu.socket);
    g_assert_true(insert_all(fixture, qmp, NULL));
    g_assert_true(set_drive(fixture, "n0"));
    check_ends(fixture, qmp);
    check_is_as_before(fixture);
}

static void add_image(const Fixture *fixture, const char *node) {
    g_autofree char *path = qemu_path(&fixture->qemu, node);
    g_autoptr(GError) error = NULL;
    (void)close(qemu_make_image(&fixture->qemu, node));
    (void)vmsnap_qmp_run(fixture->qemu.qmp, &error, "blockdev-add",
                         "{'driver': <'qcow2'>, 'node-name': <%s>, 'file': <{'driver': 'file', 'filename': %s}>}", node,
                         path);
    g_assert_no_error(error);
}

static void test_somebody_else_may_give_the_device_another_node(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter_and_begin(fixture);
    add_image(fixture, "other");
    g_assert_true(set_drive(fixture, "other"));
    g_assert_true(qemu_io(&fixture->qemu, qemu_devices[0], "write -P 0x55 0 64k"));
    check_ends(fixture, qmp);
    g_assert_true(qemu_io(&fixture->qemu, qemu_devices[0], "read -P 0x55 0 64k"));
    g_assert_true(qemu_io(&fixture->qemu, "n0", "read -P 0x11 0 1M"));
}

static void put_overlay(const Fixture *fixture) {
    g_autoptr(GError) error = NULL;
    add_image(fixture, "overlay");
    (void)vmsnap_qmp_run(fixture->qemu.qmp, &error, "blockdev-snapshot",
                         "{'node': <'" PREFIX "-0-pass'>, 'overlay': <'overlay'>}");
    g_assert_no_error(error);
}

static void test_what_stands_on_it_keeps_its_data(Fixture *fixture, gconstpointer data) {
    const Qemu *qemu = &fixture->qemu;
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter_and_begin(fixture);
    g_autoptr(GError) error = NULL;
    put_overlay(fixture);
    g_assert_true(qemu_io(qemu, qemu_devices[0], "write -P 0x55 0 64k"));
    g_assert_false(end(fixture, qmp, &error));
    g_assert_error(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_REFUSED);
    g_assert_nonnull(strstr(error->message, PREFIX "-0-pass"));
    g_assert_true(qemu_io(qemu, qemu_devices[0], "read -P 0x55 0 64k"));
    g_assert_true(qemu_io(qemu, qemu_devices[0], "read -P 0x11 64k 960k"));
    g_autofree char *nodes = qemu_ask(qemu, "query-named-block-nodes");
    g_assert_nonnull(strstr(nodes, PREFIX "-0-pass"));
    g_assert_null(strstr(nodes, PREFIX "-0-cbw"));
    g_assert_null(strstr(nodes, PREFIX "-1"));
}

/* Returns: whether QEMU has an NBD server. */
static gboolean has_server(const Fixture *fixture) {
    g_autofree char *path = qemu_path(&fixture->qemu, "try.sock");
    gboolean started = vmsnap_qmp_run(fixture->qemu.qmp, NULL, "nbd-server-start",
                                      "{'addr': <{'type': <'unix'>, 'data': <{'path': %s}>}>}", path);
    if (started)
        g_assert_true(vmsnap_qmp_run(fixture->qemu.qmp, NULL, "nbd-server-stop", NULL));
    return !started;
}

static void test_our_server_starts_and_stops(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter(fixture->qemu.socket);
    for (int i = 0; i < 2; i++) {
        g_assert_true(start_server(fixture, qmp, NULL));
        g_assert_true(has_server(fixture));
        g_assert_true(vmsnap_qmp_server_stop(qmp, fixture->nbd_socket, NULL));
        g_assert_false(has_server(fixture));
        g_assert_true(vmsnap_qmp_server_stop(qmp, fixture->nbd_socket, NULL));
    }
}

static void test_the_server_of_somebody_else_is_left_alone(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autofree char *path = qemu_path(&fixture->qemu, "other.sock");
    g_autoptr(VmsnapQmp) qmp = enter(fixture->qemu.socket);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_qmp_run(fixture->qemu.qmp, NULL, "nbd-server-start",
                                 "{'addr': <{'type': <'unix'>, 'data': <{'path': %s}>}>}", path));
    g_assert_false(start_server(fixture, qmp, &error));
    g_assert_nonnull(strstr(error->message, "NBD server already running"));
    g_assert_true(vmsnap_qmp_server_stop(qmp, fixture->nbd_socket, NULL));
    g_assert_true(has_server(fixture));
}

static void test_an_export_of_somebody_else_keeps_our_server(Fixture *fixture, gconstpointer data) {
    (void)data;
    g_autoptr(VmsnapQmp) qmp = enter_and_begin(fixture);
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_qmp_run(fixture->qemu.qmp, NULL, "block-export-add",
                                 "{'type': <'nbd'>, 'id': <'other'>, 'node-name': <'n1'>}"));
    g_assert_false(end(fixture, qmp, &error));
    g_assert_nonnull(strstr(error->message, "somebody else exports"));
    g_assert_true(has_server(fixture));
    g_assert_true(vmsnap_qmp_run(fixture->qemu.qmp, NULL, "block-export-del", "{'id': <'other'>}"));
    check_ends(fixture, qmp);
    check_is_as_before(fixture);
    g_assert_false(has_server(fixture));
}

static const VmsnapQmpPlace *place_at(const VmsnapQmpGraph *graph, guint index) {
    return g_ptr_array_index(graph->places, index);
}

static void check_same(const VmsnapQmpGraph *one, const VmsnapQmpGraph *other) {
    g_assert_cmpstr(one->prefix, ==, other->prefix);
    g_assert_cmpuint(one->places->len, ==, other->places->len);
    for (guint i = 0; i < one->places->len; i++) {
        g_assert_cmpstr(place_at(one, i)->name, ==, place_at(other, i)->name);
        g_assert_cmpstr(place_at(one, i)->device, ==, place_at(other, i)->device);
        g_assert_cmpstr(place_at(one, i)->node, ==, place_at(other, i)->node);
        g_assert_cmpstr(place_at(one, i)->image, ==, place_at(other, i)->image);
    }
}

static void check_comes_back(const VmsnapQmpGraph *graph) {
    g_autoptr(GError) error = NULL;
    g_autofree char *text = vmsnap_qmp_graph_to_text(graph);
    g_autoptr(VmsnapQmpGraph) read = vmsnap_qmp_graph_from_text(UUID, text, &error);
    g_assert_no_error(error);
    check_same(read, graph);
}

static void test_a_graph_becomes_text_and_comes_back(void) {
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_new(UUID);
    g_assert_cmpstr(graph->prefix, ==, PREFIX);
    check_comes_back(graph);
    vmsnap_qmp_graph_add(graph, "vda", qemu_devices[0], "#block123", "/d/a.raw");
    vmsnap_qmp_graph_add(graph, "a \"b\"\\'%s\n\tü€\U0001f600}]", "/machine/peripheral-anon/device[3]", "{'", NULL);
    vmsnap_qmp_graph_add(graph, "disk2", "x", "y", "/\"\\ü");
    check_comes_back(graph);
    g_assert_cmpstr(place_at(graph, 0)->image, ==, "/d/a.raw");
}

static void test_images_are_kept_if_they_can_be_opened(void) {
    static const char *const images[] = {NULL,        "",     "disk.raw", "json:{\"driver\": \"nbd\"}",
                                         "nbd://h/x", "/a{b", "/a[b"};
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_new(UUID);
    for (size_t i = 0; i < G_N_ELEMENTS(images); i++) {
        vmsnap_qmp_graph_add(graph, "a", "b", "c", images[i]);
        g_assert_null(place_at(graph, (guint)i)->image);
    }
    vmsnap_qmp_graph_sync_images(graph, QEMU_TIMEOUT_MS);
}

static void test_wrong_text_is_an_error(void) {
    static const char *const texts[] = {
        "",
        "x",
        "[]",
        "{}",
        "{\"places\": {}}",
        "{\"places\": [{}]}",
        "{\"places\": [[]]}",
        "{\"places\": [null]}",
        "{\"places\": [{\"name\": \"\", \"device\": \"a\", \"node\": \"b\"}]}",
        "{\"places\": [{\"name\": 1, \"device\": \"a\", \"node\": \"b\"}]}",
        "[[[[[[[[[[[[[[[[[[[[[[[[",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(vmsnap_qmp_graph_from_text(UUID, texts[i], &error));
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
        g_assert_nonnull(strstr(error->message, UUID));
    }
}

/* What is read can be written, and is the same. */
static void check_text(JsonNode *json, gconstpointer data) {
    (void)data;
    g_autofree char *text = json_to_string(json, FALSE);
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_from_text(UUID, text, &error);
    g_assert_cmpint(graph == NULL, ==, error != NULL);
    if (graph)
        check_comes_back(graph);
}

static void test_wrong_places_do_no_harm(void) {
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_new(UUID);
    vmsnap_qmp_graph_add(graph, "vda", "/machine/peripheral/vda", "n0", "/d/a.raw");
    vmsnap_qmp_graph_add(graph, "vdb", "/machine/peripheral/vdb", "n1", NULL);
    g_autofree char *text = vmsnap_qmp_graph_to_text(graph);
    g_assert_cmpuint(json_mutate(text, check_text, NULL), >, 100);
}

/* Says how long the longest name of a node is. */
static void note_names(FakePeer *peer) {
    char *line;
    if (!fake_monitor_enter(peer))
        return;
    for (; (line = fake_peer_read_line(peer)); g_free(line)) {
        g_autofree char *answer =
            g_strdup_printf("{\"return\": {}, \"id\": %" G_GINT64_FORMAT "}", fake_command_id(line));
        for (const char *name = line; (name = strstr(name, "\"node-name\":\"")); name++) {
            int length = (int)strcspn(name + strlen("\"node-name\":\""), "\"");
            g_atomic_int_set(&peer->number, MAX(g_atomic_int_get(&peer->number), length));
        }
        fake_peer_say(peer, answer);
    }
}

/* A fake monitor, since a thousand disks take their time. */
static void test_names_are_short_enough_for_many_disks(void) {
    FakePeer peer;
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_new(UUID);
    for (int i = 0; i < 1000; i++)
        vmsnap_qmp_graph_add(graph, "a", "b", "c", NULL);
    fake_peer_start(&peer, note_names, NULL);
    VmsnapQmp *qmp = enter(peer.socket);
    g_assert_true(vmsnap_qmp_graph_insert(graph, 999, qmp, STDERR_FILENO, NULL));
    g_assert_true(vmsnap_qmp_graph_switch(graph, qmp, NULL));
    g_assert_true(vmsnap_qmp_graph_export(graph, 999, qmp, FALSE, NULL));
    vmsnap_qmp_free(qmp);
    fake_peer_stop(&peer);
    g_assert_cmpint(peer.number, >, (int)strlen(PREFIX));
    g_assert_cmpint(peer.number, <=, MAX_NODE_NAME);
    fake_peer_clear(&peer);
}

static void test_two_snapshots_have_different_names(void) {
    g_autoptr(VmsnapQmpGraph) one = vmsnap_qmp_graph_new(UUID);
    g_autoptr(VmsnapQmpGraph) other = vmsnap_qmp_graph_new("1123abcd-0000-4000-8000-000000000000");
    g_assert_cmpstr(one->prefix, !=, other->prefix);
}

static void test_free_takes_null(void) {
    vmsnap_qmp_graph_free(NULL);
}

static void add(const char *name, void (*test)(Fixture *, gconstpointer)) {
    g_test_add(name, Fixture, NULL, fixture_set_up, test, fixture_tear_down);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    add("/qmp-graph/the-instant-stays-while-the-guest-writes", test_the_instant_stays_while_the_guest_writes);
    add("/qmp-graph/qemu-is-as-it-was-before", test_qemu_is_as_it_was_before);
    add("/qmp-graph/no-descriptor-stays-in-a-running-machine", test_no_descriptor_stays_in_a_running_machine);
    add("/qmp-graph/exports-are-called-after-disks", test_exports_are_called_after_disks);
    add("/qmp-graph/there-is-a-way-back-from-each-command", test_there_is_a_way_back_from_each_command);
    add("/qmp-graph/the-way-back-can-be-gone-on-with", test_the_way_back_can_be_gone_on_with);
    add("/qmp-graph/nothing-is-removed-twice", test_nothing_is_removed_twice);
    add("/qmp-graph/somebody-else-may-put-the-old-node-back", test_somebody_else_may_put_the_old_node_back);
    add("/qmp-graph/somebody-else-may-give-the-device-another-node",
        test_somebody_else_may_give_the_device_another_node);
    add("/qmp-graph/what-stands-on-it-keeps-its-data", test_what_stands_on_it_keeps_its_data);
    add("/qmp-graph/our-server-starts-and-stops", test_our_server_starts_and_stops);
    add("/qmp-graph/the-server-of-somebody-else-is-left-alone", test_the_server_of_somebody_else_is_left_alone);
    add("/qmp-graph/an-export-of-somebody-else-keeps-our-server", test_an_export_of_somebody_else_keeps_our_server);
    g_test_add_func("/qmp-graph/a-graph-becomes-text-and-comes-back", test_a_graph_becomes_text_and_comes_back);
    g_test_add_func("/qmp-graph/images-are-kept-if-they-can-be-opened", test_images_are_kept_if_they_can_be_opened);
    g_test_add_func("/qmp-graph/wrong-text-is-an-error", test_wrong_text_is_an_error);
    g_test_add_func("/qmp-graph/wrong-places-do-no-harm", test_wrong_places_do_no_harm);
    g_test_add_func("/qmp-graph/names-are-short-enough-for-many-disks", test_names_are_short_enough_for_many_disks);
    g_test_add_func("/qmp-graph/two-snapshots-have-different-names", test_two_snapshots_have_different_names);
    g_test_add_func("/qmp-graph/free-takes-null", test_free_takes_null);
    return g_test_run();
}
