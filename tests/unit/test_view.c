/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which files a snapshot has, and what its manifest and its status say. */
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
#include <unistd.h>

#define DISK_BYTES (UINT64_C(8) << 20)

static const VmsnapViewOptions view_options = {.readahead_bytes = 1 << 20, .format = {.format = &vmsnap_format_raw}};

typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapView *view;
} Fixture;

static const VmsnapViewOptions qcow2_options = {.format = {.format = &vmsnap_format_qcow2, .cluster_bytes = 65536}};
static const VmsnapViewOptions vma_options = {.format = {.format = &vmsnap_format_vma}};

/* Two disks of 8 MiB, by turns 64 KiB of data and of zeroes. */
static VmsnapSnapshot *snapshot_new(const MemoryFaults *faults) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(faults);
    (void)memory_snapshot_add_disk(snapshot, "vda", extents_alternate(DISK_BYTES, 64 << 10));
    (void)memory_snapshot_add_disk(snapshot, "vdb", extents_alternate(DISK_BYTES, 64 << 10));
    vmsnap_snapshot_add_file(snapshot, "domain.xml", g_bytes_new("<domain/>", 9), VMSNAP_FILE_CONFIG);
    vmsnap_snapshot_add_file(snapshot, "backup.xml", g_bytes_new("<domainbackup/>", 15), VMSNAP_FILE_HIDDEN);
    vmsnap_snapshot_add_left_out(snapshot, "sda", "is a \"CD-ROM\"\n\\");
    vmsnap_snapshot_add_version(snapshot, "vmsnap", g_strdup("0.1"));
    vmsnap_snapshot_add_version(snapshot, "qemu", g_strdup("7.2.0"));
    return snapshot;
}

/* @snapshot: (transfer full) */
static void fixture_init_with(Fixture *fixture, VmsnapSnapshot *snapshot, const VmsnapViewOptions *options) {
    fixture->snapshot = snapshot;
    fixture->view = vmsnap_view_new(snapshot, options);
}

static void fixture_init(Fixture *fixture) {
    fixture_init_with(fixture, snapshot_new(NULL), &view_options);
}

static gboolean never(gpointer user_data) {
    (void)user_data;
    return FALSE;
}

static void fixture_start(Fixture *fixture) {
    g_autoptr(GError) error = NULL;
    gboolean started = vmsnap_view_start(fixture->view, never, NULL, &error);
    g_assert_no_error(error);
    g_assert_true(started);
}

static void fixture_wait(const Fixture *fixture) {
    Latch complete;
    latch_init(&complete);
    for (guint i = 0; i < fixture->view->disks->len; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(fixture->view->disks, i);
        vmsnap_scan_wait(disk->scan, G_MAXINT64, latch_count, &complete);
    }
    latch_wait(&complete, fixture->view->disks->len);
    latch_clear(&complete);
}

static void fixture_scan(Fixture *fixture) {
    fixture_start(fixture);
    fixture_wait(fixture);
}

static void fixture_clear(Fixture *fixture) {
    memory_snapshot_end(fixture->snapshot);
    vmsnap_view_free(fixture->view);
    vmsnap_snapshot_free(fixture->snapshot);
}

/* Returns: (transfer full): as a string; consumes @bytes. */
static char *text_of(GBytes *bytes) {
    gsize length;
    g_autofree char *data = g_bytes_unref_to_data(bytes, &length);
    return g_strndup(data, length);
}

static const VmsnapNode *find(const Fixture *fixture, const char *directory, const char *name) {
    const VmsnapNode *node = vmsnap_tree_get(fixture->view->tree, VMSNAP_TREE_ROOT_ID);
    if (directory)
        node = vmsnap_tree_lookup(node, directory);
    return vmsnap_tree_lookup(node, name);
}

static void test_files_stand_where_the_design_says(void) {
    static const char *const in_root[] = {"vda.raw", "vdb.raw", "domain.xml", "manifest.json"};
    static const char *const in_hidden[] = {"backup.xml", "status.json", "status", "speed"};
    Fixture fixture;
    fixture_init(&fixture);
    fixture_start(&fixture);
    for (size_t i = 0; i < G_N_ELEMENTS(in_root); i++)
        g_assert_nonnull(find(&fixture, NULL, in_root[i]));
    for (size_t i = 0; i < G_N_ELEMENTS(in_hidden); i++)
        g_assert_nonnull(find(&fixture, ".vmsnap", in_hidden[i]));
    g_assert_true(find(&fixture, NULL, ".vmsnap")->hidden);
    g_assert_null(find(&fixture, NULL, "backup.xml"));
    g_assert_null(find(&fixture, ".vmsnap", "domain.xml"));
    fixture_clear(&fixture);
}

