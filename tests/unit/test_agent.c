/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest agents as they should not be: it is the guest that runs them. */
#include "backend/agent.h"

#include "fake_peer.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <string.h>

#define TIMEOUT_MS 60000
#define SHORT_MS 50
#define LATE_MS 200
#define FROZEN "{\"return\": 3}\n"

/* What the fake does; each is a string of its conversation. */
typedef struct {
    const char *before; /* comes before anything is asked */
    const char *sync;   /* comes before the answer to a sync, without its byte 0xFF; NULL: there is none */
    const char *answer; /* to the command; NULL: none */
    const char *late;   /* comes before the answer to the next sync */
    gboolean closes;    /* after the answer */
} Habit;

static const Habit good = {.before = "", .sync = "", .answer = FROZEN};

/* Returns: (transfer full): the id, as text. */
static char *read_sync(const char *line) {
    g_assert_true((guint8)line[0] == 0xff);
    g_autoptr(JsonNode) command = json_from_string(line + 1, NULL);
    JsonObject *object = json_node_get_object(command);
    g_assert_cmpstr(json_object_get_string_member(object, "execute"), ==, "guest-sync-delimited");
    JsonObject *arguments = json_object_get_object_member(object, "arguments");
    return g_strdup_printf("%" G_GINT64_FORMAT, json_object_get_int_member(arguments, "id"));
}

static gboolean answer_sync(FakePeer *peer, const char *before) {
    g_autofree char *line = fake_peer_read_line(peer);
    if (!line)
        return FALSE;
    g_autofree char *id = read_sync(line);
    g_autofree char *answer = g_strdup_printf("%s\xff{\"return\": %s}\n", before, id);
    fake_peer_say(peer, answer);
    return TRUE;
}

static void serve(FakePeer *peer) {
    const Habit *habit = peer->data;
    fake_peer_say(peer, habit->before);
    if (habit->sync && answer_sync(peer, habit->sync)) {
        g_autofree char *command = fake_peer_read_line(peer);
        if (command && habit->answer)
            fake_peer_say(peer, habit->answer);
        if (habit->closes)
            return;
    }
    fake_peer_wait_end(peer);
}

/* A busy machine may need more than one try within a short time. */
static VmsnapAgent *agent_reach(const FakePeer *peer, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)TIMEOUT_MS * 1000;
    VmsnapAgent *agent;
    while (!(agent = vmsnap_agent_connect(peer->socket, timeout_ms, NULL, NULL)))
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
    return agent;
}

static VmsnapAgent *agent_of(FakePeer *peer, const Habit *habit, unsigned timeout_ms) {
    fake_peer_start(peer, serve, habit);
    return agent_reach(peer, timeout_ms);
}

static void agent_end(VmsnapAgent *agent, FakePeer *peer) {
    vmsnap_agent_free(agent);
    fake_peer_clear(peer);
}

static void check_freezes(const Habit *habit) {
    FakePeer peer;
    gboolean unknown = FALSE;
    VmsnapAgent *agent = agent_of(&peer, habit, TIMEOUT_MS);
    g_assert_true(vmsnap_agent_freeze(agent, &unknown, NULL));
    g_assert_false(unknown);
    agent_end(agent, &peer);
}

static void check_freeze_fails(const Habit *habit, gboolean is_unknown, unsigned timeout_ms, const char *said) {
    FakePeer peer;
    gboolean unknown = FALSE;
    g_autoptr(GError) error = NULL;
    VmsnapAgent *agent = agent_of(&peer, habit, timeout_ms);
    g_assert_false(vmsnap_agent_freeze(agent, &unknown, &error));
    g_assert_cmpint(unknown, ==, is_unknown);
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_true(g_str_has_prefix(error->message, "failed to freeze the guest's filesystems: "));
    g_assert_true(g_utf8_validate(error->message, -1, NULL));
    g_assert_nonnull(strstr(error->message, said));
    agent_end(agent, &peer);
}

static void check_connect_fails(FakePeerFunc how, const void *data, unsigned timeout_ms, const char *said) {
    FakePeer peer;
    g_autoptr(GError) error = NULL;
    fake_peer_start(&peer, how, data);
    g_assert_null(vmsnap_agent_connect(peer.socket, timeout_ms, NULL, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, peer.socket));
    g_assert_nonnull(strstr(error->message, said));
    fake_peer_clear(&peer);
}

static void test_an_agent_freezes_and_thaws(void) {
    FakePeer peer;
    check_freezes(&good);
    VmsnapAgent *agent = agent_of(&peer, &good, TIMEOUT_MS);
    g_assert_true(vmsnap_agent_thaw(agent, NULL));
    agent_end(agent, &peer);
}

