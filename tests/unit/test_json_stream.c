/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Objects out of bytes, however these are cut, and whatever is between them. */
#include "backend/json_stream.h"

#include "vmsnap/error.h"

#include <string.h>

#define MAX_BYTES 1000
#define MAX_DEPTH 512
#define N_RANDOM_RUNS 300

static VmsnapJsonStream *stream_of(const char *data, size_t length) {
    VmsnapJsonStream *stream = vmsnap_json_stream_new(MAX_BYTES);
    vmsnap_json_stream_push(stream, data, length);
    return stream;
}

static JsonNode *pop(VmsnapJsonStream *stream) {
    g_autoptr(GError) error = NULL;
    JsonNode *node;
    g_assert_true(vmsnap_json_stream_pop(stream, &node, &error));
    g_assert_no_error(error);
    return node;
}

static void check_nothing_comes(VmsnapJsonStream *stream) {
    g_assert_null(pop(stream));
}

/* @text: as json-glib writes it */
static void check_comes(VmsnapJsonStream *stream, const char *text) {
    g_autoptr(JsonNode) node = pop(stream);
    g_assert_nonnull(node);
    g_autofree char *seen = json_to_string(node, FALSE);
    g_assert_cmpstr(seen, ==, text);
}

static void check_text_gives(const char *text, const char *object) {
    g_autoptr(VmsnapJsonStream) stream = stream_of(text, strlen(text));
    check_comes(stream, object);
    check_nothing_comes(stream);
}

static void check_fails(const char *data, size_t length, const char *said) {
    g_autoptr(VmsnapJsonStream) stream = stream_of(data, length);
    g_autoptr(GError) error = NULL;
    JsonNode *node = NULL;
    g_assert_false(vmsnap_json_stream_pop(stream, &node, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, said));
    g_assert_null(node);
}

static void check_text_fails(const char *text, const char *said) {
    check_fails(text, strlen(text), said);
}

static void test_an_object_comes_in_pieces_of_any_size(void) {
    static const char text[] = "{\"a\":[1,{\"b\":\"}]\\\"{\"}],\"c\":\"\\\\\"}";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(MAX_BYTES);
        for (size_t at = 0; at < sizeof text - 1; at += piece) {
            check_nothing_comes(stream);
            vmsnap_json_stream_push(stream, text + at, MIN(piece, sizeof text - 1 - at));
        }
        check_comes(stream, text);
        check_nothing_comes(stream);
    }
}

static void test_several_objects_come_at_once(void) {
    static const char text[] = "{\"a\":1}{\"a\":2}\r\n\t {\"a\":3}\n{\"a\"";
    g_autoptr(VmsnapJsonStream) stream = stream_of(text, strlen(text));
    check_comes(stream, "{\"a\":1}");
    check_comes(stream, "{\"a\":2}");
    vmsnap_json_stream_push(stream, ":4}", 3);
    check_comes(stream, "{\"a\":3}");
    check_comes(stream, "{\"a\":4}");
    check_nothing_comes(stream);
}

