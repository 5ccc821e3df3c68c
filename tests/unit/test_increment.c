/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which disks are incremental, and since when, from what there is: named, where all must fit, or left to vmsnap. */
#include "backend/increment.h"

#include "extents.h"
#include "memory_backend.h"
#include "vmsnap/error.h"

#include <string.h>

#define GIB(n) ((uint64_t)(n) << 30)
#define OWN(committed, more) "made by vmsnap: {\"snapshot\":\"u\",\"committed\":" committed more "}"

typedef struct {
    VmsnapDomain *domain;
    GPtrArray *selected;
    GPtrArray *checkpoints;
    VmsnapSnapshot *snapshot;
} Fixture;

/* @formats: of vda, vdb and so on, until NULL; "" for one that the XML does not tell */
static void fixture_init(Fixture *fixture, const char *const *formats) {
    GString *xml = g_string_new("<domain><name>vm1</name><uuid>6f1c2d3e-0000-4000-8000-00000000000a</uuid><devices>");
    fixture->snapshot = memory_snapshot_new(NULL);
    for (char letter = 'a'; *formats; letter++, formats++) {
        g_autofree char *target = g_strdup_printf("vd%c", letter);
        g_string_append_printf(xml, "<disk type='file'><source file='/%c'/><target dev='%s'/>", letter, target);
        if (**formats)
            g_string_append_printf(xml, "<driver type='%s'/>", *formats);
        (void)g_string_append(xml, "</disk>");
        (void)memory_snapshot_add_disk(fixture->snapshot, target, extents_alternate(GIB(2), GIB(1)));
    }
    (void)g_string_append(xml, "</devices></domain>");
    fixture->domain = vmsnap_domain_parse(xml->str, NULL);
    g_string_free(xml, TRUE);
    fixture->selected = vmsnap_domain_select(fixture->domain, NULL, NULL, fixture->snapshot, NULL);
    g_assert_cmpuint(fixture->selected->len, ==, fixture->snapshot->disks->len);
    fixture->checkpoints = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_checkpoint_free);
}

#define FIXTURE_INIT(fixture, ...) fixture_init(fixture, (const char *const[]){__VA_ARGS__, NULL})

static void fixture_clear(Fixture *fixture) {
    g_ptr_array_unref(fixture->checkpoints);
    g_ptr_array_unref(fixture->selected);
    vmsnap_domain_free(fixture->domain);
    memory_snapshot_end(fixture->snapshot);
    vmsnap_snapshot_free(fixture->snapshot);
}

/* @disks: that it tracks, separated by blanks */
static void add_checkpoint(Fixture *fixture, const char *name, const char *description, const char *disks) {
    g_auto(GStrv) names = g_strsplit(disks, " ", -1);
    g_autoptr(GString) xml = g_string_new("<domaincheckpoint><disks>");
    for (char **disk = names; *disk; disk++)
        g_string_append_printf(xml, "<disk name='%s' checkpoint='bitmap'/>", *disk);
    g_autofree char *text = g_markup_printf_escaped(
        "</disks><name>%s</name><description>%s</description></domaincheckpoint>", name, description);
    (void)g_string_append(xml, text);
    g_autoptr(GError) error = NULL;
    g_ptr_array_add(fixture->checkpoints, vmsnap_checkpoint_parse(xml->str, &error));
    g_assert_no_error(error);
}

static VmsnapDisk *disk_at(const Fixture *fixture, guint i) {
    return g_ptr_array_index(fixture->snapshot->disks, i);
}

static void plan(const Fixture *fixture, const VmsnapBeginOptions *options) {
    g_autoptr(GError) error = NULL;
    gboolean planned =
        vmsnap_increment_plan(options, fixture->checkpoints, fixture->selected, fixture->snapshot, &error);
    g_assert_no_error(error);
    g_assert_true(planned);
}

static void check_error(const GError *error, const char *const *parts) {
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_null(strchr(error->message, '\n'));
    for (; *parts; parts++)
        if (!strstr(error->message, *parts))
            g_error("'%s' does not say '%s'", error->message, *parts);
}

