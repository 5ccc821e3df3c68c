/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Monitors as QEMU's are not, or are only when something is wrong: a fake one, since a real one cannot be had for that.
 */
#include "backend/qmp_client.h"

#include "fake_peer.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIMEOUT_MS 60000
#define SHORT_MS 50
/* With sanitizers each byte takes its time. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define HUGE_BYTES ((size_t)4 << 20)
#else
#define HUGE_BYTES ((size_t)20 << 20)
#endif
#define LONG_BYTES ((size_t)1 << 20)
#define EVENT "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RESUME\"}\r\n"

static VmsnapQmp *enter(const FakePeer *peer) {
    g_autoptr(GError) error = NULL;
    int code = -1;
    VmsnapQmp *qmp = vmsnap_qmp_connect(peer->socket, TIMEOUT_MS, &code, &error);
    g_assert_no_error(error);
    g_assert_cmpint(code, ==, 0);
    return qmp;
}

static void leave(VmsnapQmp *qmp, FakePeer *peer) {
    vmsnap_qmp_free(qmp);
    fake_peer_clear(peer);
}

/* Returns: (transfer full): as text, or NULL with @error set. */
static char *call(VmsnapQmp *qmp, GError **error) {
    g_autoptr(JsonNode) result = vmsnap_qmp_call(qmp, error, "query-name", NULL);
    return result ? json_to_string(result, FALSE) : NULL;
}