static void test_what_others_have_left_is_passed_over(void) {
    static const char *const rests[] = {
        "{\"return\": {}}\n{\"return\": 5}\n",
        "{\"return\": {\"a\": [",
        "{\"return\": \"a\\",
        "rest of an answer\"}]}\n",
        "]]}}}",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
        "\xff{\"return\": 1}\n\xff{\"return\": 2",
        "\xff\xff\xff",
        "{{{{{{{{{{\"",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rests); i++) {
        Habit before = good, after = good;
        before.before = rests[i];
        after.sync = rests[i];
        check_freezes(&before);
        check_freezes(&after);
    }
}

static void test_an_agent_that_never_answers_is_given_up(void) {
    static const Habit silent = {.before = ""};
    check_connect_fails(serve, &silent, SHORT_MS, "in time");
}

static void test_answers_to_others_are_not_ours(void) {
    static const Habit other = {.before = "\xff{\"return\": 0}\n\xff{\"return\": -1}\n\xff{\"return\": \"1\"}\n"
                                          "\xff{\"return\": {}}\n\xff{}\n\xff{\"return\": null}\n"};
    check_connect_fails(serve, &other, SHORT_MS, "in time");
}

static void test_an_answer_without_its_byte_ff_is_none(void) {
    static const Habit wrong = {.before = "{\"error\": {}}\n"};
    check_connect_fails(serve, &wrong, SHORT_MS, "in time");
}

static void flood(FakePeer *peer) {
    while (fake_peer_send(peer, peer->data, strlen(peer->data)))
        ;
}

static void test_floods_end_in_time(void) {
    static const char *const floods[] = {"x", "\xff",        "{\"return\": 1}\n", "\xff{\"return\": 0}\n",
                                         "{", "\xff{\"a\": "};
    for (size_t i = 0; i < G_N_ELEMENTS(floods); i++)
        check_connect_fails(flood, floods[i], SHORT_MS, "in time");
}

static void test_garbage_for_an_answer_is_an_error(void) {
    check_connect_fails(flood, "\xffgarbage", TIMEOUT_MS, "something else");
    check_connect_fails(flood, "\xff{]", TIMEOUT_MS, "wrong");
}

static void close_at_once(FakePeer *peer) {
    (void)peer;
}

static void test_an_agent_that_closes_is_an_error(void) {
    static const Habit closes = {.before = "", .sync = "", .closes = TRUE};
    check_connect_fails(close_at_once, NULL, TIMEOUT_MS, "");
    check_freeze_fails(&closes, TRUE, TIMEOUT_MS, "closed");
}

static void test_without_an_answer_the_guest_may_be_frozen(void) {
    static const Habit silent = {.before = "", .sync = ""};
    check_freeze_fails(&silent, TRUE, SHORT_MS, "in time");
}

static void test_half_an_answer_is_none(void) {
    static const Habit half = {.before = "", .sync = "", .answer = "{\"return\": 3"};
    check_freeze_fails(&half, TRUE, SHORT_MS, "in time");
}