static void check_refused(const Fixture *fixture, const VmsnapBeginOptions *options, const char *const *parts) {
    g_autoptr(GError) error = NULL;
    g_assert_false(vmsnap_increment_plan(options, fixture->checkpoints, fixture->selected, fixture->snapshot, &error));
    check_error(error, parts);
}

#define CHECK_REFUSED(fixture, options, ...) check_refused(fixture, options, (const char *const[]){__VA_ARGS__, NULL})

static void check_since(const Fixture *fixture, guint i, const char *since) {
    g_assert_cmpstr(disk_at(fixture, i)->since, ==, since);
    g_assert_null(disk_at(fixture, i)->full_reason);
}

/* @reason: a part of it */
static void check_full(const Fixture *fixture, guint i, const char *reason) {
    g_assert_null(disk_at(fixture, i)->since);
    g_assert_nonnull(disk_at(fixture, i)->full_reason);
    if (!strstr(disk_at(fixture, i)->full_reason, reason))
        g_error("'%s' does not say '%s'", disk_at(fixture, i)->full_reason, reason);
}

static const VmsnapBeginOptions incremental = {.incremental = TRUE};

static void test_nothing_asked_is_nothing_planned(void) {
    static const VmsnapBeginOptions none = {0};
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "raw");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vda");
    plan(&fixture, &none);
    check_since(&fixture, 0, NULL);
    check_since(&fixture, 1, NULL);
    g_assert_null(fixture.snapshot->checkpoint);
    g_assert_null(fixture.snapshot->since);
    fixture_clear(&fixture);
}

static void test_a_named_checkpoint_is_created(void) {
    static const VmsnapBeginOptions options = {.checkpoint = "cp2"};
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vda vdb");
    plan(&fixture, &options);
    g_assert_cmpstr(fixture.snapshot->checkpoint, ==, "cp2");
    g_assert_null(fixture.snapshot->since);
    check_since(&fixture, 0, NULL);
    check_since(&fixture, 1, NULL);
    fixture_clear(&fixture);
}

/* Disks that are selected are all in it, or there is none. */
static void test_a_named_checkpoint_tracks_all_disks(void) {
    static const VmsnapBeginOptions options = {.checkpoint = "cp2"};
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "raw");
    CHECK_REFUSED(&fixture, &options, "checkpoint 'cp2'", "disk 'vdb'", "raw", "exclude=vdb");
    fixture_clear(&fixture);
    FIXTURE_INIT(&fixture, "", "qcow2");
    CHECK_REFUSED(&fixture, &options, "checkpoint 'cp2'", "disk 'vda'", "no known format");
    fixture_clear(&fixture);
}

static void test_no_name_is_given_twice(void) {
    static const VmsnapBeginOptions options = {.checkpoint = "cp1"};
    static const char *const kept[] = {"", "of somebody else", OWN("true", "")};
    for (size_t i = 0; i < G_N_ELEMENTS(kept); i++) {
        Fixture fixture;
        FIXTURE_INIT(&fixture, "qcow2");
        add_checkpoint(&fixture, "cp1", kept[i], "vda");
        CHECK_REFUSED(&fixture, &options, "'cp1'", "'vm1'", "choose another");
        g_assert_null(fixture.snapshot->checkpoint);
        fixture_clear(&fixture);
    }
    /* One that no backup rests on is deleted before. */
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("false", ""), "vda");
    plan(&fixture, &options);
    g_assert_cmpstr(fixture.snapshot->checkpoint, ==, "cp1");
    fixture_clear(&fixture);
}

/* Whoever names a checkpoint may name one that is not vmsnap's, or not the newest. */
static void test_changes_count_from_the_named_checkpoint(void) {
    static const VmsnapBeginOptions options = {.since = "cp1"}, both = {.since = "cp1", .checkpoint = "cp3"};
    for (int with_new = 0; with_new < 2; with_new++) {
        Fixture fixture;
        FIXTURE_INIT(&fixture, "qcow2", "qcow2");
        add_checkpoint(&fixture, "cp1", "of somebody else", "vda vdb");
        add_checkpoint(&fixture, "cp2", OWN("true", ""), "vda vdb");
        plan(&fixture, with_new ? &both : &options);
        check_since(&fixture, 0, "cp1");
        check_since(&fixture, 1, "cp1");
        g_assert_cmpstr(fixture.snapshot->since, ==, "cp1");
        g_assert_cmpstr(fixture.snapshot->checkpoint, ==, with_new ? "cp3" : NULL);
        fixture_clear(&fixture);
    }
}