static void test_brackets_and_quotes_in_strings_do_not_count(void) {
    static const char *const texts[] = {
        "{\"}\":\"{{[[\"}",      "{\"a\":\"\\\"}\"}",           "{\"a\":\"\\\\\"}",
        "{\"a\":\"\\\\\\\"}\"}", "{\"\\\"{\":{\"[\":[\"]\"]}}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        check_text_gives(texts[i], texts[i]);
}

static void test_white_space_between_is_passed_over(void) {
    g_autoptr(VmsnapJsonStream) stream = stream_of(" \t\r\n", 4);
    check_nothing_comes(stream);
    for (int i = 0; i < 2 * MAX_BYTES; i++) {
        vmsnap_json_stream_push(stream, "\n", 1);
        check_nothing_comes(stream);
    }
    vmsnap_json_stream_push(stream, "{ }\n", 4);
    check_comes(stream, "{}");
    check_nothing_comes(stream);
}

static void test_a_byte_ff_begins_anew(void) {
    check_text_gives("\xff{\"a\":1}", "{\"a\":1}");
    check_text_gives("{\"a\":[1, {\xff{\"a\":1}", "{\"a\":1}");
    check_text_gives("{\"a\":\"x\xff{\"a\":1}", "{\"a\":1}");
    check_text_gives("{\"a\":\"x\\\xff{\"a\":1}", "{\"a\":1}");
    check_text_gives("\xff\xff\xff \xff\xff{\xff\xff{\"a\":1}\xff\xff", "{\"a\":1}");
}

static void test_many_bytes_ff_are_no_long_object(void) {
    g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(MAX_BYTES);
    char many[MAX_BYTES];
    memset(many, 0xff, sizeof many);
    for (int i = 0; i < 100; i++) {
        vmsnap_json_stream_push(stream, many, sizeof many);
        check_nothing_comes(stream);
    }
    vmsnap_json_stream_push(stream, "{}", 2);
    check_comes(stream, "{}");
}

static void test_what_is_skipped_may_be_anything(void) {
    static const char text[] = "tail of \"an answer\"}]} ]]] {{ 1\xff{\"a\":1}\xff{\"a\":2}";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(MAX_BYTES);
        g_autoptr(JsonNode) first = NULL;
        vmsnap_json_stream_skip(stream);
        for (size_t at = 0; at < sizeof text - 1 && !first; at += piece) {
            vmsnap_json_stream_push(stream, text + at, MIN(piece, sizeof text - 1 - at));
            first = pop(stream);
        }
        g_assert_nonnull(first);
        g_assert_cmpint(json_object_get_int_member(json_node_get_object(first), "a"), ==, 1);
    }
}

static void test_skipping_ends_with_one_byte_ff(void) {
    g_autoptr(VmsnapJsonStream) stream = stream_of("{\"a\":1", 6);
    check_nothing_comes(stream);
    vmsnap_json_stream_skip(stream);
    vmsnap_json_stream_push(stream, "}\n{\"a\":2}\n", 11);
    check_nothing_comes(stream);
    vmsnap_json_stream_push(stream, "\xff{\"a\":3}{\"a\":4}", 15);
    check_comes(stream, "{\"a\":3}");
    check_comes(stream, "{\"a\":4}");
}

static void test_what_is_skipped_may_be_long(void) {
    g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(MAX_BYTES);
    vmsnap_json_stream_skip(stream);
    for (int i = 0; i < 3 * MAX_BYTES; i++) {
        vmsnap_json_stream_push(stream, "{", 1);
        check_nothing_comes(stream);
    }
    vmsnap_json_stream_push(stream, "\xff{}", 3);
    check_comes(stream, "{}");
}