static void test_files_know_their_disk_and_size(void) {
    Fixture fixture;
    fixture_init(&fixture);
    fixture_start(&fixture);
    const VmsnapNode *disk = find(&fixture, NULL, "vdb.raw");
    g_assert_true(disk->disk == g_ptr_array_index(fixture.snapshot->disks, 1));
    g_assert_cmpuint(disk->layout->size_bytes, ==, DISK_BYTES);
    g_assert_null(find(&fixture, NULL, "domain.xml")->disk);
    g_assert_cmpuint(find(&fixture, NULL, "domain.xml")->layout->size_bytes, ==, 9);
    fixture_clear(&fixture);
}

static void test_a_view_asks_nothing_before_it_starts(void) {
    Fixture fixture;
    fixture_init(&fixture);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 0);
    fixture_scan(&fixture);
    g_assert_cmpuint(memory_snapshot_count(fixture.snapshot).questions, ==, 2);
    fixture_clear(&fixture);
}

static void test_a_machine_without_disks_has_its_other_files(void) {
    Fixture fixture = {.snapshot = memory_snapshot_new(NULL)};
    fixture.view = vmsnap_view_new(fixture.snapshot, &view_options);
    fixture_start(&fixture);
    g_autofree char *status = vmsnap_status_build_json(fixture.view);
    g_autofree char *text = vmsnap_status_build_text(fixture.view);
    g_assert_nonnull(find(&fixture, NULL, "manifest.json"));
    g_assert_nonnull(strstr(text, "100 %"));
    fixture_clear(&fixture);
}

/* What is needed to know how large a file is was asked for before there is one. */
static void test_a_qcow2_file_is_of_one_disk(void) {
    Fixture fixture;
    fixture_init_with(&fixture, snapshot_new(NULL), &qcow2_options);
    fixture_start(&fixture);
    g_assert_null(find(&fixture, NULL, "vda.raw"));
    for (guint i = 0; i < 2; i++) {
        const VmsnapNode *file = find(&fixture, NULL, i ? "vdb.qcow2" : "vda.qcow2");
        const VmsnapDiskView *disk = g_ptr_array_index(fixture.view->disks, i);
        g_assert_true(file->disk == g_ptr_array_index(fixture.snapshot->disks, i));
        g_assert_true(vmsnap_scan_is_complete(disk->scan));
        /* 64 of 128 clusters, an L2 table, and before that four clusters of other tables. */
        g_assert_cmpuint(file->layout->size_bytes, ==, 69 * 65536);
    }
    fixture_clear(&fixture);
}

static void test_a_vma_file_has_all_disks(void) {
    Fixture fixture;
    fixture_init_with(&fixture, snapshot_new(NULL), &vma_options);
    fixture_start(&fixture);
    const VmsnapNode *file = find(&fixture, NULL, "vm1.vma");
    g_assert_null(file->disk);
    g_assert_null(file->layout->disk);
    g_assert_null(find(&fixture, NULL, "vda.vma"));
    g_assert_null(find(&fixture, NULL, "vda.raw"));
    /* What describes the machine is in the archive, and beside it as well. */
    g_assert_nonnull(find(&fixture, NULL, "domain.xml"));
    for (guint i = 0; i < 2; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(fixture.view->disks, i);
        g_assert_true(vmsnap_scan_is_complete(disk->scan));
    }
    g_assert_cmpuint(file->layout->size_bytes, >, DISK_BYTES);
    g_assert_cmpuint(file->layout->size_bytes, <, DISK_BYTES + 20000);
    fixture_clear(&fixture);
}

static void test_no_disks_are_no_files_in_any_format(void) {
    static const VmsnapViewOptions *const options[] = {&view_options, &qcow2_options, &vma_options};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        Fixture fixture;
        g_autoptr(GError) error = NULL;
        fixture_init_with(&fixture, memory_snapshot_new(NULL), options[i]);
        g_assert_true(vmsnap_view_check(options[i], fixture.snapshot, &error));
        guint n_files = vmsnap_tree_count(fixture.view->tree); /* the manifest comes with the start */
        fixture_start(&fixture);
        /* Only the manifest has come. */
        g_assert_cmpuint(vmsnap_tree_count(fixture.view->tree), ==, n_files + 1);
        fixture_clear(&fixture);
    }
}