static void test_the_named_checkpoint_must_be_there(void) {
    static const VmsnapBeginOptions options = {.since = "cp1"};
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2");
    CHECK_REFUSED(&fixture, &options, "'cp1'", "'vm1'", "none of that name", "checkpoint-list vm1");
    add_checkpoint(&fixture, "cp10", OWN("true", ""), "vda");
    CHECK_REFUSED(&fixture, &options, "'cp1'", "none of that name");
    fixture_clear(&fixture);
}

static void test_no_backup_rests_on_what_was_not_completed(void) {
    static const VmsnapBeginOptions options = {.since = "cp1"};
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("false", ""), "vda");
    CHECK_REFUSED(&fixture, &options, "'cp1'", "not completed");
    plan(&fixture, &incremental);
    check_full(&fixture, 0, "no committed checkpoint");
    fixture_clear(&fixture);
}

static void test_the_named_checkpoint_must_track_all_disks(void) {
    static const VmsnapBeginOptions options = {.since = "cp1"};
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vda");
    add_checkpoint(&fixture, "cp2", OWN("true", ""), "vda vdb");
    CHECK_REFUSED(&fixture, &options, "'cp1'", "disk 'vdb'", "does not track", "exclude=vdb", "incremental");
    fixture_clear(&fixture);
    FIXTURE_INIT(&fixture, "raw");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vda");
    CHECK_REFUSED(&fixture, &options, "'cp1'", "disk 'vda'", "raw");
    fixture_clear(&fixture);
}

static void check_new_name(const Fixture *fixture) {
    g_assert_true(g_regex_match_simple("^vmsnap-[0-9]{8}T[0-9]{6}\\.[0-9]{3}Z$", fixture->snapshot->checkpoint, 0, 0));
}

static void test_the_first_incremental_is_full(void) {
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "qcow2");
    plan(&fixture, &incremental);
    check_full(&fixture, 0, "no committed checkpoint");
    check_full(&fixture, 1, "no committed checkpoint");
    g_assert_null(fixture.snapshot->since);
    check_new_name(&fixture);
    fixture_clear(&fixture);
}

/* What the newest does not track, an older one may. */
static void test_each_disk_has_its_newest_checkpoint(void) {
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "qcow2", "qcow2", "raw", "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vda vdb vdc");
    add_checkpoint(&fixture, "cp2", OWN("true", ""), "vda vdb");
    add_checkpoint(&fixture, "theirs", "of somebody else", "vda vdb vdc vdd vde");
    add_checkpoint(&fixture, "cp3", OWN("true", ""), "vda vdd");
    add_checkpoint(&fixture, "cp4", OWN("false", ""), "vda vdb vdc vdd vde");
    plan(&fixture, &incremental);
    check_since(&fixture, 0, "cp3");
    check_since(&fixture, 1, "cp2");
    check_since(&fixture, 2, "cp1");
    check_full(&fixture, 3, "raw");
    check_full(&fixture, 4, "no committed checkpoint");
    g_assert_cmpstr(fixture.snapshot->since, ==, "cp3");
    check_new_name(&fixture);
    fixture_clear(&fixture);
}

static void test_the_snapshot_tells_the_first_that_there_is(void) {
    Fixture fixture;
    FIXTURE_INIT(&fixture, "raw", "qcow2", "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vdb");
    add_checkpoint(&fixture, "cp2", OWN("true", ""), "vdc");
    plan(&fixture, &incremental);
    g_assert_cmpstr(fixture.snapshot->since, ==, "cp1");
    fixture_clear(&fixture);
}