static void test_something_else_is_an_error(void) {
    static const char *const texts[] = {
        "[]", "1", "\"a\"", "null", "}", "]", "NBDMAGICIHAVEOPT", "QEMU 7.2.22 monitor - type 'help'", ",{}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        check_text_fails(texts[i], "something else");
    check_fails("\0", 1, "something else");
    check_fails("\xfe{}", 3, "something else");
}

static void test_wrong_json_is_an_error(void) {
    static const char *const texts[] = {
        "{]",
        "{[}]",
        "{\"a\":}",
        "{\"a\" 1}",
        "{1:2}",
        "{{}}",
        "{\"a\":tru}",
        "{\"a\":\"\xc3\"}",
        "{\"a\":\"\xed\xa0\x80\"}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        check_text_fails(texts[i], "wrong");
}

static void test_depth_has_a_limit(void) {
    for (int extra = 0; extra < 2; extra++) {
        g_autoptr(GString) text = g_string_new("{\"a\":");
        for (int i = 1; i < MAX_DEPTH + extra; i++)
            g_string_append_c(text, '[');
        for (int i = 1; i < MAX_DEPTH + extra; i++)
            g_string_append_c(text, ']');
        g_string_append_c(text, '}');
        g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(10 * MAX_DEPTH);
        vmsnap_json_stream_push(stream, text->str, text->len);
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonNode) node = NULL;
        gboolean done = vmsnap_json_stream_pop(stream, &node, &error);
        g_assert_cmpint(done && node, ==, extra == 0);
        g_assert_cmpstr(error ? error->message : NULL, ==, extra ? "it sends JSON that is nested too deeply" : NULL);
    }
}

/* Returns: (transfer full): an object of so many bytes. */
static char *object_of_length(size_t length) {
    g_autofree char *filling = g_strnfill(length - strlen("{\"a\":\"\"}"), 'x');
    return g_strdup_printf("{\"a\":\"%s\"}", filling);
}

static void test_length_has_a_limit(void) {
    g_autofree char *longest = object_of_length(MAX_BYTES), *longer = object_of_length(MAX_BYTES + 1);
    check_text_gives(longest, longest);
    check_text_fails(longer, "too long");
    g_autofree char *twice = g_strconcat(longest, "\n", longest, NULL);
    g_autoptr(VmsnapJsonStream) stream = stream_of(twice, strlen(twice));
    check_comes(stream, longest);
    check_comes(stream, longest);
}

/*
 * What json-glib makes of them is its own business, as long as it is an object or an error. Escapes that it refuses,
 * such as two surrogates in the wrong order, are not tried: json-glib 1.6 leaks some bytes over them.
 */
static void test_odd_values_do_no_harm(void) {
    static const char *const texts[] = {
        "{\"a\":1e999}",
        "{\"a\":-1e999}",
        "{\"a\":99999999999999999999999999999999}",
        "{\"a\":-9223372036854775809}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\ud800x\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\\ud83d\\ude00\"}",
        "{\"a\":1,\"a\":2}",
        "{\"\":{\"\":[]}}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(VmsnapJsonStream) stream = stream_of(texts[i], strlen(texts[i]));
        g_autoptr(JsonNode) node = NULL;
        g_autoptr(GError) error = NULL;
        g_assert_cmpint(vmsnap_json_stream_pop(stream, &node, &error), ==, error == NULL);
        g_assert_cmpint(node == NULL, ==, error != NULL);
    }
}

static char *random_string(void) {
    static const char *const parts[] = {"a", "\"", "\\",         "{",  "}",  "[", "]",
                                        "ü", "€",  "\U0001f600", "\n", "\t", " ", "/"};
    GString *text = g_string_new(NULL);
    for (int n = g_test_rand_int_range(0, 8); n > 0; n--)
        g_string_append(text, parts[g_test_rand_int_range(0, G_N_ELEMENTS(parts))]);
    return g_string_free(text, FALSE);
}

static JsonNode *random_value(int depth);

static JsonNode *random_array(int depth) {
    JsonNode *node = json_node_new(JSON_NODE_ARRAY);
    JsonArray *array = json_array_new();
    for (int n = g_test_rand_int_range(0, 5); n > 0; n--)
        json_array_add_element(array, random_value(depth));
    json_node_take_array(node, array);
    return node;
}

static JsonNode *random_object(int depth) {
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);
    JsonObject *object = json_object_new();
    for (int n = g_test_rand_int_range(0, 5); n > 0; n--) {
        g_autofree char *name = random_string();
        json_object_set_member(object, name, random_value(depth));
    }
    json_node_take_object(node, object);
    return node;
}

static JsonNode *random_value(int depth) {
    g_autofree char *text = random_string();
    switch (g_test_rand_int_range(0, depth > 0 ? 7 : 5)) {
    case 0:
        return json_node_init_null(json_node_alloc());
    case 1:
        return json_node_init_boolean(json_node_alloc(), g_test_rand_bit());
    case 2:
        return json_node_init_int(json_node_alloc(), (gint64)g_test_rand_int() * G_MAXINT32);
    case 3:
        return json_node_init_double(json_node_alloc(), g_test_rand_int() + 0.5);
    case 4:
        return json_node_init_string(json_node_alloc(), text);
    case 5:
        return random_array(depth - 1);
    default:
        return random_object(depth - 1);
    }
}