static void test_a_refusal_is_told_in_the_words_of_the_agent(void) {
    static const struct {
        const char *answer;
        const char *said;
    } refusals[] = {
        {"{\"error\": {\"class\": \"GenericError\", \"desc\": \"it is frozen\"}}\n", "it is frozen"},
        {"{\"error\": {\"desc\": \"a\\u001b[31m\\r\\nb\\u0085ü\\ud800c\"}}\n", "a [31m  b ü"},
        {"{\"error\": {\"class\": \"GenericError\"}}\n", "gives no reason"},
        {"{\"error\": {\"desc\": 5}}\n", "gives no reason"},
        {"{\"error\": null}\n", "gives no reason"},
        {"{\"error\": []}\n", "gives no reason"},
        {"{}\n", "gives no reason"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(refusals); i++) {
        Habit habit = good;
        habit.answer = refusals[i].answer;
        check_freeze_fails(&habit, FALSE, TIMEOUT_MS, refusals[i].said);
    }
}

static void test_a_refusal_is_not_told_at_any_length(void) {
    FakePeer peer;
    gboolean unknown;
    g_autoptr(GError) error = NULL;
    g_autofree char *words = g_strnfill(100000, 'x');
    g_autofree char *refusal = g_strdup_printf("{\"error\": {\"desc\": \"%s\"}}\n", words);
    Habit habit = good;
    habit.answer = refusal;
    VmsnapAgent *agent = agent_of(&peer, &habit, TIMEOUT_MS);
    g_assert_false(vmsnap_agent_freeze(agent, &unknown, &error));
    g_assert_cmpuint(strlen(error->message), <, 1000);
    agent_end(agent, &peer);
}

/* Which comes before the next sync is answered. Says in the end what it thinks of the thaw. */
static void answer_freeze_late(FakePeer *peer) {
    static const char refusal[] = "{\"error\": {\"desc\": \"cannot thaw\"}}\n";
    if (!answer_sync(peer, ""))
        return;
    g_free(fake_peer_read_line(peer));
    if (answer_sync(peer, peer->data)) {
        g_free(fake_peer_read_line(peer));
        fake_peer_say(peer, refusal);
    }
    fake_peer_wait_end(peer);
}

static void test_a_late_answer_to_freeze_is_not_that_to_thaw(void) {
    static const char *const answers[] = {FROZEN, "{\"error\": {\"desc\": \"cannot freeze\"}}\n", "", "{\"return\": "};
    for (size_t i = 0; i < G_N_ELEMENTS(answers); i++) {
        FakePeer peer;
        gboolean unknown = FALSE;
        g_autoptr(GError) error = NULL;
        fake_peer_start(&peer, answer_freeze_late, answers[i]);
        VmsnapAgent *agent = agent_reach(&peer, LATE_MS);
        g_assert_false(vmsnap_agent_freeze(agent, &unknown, NULL));
        g_assert_true(unknown);
        g_assert_false(vmsnap_agent_thaw(agent, &error));
        g_assert_cmpstr(error->message, ==, "failed to thaw the guest's filesystems: cannot thaw");
        agent_end(agent, &peer);
    }
}

/* Reads all, answers nothing, and counts the commands to thaw. */
static void only_count(FakePeer *peer) {
    if (!answer_sync(peer, ""))
        return;
    for (char *line; (line = fake_peer_read_line(peer)); g_free(line))
        if (strstr(line, "guest-fsfreeze-thaw"))
            (void)g_atomic_int_add(&peer->number, 1);
}

static void test_a_thaw_is_sent_even_to_an_agent_that_is_late(void) {
    FakePeer peer;
    gboolean unknown = FALSE;
    fake_peer_start(&peer, only_count, NULL);
    VmsnapAgent *agent = agent_reach(&peer, SHORT_MS);
    g_assert_false(vmsnap_agent_freeze(agent, &unknown, NULL));
    g_assert_false(vmsnap_agent_thaw(agent, NULL));
    vmsnap_agent_free(agent);
    fake_peer_stop(&peer);
    g_assert_cmpint(peer.number, ==, 1);
    fake_peer_clear(&peer);
}

static void test_without_a_socket_there_is_no_agent(void) {
    g_autoptr(GError) error = NULL;
    int code = 0;
    g_assert_null(vmsnap_agent_connect("/nonexistent/qga.sock", TIMEOUT_MS, &code, &error));
    g_assert_cmpint(code, ==, ENOENT);
    g_assert_nonnull(strstr(error->message, "'/nonexistent/qga.sock': No such file or directory; see that it runs"));
}

static void test_free_takes_null(void) {
    vmsnap_agent_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/agent/an-agent-freezes-and-thaws", test_an_agent_freezes_and_thaws);
    g_test_add_func("/agent/what-others-have-left-is-passed-over", test_what_others_have_left_is_passed_over);
    g_test_add_func("/agent/an-agent-that-never-answers-is-given-up", test_an_agent_that_never_answers_is_given_up);
    g_test_add_func("/agent/answers-to-others-are-not-ours", test_answers_to_others_are_not_ours);
    g_test_add_func("/agent/an-answer-without-its-byte-ff-is-none", test_an_answer_without_its_byte_ff_is_none);
    g_test_add_func("/agent/floods-end-in-time", test_floods_end_in_time);
    g_test_add_func("/agent/garbage-for-an-answer-is-an-error", test_garbage_for_an_answer_is_an_error);
    g_test_add_func("/agent/an-agent-that-closes-is-an-error", test_an_agent_that_closes_is_an_error);
    g_test_add_func("/agent/without-an-answer-the-guest-may-be-frozen", test_without_an_answer_the_guest_may_be_frozen);
    g_test_add_func("/agent/half-an-answer-is-none", test_half_an_answer_is_none);
    g_test_add_func("/agent/a-refusal-is-told-in-the-words-of-the-agent",
                    test_a_refusal_is_told_in_the_words_of_the_agent);
    g_test_add_func("/agent/a-refusal-is-not-told-at-any-length", test_a_refusal_is_not_told_at_any_length);
    g_test_add_func("/agent/a-late-answer-to-freeze-is-not-that-to-thaw",
                    test_a_late_answer_to_freeze_is_not_that_to_thaw);
    g_test_add_func("/agent/a-thaw-is-sent-even-to-an-agent-that-is-late",
                    test_a_thaw_is_sent_even_to_an_agent_that_is_late);
    g_test_add_func("/agent/without-a-socket-there-is-no-agent", test_without_a_socket_there_is_no_agent);
    g_test_add_func("/agent/free-takes-null", test_free_takes_null);
    return g_test_run();
}
