/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bytes that somebody sends who may be no QEMU: what comes out of them must not depend on how they are cut, and
 * whoever reads what comes out must bear with anything. For libFuzzer, or for driver.c. A stream that is wrong is of no
 * use any more, so nothing is asked of it then.
 */
#include "fuzz.h"

#include "backend/json_stream.h"
#include "backend/qmp_graph.h"
#include "backend/qmp_machine.h"

#include <string.h>

#define MAX_OBJECT_BYTES 2000
#define UUID "0123abcd-0000-4000-8000-000000000000"

/* Bits of the first byte. */
#define AS_ANSWER 1 /* the bytes stand in the list that a command returns */
#define SKIPPING 2  /* and behind what somebody else has left */

const char fuzz_name[] = "fuzz-qmp";

/* Bytes from 0x80 on stand for these by turns, so that few bytes say much; only 0xFF stands for itself. */
static const char *const words[] = {
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "\\",
    "{}",
    "[]",
    "null",
    "true",
    "false",
    "0",
    "-1",
    "4096",
    "1e400",
    "\"\"",
    "\"..\"",
    "\"a/b\"",
    "\"vda\"",
    "\"disk1\"",
    "\"\\ud83d\"",
    "\"\\u0000\"",
    "\xc3",
    "\xc3\xbc",
    "\"inserted\":",
    "\"image\":",
    "\"virtual-size\":",
    "\"node-name\":",
    "\"file\":",
    "\"ro\":",
    "\"qdev\":",
    "\"device\":",
    "\"name\":",
    "\"type\":",
    "\"return\":",
    "\"places\":",
    "\"node\":",
    "\"child<vhost-user-blk-pci>\"",
    "{\"name\":\"vda\",\"device\":\"/machine/peripheral/vda\",\"node\":\"n0\",\"image\":\"/a\"}",
    "{\"qdev\":\"vda\",\"inserted\":{\"node-name\":\"n0\",\"ro\":false,\"image\":{\"virtual-size\":4096}}}",
    "{\"device\":\"vda\",\"inserted\":{\"file\":\"/a\",\"node-name\":\"#block1\"}}",
    "{\"name\":\"vu\",\"type\":\"child<vhost-user-blk-pci>\"}",
};

/* Returns: (transfer full) */
static GString *expand(unsigned how, const uint8_t *data, size_t length) {
    GString *text = g_string_new(how & SKIPPING ? "rest\"}]\xff" : NULL);
    if (how & AS_ANSWER)
        g_string_append(text, "{\"return\":[");
    for (; length > 0; data++, length--)
        if (*data < 0x80 || *data == 0xff)
            g_string_append_c(text, (char)*data);
        else
            g_string_append(text, words[*data % G_N_ELEMENTS(words)]);
    if (how & AS_ANSWER)
        g_string_append(text, "]}");
    return text;
}

/* Where there is a leak checker; json-glib 1.6 leaks a string in which something is wrong. */
void __lsan_disable(void) __attribute__((weak));
void __lsan_enable(void) __attribute__((weak));

static gboolean pop(VmsnapJsonStream *stream, JsonNode **ret_node) {
    g_autoptr(GError) error = NULL;
    if (__lsan_disable)
        __lsan_disable();
    gboolean good = vmsnap_json_stream_pop(stream, ret_node, &error);
    if (__lsan_enable)
        __lsan_enable();
    g_assert_true(good == (error == NULL) && (good || !*ret_node));
    return good;
}

/* @cuts: of which the lengths of pieces are made; or 0 for one piece */
static GPtrArray *read_all(unsigned how, const GString *text, uint32_t cuts, gboolean *ret_good) {
    GPtrArray *objects = g_ptr_array_new_with_free_func((GDestroyNotify)json_node_unref);
    g_autoptr(VmsnapJsonStream) stream = vmsnap_json_stream_new(MAX_OBJECT_BYTES);
    if (how & SKIPPING)
        vmsnap_json_stream_skip(stream);
    *ret_good = TRUE;
    for (size_t at = 0; at < text->len && *ret_good;) {
        size_t length = cuts ? MIN(text->len - at, 1 + (cuts >> 16) % 16) : text->len;
        JsonNode *node;
        vmsnap_json_stream_push(stream, text->str + at, length);
        while ((*ret_good = pop(stream, &node)) && node)
            g_ptr_array_add(objects, node);
        at += length;
        cuts = cuts ? cuts * 1664525U + 1013904223U : 0;
    }
    return objects;
}

static void check_drives(const GPtrArray *drives) {
    for (guint i = 0; i < drives->len; i++) {
        VmsnapQmpDrive *drive = g_ptr_array_index(drives, i);
        g_assert_true(vmsnap_drive_name_is_safe(drive->base.name));
        for (guint other = 0; other < i; other++)
            g_assert_cmpstr(drive->base.name, !=, ((const VmsnapDrive *)g_ptr_array_index(drives, other))->name);
        vmsnap_qmp_drive_judge(drive, &(VmsnapQmpDevice){.is_shareable = i % 2}, FALSE);
        g_assert_true((drive->base.reason == NULL) == (drive->base.media == VMSNAP_MEDIA_WRITABLE));
    }
}

static void check_answer(JsonNode *answer) {
    g_autoptr(GPtrArray) drives = vmsnap_qmp_drives_parse(answer);
    check_drives(drives);
    for (guint i = 0; i < drives->len; i++) {
        const VmsnapQmpDrive *drive = g_ptr_array_index(drives, i);
        if (drive->device)
            (void)vmsnap_qmp_find_node(answer, drive->device);
    }
    vmsnap_qmp_drives_add_foreign(drives, answer);
    check_drives(drives);
}

/* What is read can be written, and read again. */
static void check_graph(const char *text) {
    g_autoptr(VmsnapQmpGraph) graph = vmsnap_qmp_graph_from_text(UUID, text, NULL);
    if (!graph)
        return;
    g_autofree char *written = vmsnap_qmp_graph_to_text(graph);
    g_autoptr(VmsnapQmpGraph) read = vmsnap_qmp_graph_from_text(UUID, written, NULL);
    g_autofree char *again = read ? vmsnap_qmp_graph_to_text(read) : NULL;
    g_assert_cmpstr(written, ==, again);
}

static void check_object(JsonNode *node) {
    JsonNode *answer = json_object_get_member(json_node_get_object(node), "return");
    g_autofree char *text = json_to_string(node, FALSE);
    if (answer)
        check_answer(answer);
    check_graph(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    if (length < 2)
        return 0;
    unsigned how = data[0];
    gboolean good_whole, good_cut;
    g_autoptr(GString) text = expand(how, data + 2, length - 2);
    g_autoptr(GPtrArray) whole = read_all(how, text, 0, &good_whole);
    g_autoptr(GPtrArray) cut = read_all(how, text, (uint32_t)(1 + data[1]) * 2654435761U, &good_cut);
    g_assert_true(good_whole == good_cut);
    g_assert_cmpuint(whole->len, ==, cut->len);
    for (guint i = 0; i < whole->len; i++) {
        g_assert_true(json_node_equal(g_ptr_array_index(whole, i), g_ptr_array_index(cut, i)));
        check_object(g_ptr_array_index(cut, i));
    }
    return 0;
}

/* What GLib and json-glib complain of is a bug, as it is in GLib's harness. */
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    (void)g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING);
    return 0;
}