/* libvirt creates none that tracks nothing. */
static void test_a_machine_without_qcow2_gets_no_checkpoint(void) {
    Fixture fixture;
    FIXTURE_INIT(&fixture, "raw", "", "vmdk");
    plan(&fixture, &incremental);
    check_full(&fixture, 0, "raw");
    check_full(&fixture, 1, "no known format");
    check_full(&fixture, 2, "vmdk");
    g_assert_null(fixture.snapshot->checkpoint);
    g_assert_null(fixture.snapshot->since);
    fixture_clear(&fixture);
}

static void test_what_is_known_of_a_disk_goes_along(void) {
    Fixture fixture;
    FIXTURE_INIT(&fixture, "qcow2", "qcow2");
    add_checkpoint(&fixture, "cp1",
                   OWN("true", ",\"disks\":[{\"name\":\"vda\",\"size\":2147483648,\"modified\":4711},"
                               "{\"name\":\"vdb\",\"size\":-5}]"),
                   "vda vdb");
    plan(&fixture, &incremental);
    g_assert_cmpuint(disk_at(&fixture, 0)->since_size_bytes, ==, GIB(2));
    g_assert_cmpint(disk_at(&fixture, 0)->since_modified_ns, ==, 4711);
    g_assert_cmpuint(disk_at(&fixture, 1)->since_size_bytes, ==, 0);
    g_assert_cmpint(disk_at(&fixture, 1)->since_modified_ns, ==, 0);
    fixture_clear(&fixture);
}

/* What is found out later */

/* Three disks since cp1, of which the second is full. */
static void fixture_init_planned(Fixture *fixture) {
    FIXTURE_INIT(fixture, "qcow2", "raw", "qcow2");
    add_checkpoint(fixture, "cp1", OWN("true", ""), "vda vdc");
    plan(fixture, &incremental);
}

static void test_a_message_about_a_disk_makes_it_full(void) {
    static const char message[] = "invalid argument: missing or broken bitmap 'cp1' for disk 'vda'";
    Fixture fixture;
    fixture_init_planned(&fixture);
    g_assert_true(vmsnap_increment_drop(fixture.snapshot, message));
    check_full(&fixture, 0, message);
    check_full(&fixture, 1, "raw");
    check_since(&fixture, 2, "cp1");
    g_assert_cmpstr(fixture.snapshot->since, ==, "cp1");
    /* The same once more is about nobody: else it would be tried again for ever. */
    g_assert_false(vmsnap_increment_drop(fixture.snapshot, message));
    check_since(&fixture, 2, "cp1");
    fixture_clear(&fixture);
}

static void test_a_message_about_no_disk_is_about_all(void) {
    static const char *const messages[] = {"checkpoint inconsistent", "", "disk vda", "disk 'vd'", "disk 'vdaa'"};
    for (size_t i = 0; i < G_N_ELEMENTS(messages); i++) {
        Fixture fixture;
        fixture_init_planned(&fixture);
        g_assert_true(vmsnap_increment_drop(fixture.snapshot, messages[i]));
        check_full(&fixture, 0, messages[i]);
        check_full(&fixture, 1, "raw");
        check_full(&fixture, 2, messages[i]);
        g_assert_null(fixture.snapshot->since);
        g_assert_nonnull(fixture.snapshot->checkpoint);
        g_assert_false(vmsnap_increment_drop(fixture.snapshot, messages[i]));
        fixture_clear(&fixture);
    }
}

static void test_a_message_about_a_full_disk_drops_none(void) {
    Fixture fixture;
    fixture_init_planned(&fixture);
    g_assert_false(vmsnap_increment_drop(fixture.snapshot, "failed to look at disk 'vdb'"));
    check_since(&fixture, 0, "cp1");
    check_since(&fixture, 2, "cp1");
    fixture_clear(&fixture);
}

static void test_a_message_may_name_several_disks(void) {
    Fixture fixture;
    fixture_init_planned(&fixture);
    g_assert_true(vmsnap_increment_drop(fixture.snapshot, "bad: disk 'vdc', disk 'vda'"));
    check_full(&fixture, 0, "bad");
    check_full(&fixture, 2, "bad");
    g_assert_null(fixture.snapshot->since);
    fixture_clear(&fixture);
}