/* What a view says before it blocks */

/* @snapshot: (transfer full); @named: what the error names, or NULL for none */
static void check_view_check(VmsnapSnapshot *snapshot, const VmsnapViewOptions *options, const char *named) {
    g_autoptr(GError) error = NULL;
    gboolean accepted = vmsnap_view_check(options, snapshot, &error);
    g_assert_cmpint(accepted, ==, named == NULL);
    if (named) {
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
        g_assert_nonnull(strstr(error->message, named));
    }
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static VmsnapSnapshot *snapshot_with_file(const char *name, VmsnapFileKind kind) {
    VmsnapSnapshot *snapshot = snapshot_new(NULL);
    vmsnap_snapshot_add_file(snapshot, name, g_bytes_new("", 0), kind);
    return snapshot;
}

static void test_names_are_those_of_one_file_each(void) {
    static const char *const taken[] = {"vda.raw", "vdb.raw", "domain.xml", "manifest.json", ".vmsnap"};
    for (size_t i = 0; i < G_N_ELEMENTS(taken); i++) {
        g_autofree char *named = g_strdup_printf("'%s'", taken[i]);
        check_view_check(snapshot_with_file(taken[i], VMSNAP_FILE_CONFIG), &view_options, named);
        check_view_check(snapshot_with_file(taken[i], VMSNAP_FILE_BOOT), &view_options, named);
        check_view_check(snapshot_with_file(taken[i], VMSNAP_FILE_HIDDEN), &view_options, NULL);
    }
    check_view_check(snapshot_with_file("vda.qcow2", VMSNAP_FILE_CONFIG), &view_options, NULL);
    check_view_check(snapshot_with_file("vdb.qcow2", VMSNAP_FILE_CONFIG), &qcow2_options, "'vdb.qcow2'");
    check_view_check(snapshot_with_file("vda.vma", VMSNAP_FILE_CONFIG), &vma_options, NULL);
    check_view_check(snapshot_with_file("vm1.vma", VMSNAP_FILE_CONFIG), &vma_options, "'vm1.vma'");
    check_view_check(snapshot_new(NULL), &vma_options, NULL);
}

static void test_what_a_format_cannot_hold_is_told(void) {
    VmsnapSnapshot *snapshot = snapshot_new(NULL);
    (void)memory_snapshot_add_disk(snapshot, "vdc", extents_alternate(513, 100));
    check_view_check(snapshot, &qcow2_options, "'vdc'");
}

/* A view that cannot start */

static gboolean at_once(gpointer user_data) {
    (void)user_data;
    return TRUE;
}

/* @error_part: what the error says */
static void check_start_fails(Fixture *fixture, VmsnapInterruptedFunc interrupted, const char *error_part) {
    g_autoptr(GError) error = NULL;
    g_assert_false(vmsnap_view_start(fixture->view, interrupted, NULL, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    if (!strstr(error->message, error_part))
        g_error("'%s' does not say '%s'", error->message, error_part);
}

/* No answer comes before the end. */
static void test_a_start_may_be_interrupted(void) {
    Fixture fixture;
    fixture_init_with(&fixture, snapshot_new(NULL), &qcow2_options);
    memory_snapshot_hold(fixture.snapshot);
    check_start_fails(&fixture, at_once, "interrupted");
    g_assert_null(find(&fixture, NULL, "vda.qcow2"));
    fixture_clear(&fixture);
}

static int questions_left; /* atomic */

static gboolean after_some_time(gpointer user_data) {
    (void)user_data;
    return g_atomic_int_dec_and_test(&questions_left);
}

static void test_a_start_looks_for_an_interruption_again(void) {
    Fixture fixture;
    fixture_init_with(&fixture, snapshot_new(NULL), &vma_options);
    memory_snapshot_hold(fixture.snapshot);
    g_atomic_int_set(&questions_left, 3);
    check_start_fails(&fixture, after_some_time, "interrupted");
    g_assert_cmpint(g_atomic_int_get(&questions_left), ==, 0);
    fixture_clear(&fixture);
}

/* Raw files need not know how much is data: their sizes are known. */
static void test_raw_files_wait_for_nothing(void) {
    Fixture fixture;
    fixture_init(&fixture);
    memory_snapshot_hold(fixture.snapshot);
    fixture_start(&fixture);
    g_assert_nonnull(find(&fixture, NULL, "vda.raw"));
    fixture_clear(&fixture);
}

/* Disks of one window and of several, and each question may be the first that fails. */
static void check_start_with_faults(const VmsnapViewOptions *options, const MemoryFaults *faults) {
    Fixture fixture;
    VmsnapSnapshot *snapshot = memory_snapshot_new(faults);
    (void)memory_snapshot_add_disk(snapshot, "vda", extents_alternate(DISK_BYTES, 64 << 10));
    (void)memory_snapshot_add_disk(snapshot, "vdb", extents_alternate(UINT64_C(7) << 30, UINT64_C(1) << 30));
    fixture_init_with(&fixture, snapshot, options);
    check_start_fails(&fixture, never, "failed to learn which parts of disk 'vd");
    fixture_clear(&fixture);
}

static void test_a_start_without_extents_fails(void) {
    for (unsigned call = 1; call <= 5; call++) {
        for (int rest = 0; rest < 2; rest++) {
            const MemoryFaults faults = {.fail_call = call, .fail_rest = rest};
            const MemoryFaults at_once_faults = {.fail_call = call, .fail_rest = rest, .fail_at_once = TRUE};
            check_start_with_faults(&qcow2_options, &faults);
            check_start_with_faults(&vma_options, &faults);
            check_start_with_faults(&vma_options, &at_once_faults);
        }
    }
    const MemoryFaults silent = {.say_nothing = TRUE};
    check_start_with_faults(&qcow2_options, &silent);
}

static void test_a_start_says_why_the_snapshot_is_lost(void) {
    const MemoryFaults faults = {.fail_call = 1, .fail_rest = TRUE};
    Fixture fixture;
    fixture_init_with(&fixture, snapshot_new(&faults), &vma_options);
    vmsnap_snapshot_break(fixture.snapshot, "the guest was stopped");
    check_start_fails(&fixture, never, "the guest was stopped");
    fixture_clear(&fixture);
}

static JsonObject *parse(JsonParser *parser, const char *text, gssize length) {
    g_autoptr(GError) error = NULL;
    gboolean parsed = json_parser_load_from_data(parser, text, length, &error);
    g_assert_no_error(error);
    g_assert_true(parsed);
    return json_node_get_object(json_parser_get_root(parser));
}

static void test_the_manifest_has_what_the_design_promises(void) {
    Fixture fixture;
    fixture_init(&fixture);
    fixture_start(&fixture);
    g_autoptr(GBytes) manifest = vmsnap_manifest_build(fixture.view);
    g_autoptr(JsonParser) parser = json_parser_new();
    gsize length;
    const char *text = g_bytes_get_data(manifest, &length);
    g_assert_cmpuint(find(&fixture, NULL, "manifest.json")->layout->size_bytes, ==, length);
    JsonObject *root = parse(parser, text, (gssize)length);
    g_assert_cmpstr(json_object_get_string_member(root, "uuid"), ==, fixture.snapshot->uuid);
    g_assert_cmpstr(json_object_get_string_member(root, "instant"), ==, "2023-11-14T22:13:20.123456789Z");
    g_assert_true(json_object_has_member(root, "checkpoint"));

    JsonObject *source = json_object_get_object_member(root, "source");
    g_assert_cmpstr(json_object_get_string_member(source, "backend"), ==, "memory");
    g_assert_cmpstr(json_object_get_string_member(source, "name"), ==, "vm1");
    g_assert_cmpstr(json_object_get_string_member(source, "uuid"), ==, fixture.snapshot->machine_uuid);

    JsonArray *disks = json_object_get_array_member(root, "disks");
    g_assert_cmpuint(json_array_get_length(disks), ==, 2);
    JsonObject *disk = json_array_get_object_element(disks, 1);
    g_assert_cmpstr(json_object_get_string_member(disk, "name"), ==, "vdb");
    g_assert_cmpstr(json_object_get_string_member(disk, "file"), ==, "vdb.raw");
    g_assert_cmpstr(json_object_get_string_member(disk, "source"), ==, "/images/vdb.qcow2");
    g_assert_cmpint(json_object_get_int_member(disk, "size"), ==, (gint64)DISK_BYTES);

    JsonArray *left_out = json_object_get_array_member(root, "left-out");
    g_assert_cmpuint(json_array_get_length(left_out), ==, 1);
    JsonObject *cdrom = json_array_get_object_element(left_out, 0);
    g_assert_cmpstr(json_object_get_string_member(cdrom, "name"), ==, "sda");
    g_assert_cmpstr(json_object_get_string_member(cdrom, "reason"), ==, "is a \"CD-ROM\"\n\\");

    JsonObject *versions = json_object_get_object_member(root, "versions");
    g_assert_cmpstr(json_object_get_string_member(versions, "vmsnap"), ==, "0.1");
    g_assert_cmpstr(json_object_get_string_member(versions, "qemu"), ==, "7.2.0");
    fixture_clear(&fixture);
}

static void test_the_manifest_names_the_files_of_each_format(void) {
    static const struct {
        const VmsnapFormat *format;
        const char *files[2];
    } cases[] = {{&vmsnap_format_raw, {"vda.raw", "vdb.raw"}},
                 {&vmsnap_format_qcow2, {"vda.qcow2", "vdb.qcow2"}},
                 {&vmsnap_format_vma, {"vm1.vma", "vm1.vma"}}};
    Fixture fixture;
    fixture_init(&fixture);
    fixture_start(&fixture);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        VmsnapView view = *fixture.view;
        view.format.format = cases[i].format;
        g_autoptr(GBytes) manifest = vmsnap_manifest_build(&view);
        g_autoptr(JsonParser) parser = json_parser_new();
        gsize length;
        const char *text = g_bytes_get_data(manifest, &length);
        JsonArray *disks = json_object_get_array_member(parse(parser, text, (gssize)length), "disks");
        for (guint n = 0; n < 2; n++) {
            JsonObject *disk = json_array_get_object_element(disks, n);
            g_assert_cmpstr(json_object_get_string_member(disk, "file"), ==, cases[i].files[n]);
            g_assert_cmpstr(json_object_get_string_member(disk, "format"), ==, cases[i].format->name);
            g_assert_cmpint(json_object_get_int_member(disk, "size"), ==, (gint64)DISK_BYTES);
        }
    }
    fixture_clear(&fixture);
}

static void test_instants_are_rfc_3339_in_utc(void) {
    static const struct {
        int64_t instant_ns;
        const char *text;
    } cases[] = {
        {0, "1970-01-01T00:00:00.000000000Z"},
        {1, "1970-01-01T00:00:00.000000001Z"},
        {INT64_C(1709210096000000000), "2024-02-29T12:34:56.000000000Z"},
        {INT64_C(4102444799999999999), "2099-12-31T23:59:59.999999999Z"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = vmsnap_instant_format(cases[i].instant_ns);
        g_assert_cmpstr(text, ==, cases[i].text);
    }
}

static JsonObject *status_parse(JsonParser *parser, const Fixture *fixture) {
    const VmsnapNode *node = find(fixture, ".vmsnap", "status.json");
    g_autofree char *text = text_of(node->generate(node->live_data));
    g_assert_true(g_str_has_suffix(text, "\n"));
    return parse(parser, text, -1);
}

static void test_the_status_has_what_the_design_promises(void) {
    Fixture fixture;
    fixture_init(&fixture);
    fixture_scan(&fixture);
    VmsnapDiskView *vda = g_ptr_array_index(fixture.view->disks, 0);
    vmsnap_progress_add(vda->progress, 0, 64 << 10);

    g_autoptr(JsonParser) parser = json_parser_new();
    JsonObject *root = status_parse(parser, &fixture);
    g_assert_cmpstr(json_object_get_string_member(root, "status"), ==, "active");
    g_assert_false(json_object_has_member(root, "errmsg"));
    g_assert_cmpstr(json_object_get_string_member(root, "uuid"), ==, fixture.snapshot->uuid);
    g_assert_cmpint(json_object_get_int_member(root, "start-time"), ==, 1700000000);
    g_assert_cmpint(json_object_get_int_member(root, "total"), ==, (gint64)(2 * DISK_BYTES));
    g_assert_cmpint(json_object_get_int_member(root, "zero-bytes"), ==, (gint64)DISK_BYTES);
    g_assert_cmpint(json_object_get_int_member(root, "transferred"), ==, (gint64)DISK_BYTES + (64 << 10));
    g_assert_cmpint(json_object_get_int_member(root, "dirty"), ==, (gint64)(2 * DISK_BYTES));

    JsonArray *disks = json_object_get_array_member(root, "disks");
    g_assert_cmpuint(json_array_get_length(disks), ==, 2);
    for (guint i = 0; i < 2; i++) {
        JsonObject *disk = json_array_get_object_element(disks, i);
        g_assert_cmpstr(json_object_get_string_member(disk, "name"), ==, i ? "vdb" : "vda");
        g_assert_cmpint(json_object_get_int_member(disk, "size"), ==, (gint64)DISK_BYTES);
        g_assert_cmpint(json_object_get_int_member(disk, "data"), ==, (gint64)DISK_BYTES / 2);
        g_assert_cmpint(json_object_get_int_member(disk, "read"), ==, i ? 0 : 64 << 10);
        g_assert_false(json_object_has_member(disk, "scratch-used"));
    }
    fixture_clear(&fixture);
}

/* When every byte has been read or is known to be zero, there is nothing left to transfer. */
static void test_transferred_reaches_total(void) {
    Fixture fixture;
    fixture_init(&fixture);
    fixture_scan(&fixture);
    for (guint i = 0; i < 2; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(fixture.view->disks, i);
        for (uint64_t offset = 0; offset < DISK_BYTES; offset += 128 << 10)
            vmsnap_progress_add(disk->progress, offset, 64 << 10);
    }
    g_autoptr(JsonParser) parser = json_parser_new();
    JsonObject *root = status_parse(parser, &fixture);
    g_assert_cmpint(json_object_get_int_member(root, "transferred"), ==, json_object_get_int_member(root, "total"));
    g_autofree char *text = vmsnap_status_build_text(fixture.view);
    g_assert_nonnull(strstr(text, "100 %"));
    fixture_clear(&fixture);
}

static void test_scratch_is_told_where_there_is_one(void) {
    Fixture fixture;
    fixture_init(&fixture);
    memory_disk_set_scratch(g_ptr_array_index(fixture.snapshot->disks, 0), 100000, 5000000);

    g_autoptr(JsonParser) parser = json_parser_new();
    JsonArray *disks = json_object_get_array_member(status_parse(parser, &fixture), "disks");
    JsonObject *disk = json_array_get_object_element(disks, 0);
    g_assert_cmpint(json_object_get_int_member(disk, "scratch-used"), ==, 100000);
    g_assert_cmpint(json_object_get_int_member(disk, "scratch-left"), ==, 5000000);
    g_assert_false(json_object_has_member(json_array_get_object_element(disks, 1), "scratch-used"));
    g_autofree char *text = vmsnap_status_build_text(fixture.view);
    g_assert_nonnull(strstr(text, "scratch"));
    fixture_clear(&fixture);
}

static void test_a_lost_snapshot_says_so_and_why(void) {
    Fixture fixture;
    fixture_init(&fixture);
    vmsnap_snapshot_break(fixture.snapshot, "the \"guest\" was\nstopped");
    g_autoptr(JsonParser) parser = json_parser_new();
    JsonObject *root = status_parse(parser, &fixture);
    g_assert_cmpstr(json_object_get_string_member(root, "status"), ==, "error");
    g_assert_cmpstr(json_object_get_string_member(root, "errmsg"), ==, "the \"guest\" was\nstopped");
    g_autofree char *text = vmsnap_status_build_text(fixture.view);
    g_assert_nonnull(strstr(text, "error: the \"guest\" was\nstopped"));
    fixture_clear(&fixture);
}

static void test_the_status_for_people_names_each_disk(void) {
    Fixture fixture;
    fixture_init(&fixture);
    fixture_scan(&fixture);
    const VmsnapNode *node = find(&fixture, ".vmsnap", "status");
    g_autofree char *text = text_of(node->generate(node->live_data));
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_assert_cmpuint(g_strv_length(lines), ==, 6);
    g_assert_cmpstr(lines[0], ==, "snapshot 6f1c2d3e-0000-4000-8000-000000000001 of vm1");
    g_assert_nonnull(strstr(lines[1], "2023-11-14T22:13:20.123456789Z"));
    g_assert_nonnull(strstr(lines[2], "active, 50 % done"));
    g_assert_true(g_str_has_prefix(lines[3], "vda "));
    g_assert_true(g_str_has_prefix(lines[4], "vdb "));
    g_assert_cmpstr(lines[5], ==, "");
    fixture_clear(&fixture);
}

static gpointer read_status(gpointer view) {
    for (int i = 0; i < 20; i++) {
        g_autofree char *json = vmsnap_status_build_json(view);
        g_autofree char *text = vmsnap_status_build_text(view);
        g_assert_cmpint(json[0], ==, '{');
        g_assert_true(g_str_has_prefix(text, "snapshot "));
    }
    return NULL;
}

/* From when the view has started on, while its disks are mapped. */
static void test_threads_may_read_the_status_at_once(void) {
    Fixture fixture;
    GThread *threads[3];
    fixture_init(&fixture);
    memory_snapshot_hold(fixture.snapshot);
    fixture_start(&fixture);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("status", read_status, fixture.view);
    memory_snapshot_release(fixture.snapshot);
    fixture_wait(&fixture);
    vmsnap_snapshot_break(fixture.snapshot, "the guest was stopped");
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        (void)g_thread_join(threads[i]);
    fixture_clear(&fixture);
}

static void check_speed(const Fixture *fixture, const char *expected) {
    const VmsnapNode *node = find(fixture, ".vmsnap", "speed");
    g_autofree char *text = text_of(node->generate(node->live_data));
    g_assert_cmpstr(text, ==, expected);
}

static int store_speed(const Fixture *fixture, const char *text) {
    const VmsnapNode *node = find(fixture, ".vmsnap", "speed");
    return node->store(text, node->live_data);
}

static void test_the_speed_takes_what_people_write(void) {
    static const struct {
        const char *text;
        const char *speed;
    } cases[] = {{"50M", "52428800\n"}, {"1k", "1024\n"}, {"2G", "2147483648\n"}, {"123456", "123456\n"}, {"0", "0\n"}};
    Fixture fixture;
    fixture_init(&fixture);
    check_speed(&fixture, "0\n");
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpint(store_speed(&fixture, cases[i].text), ==, 0);
        check_speed(&fixture, cases[i].speed);
    }
    fixture_clear(&fixture);
}

static void test_the_speed_stays_where_nobody_understands(void) {
    static const char *const texts[] = {"", "fast", "-1", "50MB", "5 M", "1.5M", "18446744073709551616", "50M\n10M"};
    Fixture fixture;
    fixture_init(&fixture);
    g_assert_cmpint(store_speed(&fixture, "7K"), ==, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        g_assert_cmpint(store_speed(&fixture, texts[i]), ==, -EINVAL);
    check_speed(&fixture, "7168\n");
    fixture_clear(&fixture);
}

static void test_only_the_speed_takes_orders(void) {
    Fixture fixture;
    fixture_init(&fixture);
    g_assert_nonnull(find(&fixture, ".vmsnap", "speed")->store);
    for (uint64_t id = VMSNAP_TREE_ROOT_ID; id <= vmsnap_tree_count(fixture.view->tree); id++) {
        const VmsnapNode *node = vmsnap_tree_get(fixture.view->tree, id);
        g_assert_cmpint(node->store != NULL, ==, g_str_equal(node->name ? node->name : "", "speed"));
    }
    fixture_clear(&fixture);
}

/* The limit that the view begins with is that of its disks, and so is one that is set later. */
static void test_the_speed_is_that_of_all_disks(void) {
    static const VmsnapViewOptions slow = {.speed_bytes_per_s = 1 << 20, .format = {.format = &vmsnap_format_raw}};
    Fixture fixture = {.snapshot = memory_snapshot_new(NULL)};
    (void)memory_snapshot_add_disk(fixture.snapshot, "vda", extents_alternate(DISK_BYTES, 64 << 10));
    (void)memory_snapshot_add_disk(fixture.snapshot, "vdb", extents_alternate(DISK_BYTES, 64 << 10));
    fixture.view = vmsnap_view_new(fixture.snapshot, &slow);
    check_speed(&fixture, "1048576\n");
    g_assert_cmpint(store_speed(&fixture, "3M"), ==, 0);
    for (guint i = 0; i < fixture.view->disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(fixture.view->disks, i);
        g_assert_cmpuint(vmsnap_throttle_get_rate(disk->throttle), ==, 3 << 20);
    }
    g_assert_true(fixture.view->resources.throttle == fixture.view->throttle);
    fixture_clear(&fixture);
}

/* Returns: how many buffers a view with so much memory for read-ahead has. */
static guint count_ahead_buffers(uint64_t readahead_bytes) {
    const VmsnapViewOptions options = {.readahead_bytes = readahead_bytes, .format = {.format = &vmsnap_format_raw}};
    Fixture fixture = {.snapshot = memory_snapshot_new(NULL)};
    fixture.view = vmsnap_view_new(fixture.snapshot, &options);
    g_autoptr(GPtrArray) taken = g_ptr_array_new();
    VmsnapBufferPool *pool = fixture.view->resources.ahead;
    g_assert_cmpuint(vmsnap_buffer_pool_get_buffer_bytes(pool), ==, VMSNAP_READER_CHUNK_BYTES);
    for (uint8_t *buffer; (buffer = vmsnap_buffer_pool_try_take(pool, 0));)
        g_ptr_array_add(taken, buffer);
    for (guint i = 0; i < taken->len; i++)
        vmsnap_buffer_pool_give(pool, g_ptr_array_index(taken, i));
    fixture_clear(&fixture);
    return taken->len;
}

static void test_readahead_is_memory_for_all(void) {
    g_assert_cmpuint(count_ahead_buffers(0), ==, 0);
    g_assert_cmpuint(count_ahead_buffers(1), ==, 1);
    g_assert_cmpuint(count_ahead_buffers(VMSNAP_READER_CHUNK_BYTES), ==, 1);
    g_assert_cmpuint(count_ahead_buffers(VMSNAP_READER_CHUNK_BYTES + 1), ==, 2);
    g_assert_cmpuint(count_ahead_buffers(40 * VMSNAP_READER_CHUNK_BYTES), ==, 40);
}

int main(int argc, char **argv) {
    /* A time zone that no instant may be told in. */
    g_assert_true(g_setenv("TZ", "Asia/Kathmandu", TRUE));
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/view/files-stand-where-the-design-says", test_files_stand_where_the_design_says);
    g_test_add_func("/view/files-know-their-disk-and-size", test_files_know_their_disk_and_size);
    g_test_add_func("/view/a-view-asks-nothing-before-it-starts", test_a_view_asks_nothing_before_it_starts);
    g_test_add_func("/view/a-machine-without-disks-has-its-other-files",
                    test_a_machine_without_disks_has_its_other_files);
    g_test_add_func("/view/a-qcow2-file-is-of-one-disk", test_a_qcow2_file_is_of_one_disk);
    g_test_add_func("/view/a-vma-file-has-all-disks", test_a_vma_file_has_all_disks);
    g_test_add_func("/view/no-disks-are-no-files-in-any-format", test_no_disks_are_no_files_in_any_format);
    g_test_add_func("/view/names-are-those-of-one-file-each", test_names_are_those_of_one_file_each);
    g_test_add_func("/view/what-a-format-cannot-hold-is-told", test_what_a_format_cannot_hold_is_told);
    g_test_add_func("/view/a-start-may-be-interrupted", test_a_start_may_be_interrupted);
    g_test_add_func("/view/a-start-looks-for-an-interruption-again", test_a_start_looks_for_an_interruption_again);
    g_test_add_func("/view/raw-files-wait-for-nothing", test_raw_files_wait_for_nothing);
    g_test_add_func("/view/a-start-without-extents-fails", test_a_start_without_extents_fails);
    g_test_add_func("/view/a-start-says-why-the-snapshot-is-lost", test_a_start_says_why_the_snapshot_is_lost);
    g_test_add_func("/view/the-speed-takes-what-people-write", test_the_speed_takes_what_people_write);
    g_test_add_func("/view/the-speed-stays-where-nobody-understands", test_the_speed_stays_where_nobody_understands);
    g_test_add_func("/view/only-the-speed-takes-orders", test_only_the_speed_takes_orders);
    g_test_add_func("/view/the-speed-is-that-of-all-disks", test_the_speed_is_that_of_all_disks);
    g_test_add_func("/view/readahead-is-memory-for-all", test_readahead_is_memory_for_all);
    g_test_add_func("/manifest/has-what-the-design-promises", test_the_manifest_has_what_the_design_promises);
    g_test_add_func("/manifest/names-the-files-of-each-format", test_the_manifest_names_the_files_of_each_format);
    g_test_add_func("/manifest/instants-are-rfc-3339-in-utc", test_instants_are_rfc_3339_in_utc);
    g_test_add_func("/status/has-what-the-design-promises", test_the_status_has_what_the_design_promises);
    g_test_add_func("/status/transferred-reaches-total", test_transferred_reaches_total);
    g_test_add_func("/status/scratch-is-told-where-there-is-one", test_scratch_is_told_where_there_is_one);
    g_test_add_func("/status/a-lost-snapshot-says-so-and-why", test_a_lost_snapshot_says_so_and_why);
    g_test_add_func("/status/for-people-names-each-disk", test_the_status_for_people_names_each_disk);
    g_test_add_func("/status/threads-may-read-it-at-once", test_threads_may_read_the_status_at_once);
    return g_test_run();
}
