/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Views of snapshots that know what has changed: dates, what manifest and status say, lists, and the order to commit.
 */
#include "fs/block_map.h"
#include "fs/manifest.h"
#include "fs/status.h"
#include "fs/view.h"

#include "extents.h"
#include "latch.h"
#include "memory_backend.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <json-glib/json-glib.h>
#include <string.h>

#define DISK_BYTES (UINT64_C(8) << 20)
#define BEFORE_NS INT64_C(1600000000987654321)
#define INSTANT_NS INT64_C(1700000000123456789)

/* Returns: (transfer full): the list of a disk as JSON. */
static char *build_json(const VmsnapDiskView *view) {
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(view);
    return vmsnap_block_map_to_json(map);
}

static const VmsnapViewOptions raw = {.format = {.format = &vmsnap_format_raw}};
static const VmsnapViewOptions changed = {.format = {.format = &vmsnap_format_raw, .only_changed = TRUE}};
static const VmsnapViewOptions qcow2 = {.format = {.format = &vmsnap_format_qcow2, .cluster_bytes = 65536}};

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapView *view;
} Fixture;

static GArray *extents_one(VmsnapExtentKind kind, uint64_t size) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    extents_append(extents, kind, size);
    return extents;
}

/* @changes: (transfer full): since "cp1", or NULL for a full disk. All disks are by turns 64 KiB of data and zeroes. */
static VmsnapDisk *add_disk(VmsnapSnapshot *snapshot, const char *name, GArray *changes) {
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, name, extents_alternate(DISK_BYTES, 64 << 10));
    if (changes) {
        memory_disk_set_changes(disk, "cp1", changes);
        disk->since_modified_ns = BEFORE_NS;
    }
    return disk;
}

/* A disk that is clean, one of which the first MiB is dirty, and one that is full. */
static VmsnapSnapshot *snapshot_new(const MemoryFaults *faults) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(faults);
    GArray *changes = extents_one(VMSNAP_EXTENT_DIRTY, 1 << 20);
    extents_append(changes, VMSNAP_EXTENT_CLEAN, DISK_BYTES - (1 << 20));
    (void)add_disk(snapshot, "vda", extents_one(VMSNAP_EXTENT_CLEAN, DISK_BYTES));
    (void)add_disk(snapshot, "vdb", changes);
    add_disk(snapshot, "vdc", NULL)->full_reason = g_strdup("its image is \"raw\"");
    snapshot->since = g_strdup("cp1");
    snapshot->checkpoint = g_strdup("cp2");
    return snapshot;
}

static gboolean never(gpointer user_data) {
    (void)user_data;
    return FALSE;
}

static gboolean at_once(gpointer user_data) {
    (void)user_data;
    return TRUE;
}

/* @snapshot: (transfer full) */
static void fixture_init(Fixture *fixture, VmsnapSnapshot *snapshot, const VmsnapViewOptions *options) {
    fixture->snapshot = snapshot;
    fixture->view = vmsnap_view_new(snapshot, options);
}