static void check_sizes(const VmsnapBeginOptions *options, uint64_t since_bytes, gboolean is_resized) {
    Fixture fixture;
    g_autoptr(GError) error = NULL;
    FIXTURE_INIT(&fixture, "qcow2", "qcow2");
    add_checkpoint(&fixture, "cp1", OWN("true", ""), "vda vdb");
    plan(&fixture, options);
    disk_at(&fixture, 0)->since_size_bytes = since_bytes;
    gboolean accepted = vmsnap_increment_check_sizes(options, fixture.snapshot, &error);
    g_assert_cmpint(accepted, ==, !is_resized || options->incremental);
    if (!accepted)
        check_error(error, (const char *const[]){"'cp1'", "disk 'vda'", "resized", "to 2147483648 bytes", NULL});
    else if (is_resized)
        check_full(&fixture, 0, "resized since checkpoint 'cp1'");
    else
        check_since(&fixture, 0, "cp1");
    check_since(&fixture, 1, "cp1");
    g_assert_cmpstr(fixture.snapshot->since, ==, "cp1");
    fixture_clear(&fixture);
}

static void test_a_disk_that_was_resized_has_no_changes(void) {
    static const VmsnapBeginOptions since = {.since = "cp1"};
    static const struct {
        uint64_t since_bytes;
        gboolean is_resized;
    } cases[] = {{GIB(2), FALSE}, {0, FALSE}, {GIB(1), TRUE}, {GIB(3), TRUE}, {GIB(2) + 1, TRUE}, {UINT64_MAX, TRUE}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        check_sizes(&since, cases[i].since_bytes, cases[i].is_resized);
        check_sizes(&incremental, cases[i].since_bytes, cases[i].is_resized);
    }
}

static void test_sizes_of_full_disks_do_not_matter(void) {
    Fixture fixture;
    FIXTURE_INIT(&fixture, "raw");
    plan(&fixture, &incremental);
    disk_at(&fixture, 0)->since_size_bytes = 1;
    g_assert_true(vmsnap_increment_check_sizes(&incremental, fixture.snapshot, NULL));
    check_full(&fixture, 0, "raw");
    fixture_clear(&fixture);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/increment/" path, function)
    ADD("nothing-asked-is-nothing-planned", test_nothing_asked_is_nothing_planned);
    ADD("a-named-checkpoint-is-created", test_a_named_checkpoint_is_created);
    ADD("a-named-checkpoint-tracks-all-disks", test_a_named_checkpoint_tracks_all_disks);
    ADD("no-name-is-given-twice", test_no_name_is_given_twice);
    ADD("changes-count-from-the-named-checkpoint", test_changes_count_from_the_named_checkpoint);
    ADD("the-named-checkpoint-must-be-there", test_the_named_checkpoint_must_be_there);
    ADD("no-backup-rests-on-what-was-not-completed", test_no_backup_rests_on_what_was_not_completed);
    ADD("the-named-checkpoint-must-track-all-disks", test_the_named_checkpoint_must_track_all_disks);
    ADD("the-first-is-full", test_the_first_incremental_is_full);
    ADD("each-disk-has-its-newest-checkpoint", test_each_disk_has_its_newest_checkpoint);
    ADD("the-snapshot-tells-the-first-that-there-is", test_the_snapshot_tells_the_first_that_there_is);
    ADD("a-machine-without-qcow2-gets-no-checkpoint", test_a_machine_without_qcow2_gets_no_checkpoint);
    ADD("what-is-known-of-a-disk-goes-along", test_what_is_known_of_a_disk_goes_along);
    ADD("a-message-about-a-disk-makes-it-full", test_a_message_about_a_disk_makes_it_full);
    ADD("a-message-about-no-disk-is-about-all", test_a_message_about_no_disk_is_about_all);
    ADD("a-message-about-a-full-disk-drops-none", test_a_message_about_a_full_disk_drops_none);
    ADD("a-message-may-name-several-disks", test_a_message_may_name_several_disks);
    ADD("a-disk-that-was-resized-has-no-changes", test_a_disk_that_was_resized_has_no_changes);
    ADD("sizes-of-full-disks-do-not-matter", test_sizes_of_full_disks_do_not_matter);
#undef ADD
    return g_test_run();
}