static void check_call(VmsnapQmp *qmp, const char *expected) {
    g_autoptr(GError) error = NULL;
    g_autofree char *seen = call(qmp, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(seen, ==, expected);
}

static void check_call_fails(VmsnapQmp *qmp, VmsnapQmpError code, const char *said) {
    g_autoptr(GError) error = NULL;
    g_assert_null(call(qmp, &error));
    g_assert_error(error, VMSNAP_QMP_ERROR, (int)code);
    g_assert_nonnull(strstr(error->message, said));
}

/* The error names the socket, and what to do. */
static void check_not_let_in(FakePeerFunc serve, const char *data, unsigned timeout_ms, const char *said) {
    FakePeer peer;
    g_autoptr(GError) error = NULL;
    int code = -1;
    fake_peer_start(&peer, serve, data);
    g_assert_null(vmsnap_qmp_connect(peer.socket, timeout_ms, &code, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_cmpint(code, ==, 0);
    g_assert_nonnull(strstr(error->message, peer.socket));
    g_assert_nonnull(strstr(error->message, said));
    g_assert_nonnull(strstr(error->message, "give QEMU one more -qmp"));
    fake_peer_clear(&peer);
}

static void say_what_was_given(FakePeer *peer) {
    fake_peer_say(peer, peer->data);
    fake_peer_wait_end(peer);
}

/* Answers each command with the text that was given, in which a @ is its id. */
static void answer_all(FakePeer *peer) {
    char *line;
    if (!fake_monitor_enter(peer))
        return;
    for (; (line = fake_peer_read_line(peer)); g_free(line)) {
        g_autofree char *id = g_strdup_printf("%" G_GINT64_FORMAT, fake_command_id(line));
        g_auto(GStrv) parts = g_strsplit(peer->data, "@", -1);
        g_autofree char *answer = g_strjoinv(id, parts);
        fake_peer_say(peer, answer);
    }
}

static void check_answer(const char *said, const char *expected) {
    FakePeer peer;
    fake_peer_start(&peer, answer_all, said);
    VmsnapQmp *qmp = enter(&peer);
    check_call(qmp, expected);
    check_call(qmp, expected);
    leave(qmp, &peer);
}

static void check_answer_fails(const char *said, VmsnapQmpError code, const char *expected) {
    FakePeer peer;
    fake_peer_start(&peer, answer_all, said);
    VmsnapQmp *qmp = enter(&peer);
    vmsnap_qmp_set_timeout(qmp, strstr(expected, "in time") ? SHORT_MS : TIMEOUT_MS);
    check_call_fails(qmp, code, expected);
    leave(qmp, &peer);
}

static void greet_byte_by_byte(FakePeer *peer) {
    for (const char *byte = FAKE_GREETING EVENT; *byte; byte++)
        (void)fake_peer_send(peer, byte, 1);
    g_autofree char *line = fake_peer_read_line(peer);
    fake_peer_say(peer, EVENT "{\"return\": {}, \"id\": 1}" EVENT);
    fake_peer_wait_end(peer);
}

static void test_a_greeting_comes_in_pieces(void) {
    FakePeer peer;
    fake_peer_start(&peer, greet_byte_by_byte, NULL);
    VmsnapQmp *qmp = enter(&peer);
    g_assert_cmpstr(vmsnap_qmp_get_version(qmp), ==, "7.2.22");
    leave(qmp, &peer);
}

static void test_versions_are_compared(void) {
    FakePeer peer;
    fake_peer_start(&peer, answer_all, "");
    VmsnapQmp *qmp = enter(&peer);
    g_assert_true(vmsnap_qmp_is_at_least(qmp, 7, 2));
    g_assert_true(vmsnap_qmp_is_at_least(qmp, 7, 1));
    g_assert_true(vmsnap_qmp_is_at_least(qmp, 6, 9));
    g_assert_false(vmsnap_qmp_is_at_least(qmp, 7, 3));
    g_assert_false(vmsnap_qmp_is_at_least(qmp, 8, 0));
    leave(qmp, &peer);
}

static void greet_and_let_in(FakePeer *peer) {
    fake_peer_say(peer, peer->data);
    g_autofree char *line = fake_peer_read_line(peer);
    fake_peer_say(peer, "{\"return\": {}, \"id\": 1}");
    fake_peer_wait_end(peer);
}

static void test_odd_versions_do_no_harm(void) {
    static const struct {
        const char *numbers;
        const char *version;
    } odd[] = {
        {"{}", "0.0.0"},
        {"{\"major\": -1, \"minor\": 99999999999, \"micro\": \"3\"}", "0.2147483647.0"},
        {"{\"major\": 8.5, \"minor\": true, \"micro\": null}", "0.0.0"},
        {"{\"major\": [], \"minor\": {}}", "0.0.0"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(odd); i++) {
        FakePeer peer;
        g_autofree char *greeting = g_strdup_printf("{\"QMP\": {\"version\": {\"qemu\": %s}}}", odd[i].numbers);
        fake_peer_start(&peer, greet_and_let_in, greeting);
        VmsnapQmp *qmp = enter(&peer);
        g_assert_cmpstr(vmsnap_qmp_get_version(qmp), ==, odd[i].version);
        leave(qmp, &peer);
    }
}

static void test_without_a_greeting_nobody_is_let_in(void) {
    check_not_let_in(say_what_was_given, "", SHORT_MS, "it does not answer in time");
    check_not_let_in(say_what_was_given, "{\"QMP\": {", SHORT_MS, "it does not answer in time");
}

static void test_a_wrong_greeting_is_that_of_something_else(void) {
    static const char *const others[] = {"NBDMAGICIHAVEOPT", "QEMU 7.2.22 monitor - type 'help' for more information",
                                         "\x16\x03\x01", "HTTP/1.1 400 Bad Request\r\n", "[]"};
    static const char *const objects[] = {
        "{}", EVENT, "{\"QMP\": 7}", "{\"QMP\": {\"version\": []}}", "{\"QMP\": {\"version\": {\"qemu\": null}}}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(others); i++)
        check_not_let_in(say_what_was_given, others[i], TIMEOUT_MS, "something else than JSON");
    for (size_t i = 0; i < G_N_ELEMENTS(objects); i++)
        check_not_let_in(say_what_was_given, objects[i], TIMEOUT_MS, "no greeting");
}

static void greet_and_refuse(FakePeer *peer) {
    fake_peer_say(peer, FAKE_GREETING);
    g_autofree char *line = fake_peer_read_line(peer);
    fake_peer_say(peer, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not now\"}, \"id\": 1}");
    fake_peer_wait_end(peer);
}

static void test_who_is_greeted_may_still_be_refused(void) {
    check_not_let_in(greet_and_refuse, NULL, TIMEOUT_MS, "not now");
    check_not_let_in(say_what_was_given, FAKE_GREETING, SHORT_MS, "in time");
}

static void test_events_are_passed_over(void) {
    check_answer(EVENT EVENT "{\"return\": 5, \"id\": @}" EVENT, "5");
    check_answer("{\"event\": \"X\", \"data\": {\"error\": \"x\", \"return\": {}}}{\"return\": [], \"id\": @}", "[]");
}

static void test_answers_to_others_are_passed_over(void) {
    check_answer("{\"return\": 1, \"id\": 0}{\"return\": 2, \"id\": \"@\"}{\"return\": 3, \"id\": null}"
                 "{\"return\": 4, \"id\": {}}{\"return\": 5}{\"error\": {}, \"id\": 99}{\"return\": 6, \"id\": @}",
                 "6");
    check_answer("{\"return\": 1, \"id\": true}{\"return\": 2, \"id\": @.5}{\"return\": 3, \"id\": @}", "3");
}

static void test_any_value_may_be_returned(void) {
    static const char *const values[] = {"null", "true", "\"\"", "{}", "[[]]", "-9223372036854775808"};
    for (size_t i = 0; i < G_N_ELEMENTS(values); i++) {
        g_autofree char *answer = g_strdup_printf("{\"id\": @, \"return\": %s}", values[i]);
        check_answer(answer, values[i]);
    }
}

static void test_a_refusal_is_told_in_the_words_of_qemu(void) {
    static const VmsnapQmpError refused = VMSNAP_QMP_ERROR_REFUSED;
    check_answer_fails("{\"error\": {\"class\": \"GenericError\", \"desc\": \"Node is busy\"}, \"id\": @}", refused,
                       "Node is busy");
    check_answer_fails("{\"error\": {\"class\": \"GenericError\", \"desc\": \"Invalid JSON\"}}", refused,
                       "Invalid JSON");
    check_answer_fails("{\"error\": {\"desc\": \"a\\n\\u0007b\"}, \"id\": @}", refused, "a  b");
    check_answer_fails("{\"error\": {\"class\": \"GenericError\"}, \"id\": @}", refused, "gives no reason");
    check_answer_fails("{\"error\": {\"desc\": []}, \"id\": @}", refused, "gives no reason");
    check_answer_fails("{\"error\": null, \"id\": @}", refused, "gives no reason");
    check_answer_fails("{\"id\": @}", refused, "gives no reason");
}

static void test_without_an_answer_the_monitor_is_lost(void) {
    static const VmsnapQmpError lost = VMSNAP_QMP_ERROR_LOST;
    check_answer_fails("", lost, "QEMU's monitor is lost at 'query-name': it does not answer in time");
    check_answer_fails("{\"return\": {}, \"id\": @", lost, "in time");
    check_answer_fails(EVENT, lost, "in time");
    check_answer_fails("garbage", lost, "something else");
    check_answer_fails("{\"return\": {}, \"id\": 7777}", lost, "in time");
}

static void flood_with_events(FakePeer *peer) {
    if (fake_monitor_enter(peer))
        while (fake_peer_send(peer, EVENT, strlen(EVENT)))
            ;
}

static void test_a_flood_of_events_ends_in_time(void) {
    FakePeer peer;
    fake_peer_start(&peer, flood_with_events, NULL);
    VmsnapQmp *qmp = enter(&peer);
    vmsnap_qmp_set_timeout(qmp, SHORT_MS);
    gint64 began_us = g_get_monotonic_time();
    check_call_fails(qmp, VMSNAP_QMP_ERROR_LOST, "in time");
    g_assert_cmpint(g_get_monotonic_time() - began_us, <, (gint64)TIMEOUT_MS * 1000 / 2);
    leave(qmp, &peer);
}

static void answer_late(FakePeer *peer) {
    if (!fake_monitor_enter(peer))
        return;
    g_autofree char *first = fake_peer_read_line(peer), *second = fake_peer_read_line(peer);
    fake_peer_say(peer, "{\"return\": \"late\", \"id\": 2}{\"return\": \"in time\", \"id\": 3}");
    fake_peer_wait_end(peer);
}

static void test_an_answer_that_comes_late_is_not_that_to_the_next(void) {
    FakePeer peer;
    fake_peer_start(&peer, answer_late, NULL);
    VmsnapQmp *qmp = enter(&peer);
    vmsnap_qmp_set_timeout(qmp, SHORT_MS);
    check_call_fails(qmp, VMSNAP_QMP_ERROR_LOST, "in time");
    vmsnap_qmp_set_timeout(qmp, TIMEOUT_MS);
    check_call(qmp, "\"in time\"");
    leave(qmp, &peer);
}

/* Says no more than so many bytes, and closes. */
static void say_some(FakePeer *peer) {
    static const char *const says[] = {FAKE_GREETING, "{\"return\": {}, \"id\": 1}\r\n", "{\"return\": {}, \"id\": 2}"};
    size_t left = (size_t)g_atomic_int_get(&peer->number);
    for (size_t i = 0; i < G_N_ELEMENTS(says); i++) {
        size_t length = MIN(left, strlen(says[i]));
        if (!fake_peer_send(peer, says[i], length) || length < strlen(says[i]))
            return;
        left -= length;
        g_free(fake_peer_read_line(peer));
    }
}

static gboolean talk(const FakePeer *peer, GError **error) {
    g_autoptr(VmsnapQmp) qmp = vmsnap_qmp_connect(peer->socket, TIMEOUT_MS, NULL, error);
    g_autofree char *answer = qmp ? call(qmp, error) : NULL;
    return answer != NULL;
}

static void test_a_connection_may_end_at_each_byte(void) {
    FakePeer peer;
    size_t length = strlen(FAKE_GREETING) + 2 * strlen("{\"return\": {}, \"id\": 1}") + 2;
    fake_peer_start(&peer, say_some, NULL);
    for (size_t cut = 0; cut <= length; cut++) {
        g_autoptr(GError) error = NULL;
        g_atomic_int_set(&peer.number, (int)cut);
        g_assert_cmpint(talk(&peer, &error), ==, cut == length);
        g_assert_cmpint(error != NULL, ==, cut < length);
    }
    fake_peer_clear(&peer);
}

static void test_a_huge_answer_comes_whole(void) {
    g_autofree char *filling = g_strnfill(HUGE_BYTES, 'x');
    g_autofree char *answer = g_strdup_printf("{\"return\": \"%s\", \"id\": @}", filling);
    FakePeer peer;
    fake_peer_start(&peer, answer_all, answer);
    VmsnapQmp *qmp = enter(&peer);
    g_autoptr(JsonNode) result = vmsnap_qmp_call(qmp, NULL, "query-name", NULL);
    g_assert_nonnull(result);
    g_assert_cmpuint(strlen(json_node_get_string(result)), ==, HUGE_BYTES);
    leave(qmp, &peer);
}

/* Reads the command when it is told to. */
static void read_late(FakePeer *peer) {
    if (!fake_monitor_enter(peer))
        return;
    while (!g_atomic_int_get(&peer->number))
        g_usleep(1000);
    g_autofree char *line = fake_peer_read_line(peer);
    if (line && strlen(line) > LONG_BYTES)
        fake_peer_say(peer, "{\"return\": {}, \"id\": 2}");
    fake_peer_wait_end(peer);
}

static gboolean send_long_command(VmsnapQmp *qmp, GError **error) {
    g_autofree char *text = g_strnfill(LONG_BYTES, 'x');
    return vmsnap_qmp_run(qmp, error, "long", "{'text': <%s>}", text);
}

static void test_a_long_command_waits_for_the_monitor_to_read(void) {
    FakePeer peer;
    fake_peer_start(&peer, read_late, NULL);
    VmsnapQmp *qmp = enter(&peer);
    g_autoptr(GError) error = NULL;
    vmsnap_qmp_set_timeout(qmp, SHORT_MS);
    g_assert_false(send_long_command(qmp, &error));
    g_assert_error(error, VMSNAP_QMP_ERROR, VMSNAP_QMP_ERROR_LOST);
    vmsnap_qmp_free(qmp);
    g_atomic_int_set(&peer.number, TRUE);
    qmp = enter(&peer);
    g_assert_true(send_long_command(qmp, NULL));
    leave(qmp, &peer);
}

static void test_a_file_goes_with_a_command(void) {
    FakePeer peer;
    struct stat sent, received;
    g_autofree char *name = NULL;
    int fd = g_file_open_tmp(NULL, &name, NULL);
    fake_peer_start(&peer, answer_all, "{\"return\": {\"fdset-id\": 3}, \"id\": @}");
    VmsnapQmp *qmp = enter(&peer);
    g_autoptr(JsonNode) result = vmsnap_qmp_call_with_fd(qmp, fd, NULL, "add-fd", NULL);
    g_assert_nonnull(result);
    vmsnap_qmp_free(qmp);
    fake_peer_stop(&peer);
    g_assert_cmpint(fstat(fd, &sent), ==, 0);
    g_assert_cmpint(fstat(peer.received_fd, &received), ==, 0);
    g_assert_cmpuint(received.st_ino, ==, sent.st_ino);
    (void)close(fd);
    (void)g_unlink(name);
    fake_peer_clear(&peer);
}

/* Returns the command itself. */
static void answer_with_command(FakePeer *peer) {
    char *line;
    if (!fake_monitor_enter(peer))
        return;
    for (; (line = fake_peer_read_line(peer)); g_free(line)) {
        g_autofree char *answer =
            g_strdup_printf("{\"return\": %s, \"id\": %" G_GINT64_FORMAT "}", line, fake_command_id(line));
        fake_peer_say(peer, answer);
    }
}

static void check_arguments(JsonNode *command, const char *expected) {
    g_assert_nonnull(command);
    g_autoptr(JsonNode) wanted = json_from_string(expected, NULL);
    JsonNode *seen = json_object_get_member(json_node_get_object(command), "arguments");
    g_autofree char *text = json_to_string(seen, FALSE);
    g_test_message("%s", text);
    g_assert_true(json_node_equal(seen, wanted));
    json_node_unref(command);
}

static void test_arguments_become_json(void) {
    FakePeer peer;
    fake_peer_start(&peer, answer_with_command, NULL);
    VmsnapQmp *qmp = enter(&peer);
    check_arguments(vmsnap_qmp_call(qmp, NULL, "x", "{'a': <%s>}", "\"'\\/{}[]\n\t\x01 ü € \U0001f600 %s"),
                    "{\"a\": \"\\\"'\\\\/{}[]\\n\\t\\u0001 ü € \\ud83d\\ude00 %s\"}");
    check_arguments(vmsnap_qmp_call(qmp, NULL, "x", "{'a': <%b>, 'b': <false>}", TRUE), "{\"a\": true, \"b\": false}");
    check_arguments(vmsnap_qmp_call(qmp, NULL, "x", "{'a': <%x>, 'b': <%i>}", G_MININT64, -1),
                    "{\"a\": -9223372036854775808, \"b\": -1}");
    check_arguments(vmsnap_qmp_call(qmp, NULL, "x", "{'a': <%x>}", G_MAXINT64), "{\"a\": 9223372036854775807}");
    check_arguments(vmsnap_qmp_call(qmp, NULL, "x", "{'a': <[{'b': <%s>, 'c': <{'d': %b}>}]>, '': <''>}", "e", TRUE),
                    "{\"a\": [{\"b\": \"e\", \"c\": {\"d\": true}}], \"\": \"\"}");
    leave(qmp, &peer);
}

static void test_without_arguments_none_are_sent(void) {
    FakePeer peer;
    fake_peer_start(&peer, answer_with_command, NULL);
    VmsnapQmp *qmp = enter(&peer);
    check_call(qmp, "{\"execute\":\"query-name\",\"id\":2}");
    check_call(qmp, "{\"execute\":\"query-name\",\"id\":3}");
    leave(qmp, &peer);
}

static void test_without_a_socket_there_is_no_monitor(void) {
    g_autoptr(GError) error = NULL;
    int code = 0;
    g_assert_null(vmsnap_qmp_connect("/nonexistent/qmp.sock", TIMEOUT_MS, &code, &error));
    g_assert_cmpint(code, ==, ENOENT);
    g_assert_cmpstr(error->message, ==,
                    "failed to connect to QMP socket '/nonexistent/qmp.sock': No such file or directory; see that the "
                    "machine runs, and name the socket of its -qmp option");
}

static void test_free_takes_null(void) {
    vmsnap_qmp_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-client/a-greeting-comes-in-pieces", test_a_greeting_comes_in_pieces);
    g_test_add_func("/qmp-client/versions-are-compared", test_versions_are_compared);
    g_test_add_func("/qmp-client/odd-versions-do-no-harm", test_odd_versions_do_no_harm);
    g_test_add_func("/qmp-client/without-a-greeting-nobody-is-let-in", test_without_a_greeting_nobody_is_let_in);
    g_test_add_func("/qmp-client/a-wrong-greeting-is-that-of-something-else",
                    test_a_wrong_greeting_is_that_of_something_else);
    g_test_add_func("/qmp-client/who-is-greeted-may-still-be-refused", test_who_is_greeted_may_still_be_refused);
    g_test_add_func("/qmp-client/events-are-passed-over", test_events_are_passed_over);
    g_test_add_func("/qmp-client/answers-to-others-are-passed-over", test_answers_to_others_are_passed_over);
    g_test_add_func("/qmp-client/any-value-may-be-returned", test_any_value_may_be_returned);
    g_test_add_func("/qmp-client/a-refusal-is-told-in-the-words-of-qemu", test_a_refusal_is_told_in_the_words_of_qemu);
    g_test_add_func("/qmp-client/without-an-answer-the-monitor-is-lost", test_without_an_answer_the_monitor_is_lost);
    g_test_add_func("/qmp-client/a-flood-of-events-ends-in-time", test_a_flood_of_events_ends_in_time);
    g_test_add_func("/qmp-client/an-answer-that-comes-late-is-not-that-to-the-next",
                    test_an_answer_that_comes_late_is_not_that_to_the_next);
    g_test_add_func("/qmp-client/a-connection-may-end-at-each-byte", test_a_connection_may_end_at_each_byte);
    g_test_add_func("/qmp-client/a-huge-answer-comes-whole", test_a_huge_answer_comes_whole);
    g_test_add_func("/qmp-client/a-long-command-waits-for-the-monitor-to-read",
                    test_a_long_command_waits_for_the_monitor_to_read);
    g_test_add_func("/qmp-client/a-file-goes-with-a-command", test_a_file_goes_with_a_command);
    g_test_add_func("/qmp-client/arguments-become-json", test_arguments_become_json);
    g_test_add_func("/qmp-client/without-arguments-none-are-sent", test_without_arguments_none_are_sent);
    g_test_add_func("/qmp-client/without-a-socket-there-is-no-monitor", test_without_a_socket_there_is_no_monitor);
    g_test_add_func("/qmp-client/free-takes-null", test_free_takes_null);
    return g_test_run();
}