/* @snapshot: (transfer full). Also waits for the maps of content. */
static void fixture_init_started(Fixture *fixture, VmsnapSnapshot *snapshot, const VmsnapViewOptions *options) {
    g_autoptr(GError) error = NULL;
    Latch complete;
    latch_init(&complete);
    fixture_init(fixture, snapshot, options);
    gboolean started = vmsnap_view_start(fixture->view, never, NULL, &error);
    g_assert_no_error(error);
    g_assert_true(started);
    for (guint i = 0; i < fixture->view->disks->len; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(fixture->view->disks, i);
        vmsnap_scan_wait(disk->scan, G_MAXINT64, latch_count, &complete);
    }
    latch_wait(&complete, fixture->view->disks->len);
    latch_clear(&complete);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

/* @path: names, separated by slashes */
static const VmsnapNode *find(const Fixture *fixture, const char *path) {
    g_auto(GStrv) names = g_strsplit(path, "/", -1);
    const VmsnapNode *node = vmsnap_tree_get(fixture->view->tree, VMSNAP_TREE_ROOT_ID);
    for (char **name = names; *name && node; name++)
        node = vmsnap_tree_lookup(node, *name);
    return node;
}

static char *generate(const Fixture *fixture, const char *path) {
    const VmsnapNode *node = find(fixture, path);
    g_assert_nonnull(node);
    gsize length;
    g_autofree char *data = g_bytes_unref_to_data(node->generate(node->live_data), &length);
    return g_strndup(data, length);
}

/* Dates */

static int64_t modified_ns(const Fixture *fixture, const char *name) {
    const VmsnapNode *node = find(fixture, name);
    g_assert_nonnull(node);
    return node->modified_ns ? node->modified_ns : fixture->snapshot->instant_ns;
}

static void test_an_unchanged_disk_keeps_its_date(void) {
    Fixture fixture;
    fixture_init_started(&fixture, snapshot_new(NULL), &raw);
    g_assert_cmpint(modified_ns(&fixture, "vda.raw"), ==, BEFORE_NS);
    g_assert_cmpint(modified_ns(&fixture, "vdb.raw"), ==, INSTANT_NS);
    g_assert_cmpint(modified_ns(&fixture, "vdc.raw"), ==, INSTANT_NS);
    /* For borg, something must be newer than the disks. */
    g_assert_cmpint(modified_ns(&fixture, "manifest.json"), ==, INSTANT_NS + 1);
    for (guint i = 0; i < 3; i++) {
        const VmsnapDisk *disk = g_ptr_array_index(fixture.snapshot->disks, i);
        g_assert_cmpint(disk->modified_ns, ==, i == 0 ? BEFORE_NS : INSTANT_NS);
    }
    fixture_clear(&fixture);
}

/* Another's checkpoint does not tell when a disk had been changed last by then. */
static void test_a_date_that_is_not_known_is_the_instant(void) {
    Fixture fixture;
    VmsnapSnapshot *snapshot = snapshot_new(NULL);
    ((VmsnapDisk *)g_ptr_array_index(snapshot->disks, 0))->since_modified_ns = 0;
    fixture_init_started(&fixture, snapshot, &raw);
    g_assert_cmpint(modified_ns(&fixture, "vda.raw"), ==, INSTANT_NS);
    g_assert_cmpint(((VmsnapDisk *)g_ptr_array_index(snapshot->disks, 0))->modified_ns, ==, INSTANT_NS);
    fixture_clear(&fixture);
}

/* These files are of another snapshot each time, even where the disk is the same. */
static void test_files_of_changes_are_of_the_instant(void) {
    Fixture fixture;
    fixture_init_started(&fixture, snapshot_new(NULL), &qcow2);
    g_assert_cmpint(modified_ns(&fixture, "vda.cp2.qcow2"), ==, INSTANT_NS);
    /* But the disk is as old as it is: the checkpoint notes that. */
    g_assert_cmpint(((VmsnapDisk *)g_ptr_array_index(fixture.snapshot->disks, 0))->modified_ns, ==, BEFORE_NS);
    fixture_clear(&fixture);
    fixture_init_started(&fixture, snapshot_new(NULL), &changed);
    g_assert_cmpint(modified_ns(&fixture, "vda.changed.raw"), ==, INSTANT_NS);
    g_assert_cmpint(modified_ns(&fixture, "vda.changed.map"), ==, INSTANT_NS);
    g_assert_cmpint(modified_ns(&fixture, "vdc.raw"), ==, INSTANT_NS);
    fixture_clear(&fixture);
}

static void test_one_dirty_byte_is_a_change(void) {
    for (int last = 0; last < 2; last++) {
        Fixture fixture;
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        GArray *changes = extents_one(last ? VMSNAP_EXTENT_CLEAN : VMSNAP_EXTENT_DIRTY, last ? DISK_BYTES - 1 : 1);
        extents_append(changes, last ? VMSNAP_EXTENT_DIRTY : VMSNAP_EXTENT_CLEAN, last ? 1 : DISK_BYTES - 1);
        (void)add_disk(snapshot, "vda", changes);
        fixture_init_started(&fixture, snapshot, &raw);
        g_assert_cmpint(modified_ns(&fixture, "vda.raw"), ==, INSTANT_NS);
        g_assert_cmpuint(vmsnap_disk_view_get_dirty_bytes(g_ptr_array_index(fixture.view->disks, 0)), ==, 1);
        fixture_clear(&fixture);
    }
}

/* What is said of it */

static JsonObject *parse(JsonParser *parser, const char *text, gssize length) {
    g_autoptr(GError) error = NULL;
    (void)json_parser_load_from_data(parser, text, length, &error);
    g_assert_no_error(error);
    return json_node_get_object(json_parser_get_root(parser));
}

static JsonObject *manifest_parse(JsonParser *parser, const Fixture *fixture) {
    g_autoptr(GBytes) manifest = vmsnap_manifest_build(fixture->view);
    gsize length;
    const char *text = g_bytes_get_data(manifest, &length);
    return parse(parser, text, (gssize)length);
}

static JsonObject *status_parse(JsonParser *parser, const Fixture *fixture) {
    g_autofree char *text = generate(fixture, ".vmsnap/status.json");
    return parse(parser, text, -1);
}

/* @value: or NULL for null, or for no member where @nullable is FALSE */
static void check_string(JsonObject *object, const char *name, const char *value, gboolean nullable) {
    if (value)
        g_assert_cmpstr(json_object_get_string_member(object, name), ==, value);
    else if (nullable)
        g_assert_true(json_object_get_null_member(object, name));
    else
        g_assert_false(json_object_has_member(object, name));
}

static void check_int(JsonObject *object, const char *name, uint64_t value) {
    g_assert_true(json_object_has_member(object, name));
    g_assert_cmpint(json_object_get_int_member(object, name), ==, (gint64)value);
}

static const char *const sinces[] = {"cp1", "cp1", NULL};
static const char *const reasons[] = {NULL, NULL, "its image is \"raw\""};
static const uint64_t dirty[] = {0, 1 << 20, DISK_BYTES};

static void test_the_manifest_tells_what_has_changed(void) {
    static const char *const files[][3] = {{"vda.raw", "vdb.raw", "vdc.raw"},
                                           {"vda.changed.raw", "vdb.changed.raw", "vdc.raw"},
                                           {"vda.cp2.qcow2", "vdb.cp2.qcow2", "vdc.cp2.qcow2"}};
    static const VmsnapViewOptions *const options[] = {&raw, &changed, &qcow2};
    for (size_t k = 0; k < G_N_ELEMENTS(options); k++) {
        Fixture fixture;
        g_autoptr(JsonParser) parser = json_parser_new();
        fixture_init_started(&fixture, snapshot_new(NULL), options[k]);
        JsonObject *root = manifest_parse(parser, &fixture);
        check_string(root, "checkpoint", "cp2", TRUE);
        check_string(root, "since", "cp1", TRUE);
        JsonArray *disks = json_object_get_array_member(root, "disks");
        g_assert_cmpuint(json_array_get_length(disks), ==, 3);
        for (guint i = 0; i < 3; i++) {
            JsonObject *disk = json_array_get_object_element(disks, i);
            check_string(disk, "since", sinces[i], TRUE);
            check_string(disk, "full-reason", reasons[i], FALSE);
            check_string(disk, "file", files[k][i], FALSE);
            check_string(disk, "modified", i == 0 ? "2020-09-13T12:26:40.987654321Z" : "2023-11-14T22:13:20.123456789Z",
                         FALSE);
            check_int(disk, "dirty", dirty[i]);
            g_assert_nonnull(find(&fixture, files[k][i]));
        }
        fixture_clear(&fixture);
    }
}

static void test_the_manifest_of_a_full_mount_has_nulls(void) {
    Fixture fixture;
    g_autoptr(JsonParser) parser = json_parser_new();
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    (void)add_disk(snapshot, "vda", NULL);
    fixture_init_started(&fixture, snapshot, &raw);
    JsonObject *root = manifest_parse(parser, &fixture);
    JsonObject *disk = json_array_get_object_element(json_object_get_array_member(root, "disks"), 0);
    check_string(root, "checkpoint", NULL, TRUE);
    check_string(root, "since", NULL, TRUE);
    check_string(disk, "since", NULL, TRUE);
    check_string(disk, "full-reason", NULL, FALSE);
    check_int(disk, "dirty", DISK_BYTES);
    fixture_clear(&fixture);
}

static void test_the_status_tells_what_has_changed(void) {
    Fixture fixture;
    g_autoptr(JsonParser) parser = json_parser_new();
    fixture_init_started(&fixture, snapshot_new(NULL), &raw);
    JsonObject *root = status_parse(parser, &fixture);
    check_string(root, "checkpoint", "cp2", FALSE);
    check_string(root, "since", "cp1", FALSE);
    check_int(root, "total", 3 * DISK_BYTES);
    check_int(root, "dirty", DISK_BYTES + (1 << 20));
    check_int(root, "zero-bytes", 3 * DISK_BYTES / 2);
    check_int(root, "transferred", 3 * DISK_BYTES / 2);
    JsonArray *disks = json_object_get_array_member(root, "disks");
    for (guint i = 0; i < 3; i++) {
        JsonObject *disk = json_array_get_object_element(disks, i);
        check_string(disk, "since", sinces[i], FALSE);
        check_string(disk, "full-reason", reasons[i], FALSE);
        check_int(disk, "dirty", dirty[i]);
        check_int(disk, "data", DISK_BYTES / 2);
    }
    fixture_clear(&fixture);
}

static void test_the_status_of_a_full_mount_names_no_checkpoint(void) {
    Fixture fixture;
    g_autoptr(JsonParser) parser = json_parser_new();
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    (void)add_disk(snapshot, "vda", NULL);
    fixture_init_started(&fixture, snapshot, &raw);
    JsonObject *root = status_parse(parser, &fixture);
    check_string(root, "checkpoint", NULL, FALSE);
    check_string(root, "since", NULL, FALSE);
    check_int(root, "dirty", DISK_BYTES);
    fixture_clear(&fixture);
}

/* Where only changes are shown, all else need not be read; and when they have been, nothing is left. */
static void test_transferred_reaches_total_with_the_changes(void) {
    static const VmsnapViewOptions *const options[] = {&changed, &qcow2};
    for (size_t k = 0; k < G_N_ELEMENTS(options); k++) {
        Fixture fixture;
        g_autoptr(JsonParser) parser = json_parser_new(), later = json_parser_new();
        fixture_init_started(&fixture, snapshot_new(NULL), options[k]);
        JsonObject *root = status_parse(parser, &fixture);
        check_int(root, "total", 3 * DISK_BYTES);
        check_int(root, "dirty", DISK_BYTES + (1 << 20));
        /* Half of what has changed is zeroes, and so is half of the full disk. */
        check_int(root, "transferred", 3 * DISK_BYTES - (1 << 19) - DISK_BYTES / 2);
        JsonObject *vdb = json_array_get_object_element(json_object_get_array_member(root, "disks"), 1);
        check_int(vdb, "data", 1 << 19);
        check_int(vdb, "zero-bytes", 1 << 19);
        for (guint i = 1; i < 3; i++) {
            const VmsnapDiskView *disk = g_ptr_array_index(fixture.view->disks, i);
            for (uint64_t offset = 0; offset < dirty[i]; offset += 128 << 10)
                vmsnap_progress_add(disk->progress, offset, 64 << 10);
        }
        check_int(status_parse(later, &fixture), "transferred", 3 * DISK_BYTES);
        g_autofree char *text = generate(&fixture, ".vmsnap/status");
        g_assert_nonnull(strstr(text, "100 %"));
        fixture_clear(&fixture);
    }
}

/* In doubt all has changed. */
static void test_the_status_before_the_changes_are_known(void) {
    Fixture fixture;
    g_autoptr(JsonParser) parser = json_parser_new();
    fixture_init(&fixture, snapshot_new(NULL), &raw);
    check_int(status_parse(parser, &fixture), "dirty", 3 * DISK_BYTES);
    fixture_clear(&fixture);
}

/* Lists */

static void test_each_disk_has_lists(void) {
    static const char *const names[] = {"vda", "vdb", "vdc"};
    static const char *const first_lines[] = {"0 8388608 same\n", "0 65536 data\n65536 65536 zero\n",
                                              "0 65536 data\n65536 65536 zero\n"};
    Fixture fixture;
    fixture_init_started(&fixture, snapshot_new(NULL), &raw);
    g_assert_cmpuint(find(&fixture, ".vmsnap/map")->children->len, ==, 6);
    for (guint i = 0; i < 3; i++) {
        g_autofree char *lines_path = g_strdup_printf(".vmsnap/map/%s.borg", names[i]);
        g_autofree char *json_path = g_strdup_printf(".vmsnap/map/%s.json", names[i]);
        g_autofree char *lines = generate(&fixture, lines_path), *json = generate(&fixture, json_path);
        g_autofree char *expected = build_json(g_ptr_array_index(fixture.view->disks, i));
        g_assert_true(g_str_has_prefix(lines, first_lines[i]));
        g_assert_cmpint(strstr(lines, "same") != NULL, ==, i < 2);
        g_assert_cmpstr(json, ==, expected);
        g_assert_true(find(&fixture, lines_path)->map == g_ptr_array_index(fixture.view->disks, i));
        g_assert_true(find(&fixture, json_path)->map == g_ptr_array_index(fixture.view->disks, i));
        g_assert_null(find(&fixture, json_path)->store);
    }
    g_assert_null(find(&fixture, ".vmsnap/status.json")->map);
    fixture_clear(&fixture);
}

/* The order to commit */

static void check_commit(const Fixture *fixture, gboolean expected) {
    g_autofree char *text = generate(fixture, ".vmsnap/commit");
    g_assert_cmpstr(text, ==, expected ? "yes\n" : "no\n");
    g_assert_cmpint(vmsnap_view_has_commit(fixture->view), ==, expected);
}

static int store_commit(const Fixture *fixture, const char *text) {
    const VmsnapNode *node = find(fixture, ".vmsnap/commit");
    return node->store(text, node->live_data);
}

static void fixture_init_commit(Fixture *fixture) {
    VmsnapViewOptions options = raw;
    options.takes_commit = TRUE;
    fixture_init(fixture, snapshot_new(NULL), &options);
}

static void test_only_yes_commits(void) {
    static const char *const yes[] = {"yes", "1"}, *const no[] = {"no", "0"};
    static const char *const others[] = {"",        "y",    "YES",    "Yes",   "yes!", " yes",
                                         "yes yes", "true", "yesyes", "abort", "2"};
    Fixture fixture;
    fixture_init_commit(&fixture);
    check_commit(&fixture, FALSE);
    for (size_t i = 0; i < G_N_ELEMENTS(yes); i++) {
        for (size_t k = 0; k < G_N_ELEMENTS(no); k++) {
            g_assert_cmpint(store_commit(&fixture, yes[i]), ==, 0);
            check_commit(&fixture, TRUE);
            g_assert_cmpint(store_commit(&fixture, no[k]), ==, 0);
            check_commit(&fixture, FALSE);
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(others); i++) {
        g_assert_cmpint(store_commit(&fixture, others[i]), ==, -EINVAL);
        check_commit(&fixture, FALSE);
    }
    fixture_clear(&fixture);
}

static void test_a_lost_snapshot_is_not_committed(void) {
    Fixture fixture;
    fixture_init_commit(&fixture);
    vmsnap_snapshot_break(fixture.snapshot, "the guest was stopped");
    g_assert_cmpint(store_commit(&fixture, "yes"), ==, -EIO);
    check_commit(&fixture, FALSE);
    g_assert_cmpint(store_commit(&fixture, "no"), ==, 0);
    check_commit(&fixture, FALSE);
    fixture_clear(&fixture);
}

static void test_no_order_is_taken_that_nobody_waits_for(void) {
    Fixture fixture;
    fixture_init(&fixture, snapshot_new(NULL), &raw);
    g_assert_null(find(&fixture, ".vmsnap/commit"));
    g_assert_false(vmsnap_view_has_commit(fixture.view));
    fixture_clear(&fixture);
}

static gpointer read_badly(gpointer view) {
    vmsnap_view_note_read_error(view);
    return NULL;
}

static void test_a_read_error_is_noted_for_ever(void) {
    Fixture fixture;
    GThread *threads[3];
    fixture_init(&fixture, snapshot_new(NULL), &raw);
    g_assert_true(vmsnap_view_was_read_well(fixture.view));
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", read_badly, fixture.view);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        (void)g_thread_join(threads[i]);
    g_assert_false(vmsnap_view_was_read_well(fixture.view));
    g_assert_false(vmsnap_view_has_commit(fixture.view));
    fixture_clear(&fixture);
}

/* A view that cannot start */

/* @error_part: what the error says */
static void check_start_fails(Fixture *fixture, VmsnapInterruptedFunc interrupted, const char *error_part) {
    g_autoptr(GError) error = NULL;
    g_assert_false(vmsnap_view_start(fixture->view, interrupted, NULL, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    if (!strstr(error->message, error_part))
        g_error("'%s' does not say '%s'", error->message, error_part);
    g_assert_null(find(fixture, "vda.raw"));
    g_assert_null(find(fixture, "manifest.json"));
}

/* The two disks with changes are asked for them first, in every format. */
static void test_a_start_without_changes_fails(void) {
    static const VmsnapViewOptions *const options[] = {&raw, &changed, &qcow2};
    for (size_t k = 0; k < G_N_ELEMENTS(options); k++) {
        for (unsigned call = 1; call <= 2; call++) {
            for (int how = 0; how < 4; how++) {
                const MemoryFaults faults = {.fail_call = call, .fail_at_once = how & 1, .fail_rest = how >> 1};
                Fixture fixture;
                fixture_init(&fixture, snapshot_new(&faults), options[k]);
                check_start_fails(&fixture, never, call == 1 ? "disk 'vda' have changed" : "disk 'vdb' have changed");
                fixture_clear(&fixture);
            }
        }
    }
    const MemoryFaults silent = {.say_nothing = TRUE};
    Fixture fixture;
    fixture_init(&fixture, snapshot_new(&silent), &raw);
    check_start_fails(&fixture, never, "mount without since= and incremental");
    fixture_clear(&fixture);
}

/* Raw files of whole disks need no map of the content. */
static void test_a_start_without_content_fails_where_it_is_needed(void) {
    const MemoryFaults faults = {.fail_call = 3, .fail_rest = TRUE};
    Fixture fixture;
    fixture_init(&fixture, snapshot_new(&faults), &changed);
    check_start_fails(&fixture, never, "are data");
    fixture_clear(&fixture);
    fixture_init_started(&fixture, snapshot_new(&faults), &raw);
    g_assert_cmpint(modified_ns(&fixture, "vda.raw"), ==, BEFORE_NS);
    fixture_clear(&fixture);
}

static void test_a_start_says_why_the_snapshot_is_lost(void) {
    const MemoryFaults faults = {.fail_call = 1, .fail_rest = TRUE};
    Fixture fixture;
    fixture_init(&fixture, snapshot_new(&faults), &raw);
    vmsnap_snapshot_break(fixture.snapshot, "the guest was stopped");
    check_start_fails(&fixture, never, "the guest was stopped");
    fixture_clear(&fixture);
}

/* Changes are waited for even where files of whole disks are shown. */
static void test_a_start_may_be_interrupted(void) {
    Fixture fixture;
    fixture_init(&fixture, snapshot_new(NULL), &raw);
    memory_snapshot_hold(fixture.snapshot);
    check_start_fails(&fixture, at_once, "interrupted");
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    /* A time zone that no instant may be told in. */
    g_assert_true(g_setenv("TZ", "Asia/Kathmandu", TRUE));
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/view-changes/" path, function)
    ADD("an-unchanged-disk-keeps-its-date", test_an_unchanged_disk_keeps_its_date);
    ADD("a-date-that-is-not-known-is-the-instant", test_a_date_that_is_not_known_is_the_instant);
    ADD("files-of-changes-are-of-the-instant", test_files_of_changes_are_of_the_instant);
    ADD("one-dirty-byte-is-a-change", test_one_dirty_byte_is_a_change);
    ADD("the-manifest-tells-what-has-changed", test_the_manifest_tells_what_has_changed);
    ADD("the-manifest-of-a-full-mount-has-nulls", test_the_manifest_of_a_full_mount_has_nulls);
    ADD("the-status-tells-what-has-changed", test_the_status_tells_what_has_changed);
    ADD("the-status-of-a-full-mount-names-no-checkpoint", test_the_status_of_a_full_mount_names_no_checkpoint);
    ADD("transferred-reaches-total-with-the-changes", test_transferred_reaches_total_with_the_changes);
    ADD("the-status-before-the-changes-are-known", test_the_status_before_the_changes_are_known);
    ADD("each-disk-has-lists", test_each_disk_has_lists);
    ADD("only-yes-commits", test_only_yes_commits);
    ADD("a-lost-snapshot-is-not-committed", test_a_lost_snapshot_is_not_committed);
    ADD("no-order-is-taken-that-nobody-waits-for", test_no_order_is_taken_that_nobody_waits_for);
    ADD("a-read-error-is-noted-for-ever", test_a_read_error_is_noted_for_ever);
    ADD("a-start-without-changes-fails", test_a_start_without_changes_fails);
    ADD("a-start-without-content-fails-where-it-is-needed", test_a_start_without_content_fails_where_it_is_needed);
    ADD("a-start-says-why-the-snapshot-is-lost", test_a_start_says_why_the_snapshot_is_lost);
    ADD("a-start-may-be-interrupted", test_a_start_may_be_interrupted);
#undef ADD
    return g_test_run();
}