static void append_between(GString *bytes, const char *object) {
    if (g_test_rand_bit())
        g_string_append(bytes, "\r\n");
    if (g_test_rand_int_range(0, 4) > 0)
        return;
    g_string_append_len(bytes, object, g_test_rand_int_range(0, (gint32)strlen(object)));
    g_string_append_c(bytes, '\xff');
}

static void check_random_run(void) {
    g_autoptr(GPtrArray) objects = g_ptr_array_new_with_free_func((GDestroyNotify)json_node_unref);
    g_autoptr(GString) bytes = g_string_new(NULL);
    for (int n = g_test_rand_int_range(1, 6); n > 0; n--) {
        JsonNode *object = random_object(4);
        g_autofree char *text = json_to_string(object, g_test_rand_bit());
        append_between(bytes, text);
        g_string_append(bytes, text);
        g_ptr_array_add(objects, object);
    }
    g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(bytes->len);
    guint n_seen = 0;
    for (gsize at = 0; at < bytes->len;) {
        gsize length = (gsize)g_test_rand_int_range(1, g_test_rand_bit() ? 8 : 200);
        length = MIN(length, bytes->len - at);
        vmsnap_json_stream_push(stream, bytes->str + at, length);
        at += length;
        for (JsonNode *node; (node = pop(stream)); json_node_unref(node), n_seen++)
            g_assert_true(json_node_equal(node, g_ptr_array_index(objects, n_seen)));
    }
    g_assert_cmpuint(n_seen, ==, objects->len);
}

static void test_random_objects_in_random_pieces_come_out_equal(void) {
    for (int i = 0; i < N_RANDOM_RUNS; i++)
        check_random_run();
}

static void test_free_takes_null(void) {
    vmsnap_json_stream_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/json-stream/an-object-comes-in-pieces-of-any-size", test_an_object_comes_in_pieces_of_any_size);
    g_test_add_func("/json-stream/several-objects-come-at-once", test_several_objects_come_at_once);
    g_test_add_func("/json-stream/brackets-and-quotes-in-strings-do-not-count",
                    test_brackets_and_quotes_in_strings_do_not_count);
    g_test_add_func("/json-stream/white-space-between-is-passed-over", test_white_space_between_is_passed_over);
    g_test_add_func("/json-stream/a-byte-ff-begins-anew", test_a_byte_ff_begins_anew);
    g_test_add_func("/json-stream/many-bytes-ff-are-no-long-object", test_many_bytes_ff_are_no_long_object);
    g_test_add_func("/json-stream/what-is-skipped-may-be-anything", test_what_is_skipped_may_be_anything);
    g_test_add_func("/json-stream/skipping-ends-with-one-byte-ff", test_skipping_ends_with_one_byte_ff);
    g_test_add_func("/json-stream/what-is-skipped-may-be-long", test_what_is_skipped_may_be_long);
    g_test_add_func("/json-stream/something-else-is-an-error", test_something_else_is_an_error);
    g_test_add_func("/json-stream/wrong-json-is-an-error", test_wrong_json_is_an_error);
    g_test_add_func("/json-stream/depth-has-a-limit", test_depth_has_a_limit);
    g_test_add_func("/json-stream/length-has-a-limit", test_length_has_a_limit);
    g_test_add_func("/json-stream/odd-values-do-no-harm", test_odd_values_do_no_harm);
    g_test_add_func("/json-stream/random-objects-in-random-pieces-come-out-equal",
                    test_random_objects_in_random_pieces_come_out_equal);
    g_test_add_func("/json-stream/free-takes-null", test_free_takes_null);
    return g_test_run();
}
