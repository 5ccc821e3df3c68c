/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checkpoints as XML: whose they are, what they tell of disks, and what hostile descriptions cannot do. */
#include "backend/checkpoint.h"

#include "backend/xml.h"
#include "extents.h"
#include "memory_backend.h"
#include "vmsnap/checkpoint_name.h"
#include "vmsnap/error.h"

#include <string.h>

#define UUID "6f1c2d3e-0000-4000-8000-000000000001"
#define CHECKPOINT(inner) "<domaincheckpoint><name>cp1</name>" inner "</domaincheckpoint>"
#define DISKS                                                                                                          \
    "<disks><disk name='vda' checkpoint='bitmap' bitmap='cp1'/><disk name='vdb' checkpoint='no'/>"                     \
    "<disk name='vdc' checkpoint='bitmap'/></disks>"

static VmsnapCheckpoint *parse(const char *xml) {
    g_autoptr(GError) error = NULL;
    VmsnapCheckpoint *checkpoint = vmsnap_checkpoint_parse(xml, &error);
    g_assert_no_error(error);
    g_assert_nonnull(checkpoint);
    return checkpoint;
}

/* The checkpoint of that description, with the disks vda and vdc. */
static VmsnapCheckpoint *parse_described(const char *description) {
    g_autofree char *escaped = g_markup_escape_text(description, -1);
    g_autofree char *xml = g_strdup_printf(CHECKPOINT("<description>%s</description>" DISKS), escaped);
    return parse(xml);
}

static void check_disk(const VmsnapCheckpoint *checkpoint, const char *name, uint64_t size_bytes, int64_t modified_ns) {
    const VmsnapCheckpointDisk *disk = vmsnap_checkpoint_find_disk(checkpoint, name);
    g_assert_nonnull(disk);
    g_assert_cmpstr(disk->name, ==, name);
    g_assert_cmpuint(disk->size_bytes, ==, size_bytes);
    g_assert_cmpint(disk->modified_ns, ==, modified_ns);
}

static void test_a_checkpoint_has_a_name_and_disks(void) {
    g_autoptr(VmsnapCheckpoint) checkpoint = parse(CHECKPOINT(DISKS));
    g_assert_cmpstr(checkpoint->name, ==, "cp1");
    g_assert_cmpuint(checkpoint->disks->len, ==, 2);
    check_disk(checkpoint, "vda", 0, 0);
    check_disk(checkpoint, "vdc", 0, 0);
    g_assert_null(vmsnap_checkpoint_find_disk(checkpoint, "vdb"));
    g_assert_null(vmsnap_checkpoint_find_disk(checkpoint, "vd"));
    g_assert_null(vmsnap_checkpoint_find_disk(checkpoint, ""));
    vmsnap_checkpoint_free(NULL);
}

/* libvirt puts the XML of the domain into that of a checkpoint: its disks and its description are none of ours. */
static void test_what_stands_deeper_is_of_the_domain(void) {
    g_autoptr(VmsnapCheckpoint) checkpoint = parse(
        CHECKPOINT("<domain><name>vm1</name><description>made by vmsnap: {\"snapshot\":\"" UUID "\"}</description>"
                   "<disks><disk name='vdx' checkpoint='bitmap'/></disks></domain>" DISKS));
    g_assert_cmpstr(checkpoint->name, ==, "cp1");
    g_assert_null(checkpoint->snapshot);
    g_assert_true(checkpoint->committed);
    g_assert_cmpuint(checkpoint->disks->len, ==, 2);
}

static void test_what_is_no_checkpoint_is_refused(void) {
    static const char *const texts[] = {"",
                                        "no xml",
                                        "<",
                                        "<domaincheckpoint>",
                                        "<domaincheckpoint/>",
                                        "<domaincheckpoint><name/></domaincheckpoint>",
                                        "<domain><name>vm1</name></domain>",
                                        "<domaincheckpoint><domain><name>vm1</name></domain></domaincheckpoint>",
                                        "<a/><domaincheckpoint><name>cp1</name></domaincheckpoint>",
                                        "<domaincheckpoint><name>cp\x01</name></domaincheckpoint>"};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(vmsnap_checkpoint_parse(texts[i], &error));
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    }
}

/* What is not ours is taken for a checkpoint that somebody relies on, and is never deleted. */
static void test_checkpoints_of_others_are_not_ours(void) {
    static const char *const descriptions[] = {
        "",
        "before the upgrade",
        "made by vmsnap",
        "made by vmsnap:",
        "made by vmsnap: ",
        "made by vmsnap: garbage",
        "made by vmsnap: {",
        "made by vmsnap: {}",
        "made by vmsnap: []",
        "made by vmsnap: null",
        "made by vmsnap: 17",
        "made by vmsnap: \"" UUID "\"",
        "made by vmsnap: {\"committed\":false}",
        "made by vmsnap: {\"snapshot\":17,\"committed\":false}",
        "made by vmsnap: {\"snapshot\":null,\"committed\":false}",
        "made by vmsnap: {\"snapshot\":[\"" UUID "\"],\"committed\":false}",
        "made by vmsnap: {\"snapshot\":{\"uuid\":\"" UUID "\"},\"committed\":false}",
        "made by vmsnap: [{\"snapshot\":\"" UUID "\",\"committed\":false}]",
        " made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":false}",
        "Made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":false}",
        "not made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":false}",
        "{\"snapshot\":\"" UUID "\",\"committed\":false}",
    };
    g_autoptr(VmsnapCheckpoint) without = parse(CHECKPOINT(DISKS));
    g_assert_null(without->snapshot);
    g_assert_true(without->committed);
    for (size_t i = 0; i < G_N_ELEMENTS(descriptions); i++) {
        g_autoptr(VmsnapCheckpoint) checkpoint = parse_described(descriptions[i]);
        g_test_message("'%s'", descriptions[i]);
        g_assert_null(checkpoint->snapshot);
        g_assert_true(checkpoint->committed);
        g_assert_cmpuint(checkpoint->disks->len, ==, 2);
        check_disk(checkpoint, "vda", 0, 0);
    }
}

/* Who is in doubt whether a backup rests on it must not let another one do so. */
static void test_ours_is_committed_only_if_it_says_so(void) {
    static const struct {
        const char *committed;
        gboolean expected;
    } cases[] = {
        {",\"committed\":true", TRUE},
        {",\"committed\":false", FALSE},
        {"", FALSE},
        {",\"committed\":null", FALSE},
        {",\"committed\":1", FALSE},
        {",\"committed\":\"true\"", FALSE},
        {",\"committed\":[true]", FALSE},
        {",\"committed\":{\"committed\":true}", FALSE},
        {",\"Committed\":true", FALSE},
        {",\"more\":[1,{}],\"committed\":true", TRUE},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *description =
            g_strdup_printf("made by vmsnap: {\"snapshot\":\"" UUID "\"%s}", cases[i].committed);
        g_autoptr(VmsnapCheckpoint) checkpoint = parse_described(description);
        g_assert_cmpstr(checkpoint->snapshot, ==, UUID);
        g_assert_cmpint(checkpoint->committed, ==, cases[i].expected);
    }
}

static void test_disks_are_described(void) {
    g_autoptr(VmsnapCheckpoint) checkpoint =
        parse_described("made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":true,\"disks\":["
                        "{\"name\":\"vdc\",\"size\":1073741824,\"modified\":1700000000123456789},"
                        "{\"name\":\"vdb\",\"size\":1,\"modified\":2},{\"name\":\"vda\",\"modified\":3,\"more\":{}}]}");
    g_assert_cmpuint(checkpoint->disks->len, ==, 2);
    check_disk(checkpoint, "vda", 0, 3);
    check_disk(checkpoint, "vdc", UINT64_C(1) << 30, INT64_C(1700000000123456789));
}

/* What is wrong about a disk is as if it were not known. */
static void test_hostile_disks_tell_nothing(void) {
    static const char *const lists[] = {
        "17",
        "null",
        "{}",
        "{\"name\":\"vda\",\"size\":1,\"modified\":1}",
        "[]",
        "[17,null,\"vda\",[],{}]",
        "[{\"name\":\"vda\"}]",
        "[{\"name\":17,\"size\":1,\"modified\":1}]",
        "[{\"name\":null,\"size\":1,\"modified\":1}]",
        "[{\"name\":[\"vda\"],\"size\":1,\"modified\":1}]",
        "[{\"name\":\"VDA\",\"size\":1,\"modified\":1}]",
        "[[{\"name\":\"vda\",\"size\":1,\"modified\":1}]]",
        "[{\"name\":\"vda\",\"size\":-1,\"modified\":-1}]",
        "[{\"name\":\"vda\",\"size\":-9223372036854775808,\"modified\":-9223372036854775808}]",
        "[{\"name\":\"vda\",\"size\":\"1\",\"modified\":\"1\"}]",
        "[{\"name\":\"vda\",\"size\":1.5,\"modified\":1e300}]",
        "[{\"name\":\"vda\",\"size\":true,\"modified\":null}]",
        "[{\"name\":\"vda\",\"size\":[1],\"modified\":{}}]",
        "[{\"size\":1,\"modified\":1}]",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(lists); i++) {
        g_autofree char *description =
            g_strdup_printf("made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":true,\"disks\":%s}", lists[i]);
        g_autoptr(VmsnapCheckpoint) checkpoint = parse_described(description);
        g_test_message("%s", lists[i]);
        g_assert_cmpstr(checkpoint->snapshot, ==, UUID);
        g_assert_true(checkpoint->committed);
        g_assert_cmpuint(checkpoint->disks->len, ==, 2);
        check_disk(checkpoint, "vda", 0, 0);
        check_disk(checkpoint, "vdc", 0, 0);
    }
}

/* What json-glib makes of them is any number; whatever it is, at worst the disk counts as resized. */
static void test_huge_numbers_are_survived(void) {
    static const char *const numbers[] = {"9223372036854775807",
                                          "9223372036854775808",
                                          "18446744073709551616",
                                          "99999999999999999999999999999999",
                                          "1e18",
                                          "-99999999999999999999999999"};
    for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++) {
        g_autofree char *description =
            g_strdup_printf("made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":true,\"disks\":"
                            "[{\"name\":\"vda\",\"size\":%s,\"modified\":%s}]}",
                            numbers[i], numbers[i]);
        g_autoptr(VmsnapCheckpoint) checkpoint = parse_described(description);
        const VmsnapCheckpointDisk *disk = vmsnap_checkpoint_find_disk(checkpoint, "vda");
        g_assert_cmpuint(disk->size_bytes, <=, INT64_MAX);
        g_assert_cmpint(disk->modified_ns, >=, 0);
        g_assert_cmpstr(checkpoint->snapshot, ==, UUID);
    }
}

static void test_entities_do_not_expand(void) {
    g_autofree char *file = g_build_filename(g_get_tmp_dir(), "vmsnap-no-such-file", NULL);
    g_autofree char *xml = g_strdup_printf("<!DOCTYPE a [<!ENTITY file SYSTEM 'file://%s'>]>" CHECKPOINT(
                                               "<description>made by vmsnap: &file;</description>" DISKS),
                                           file);
    g_autoptr(VmsnapCheckpoint) checkpoint = vmsnap_checkpoint_parse(xml, NULL);
    g_assert_true(!checkpoint || !checkpoint->snapshot);
}

/* Whoever may define a checkpoint must not end the process that lists them. */
static void test_deep_descriptions_are_survived(void) {
    static const char *const openings[] = {"[", "{\"a\":"};
    for (size_t i = 0; i < G_N_ELEMENTS(openings); i++) {
        GString *description = g_string_new("made by vmsnap: ");
        for (int n = 0; n < 500000; n++)
            (void)g_string_append(description, openings[i]);
        g_autoptr(VmsnapCheckpoint) checkpoint = parse_described(description->str);
        g_assert_null(checkpoint->snapshot);
        g_string_free(description, TRUE);
    }
}

/* XML has no way to write them: libvirt would refuse the whole checkpoint, and not say why. */
static void test_names_have_no_control_characters(void) {
    static const char *const bad[] = {"a\x01", "\x1b[2J", "a\x7f", "a\xef\xbf\xbf"};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *escaped = g_markup_escape_text(bad[i], -1);
        g_autofree char *xml = g_strdup_printf("<domaincheckpoint><name>%s</name></domaincheckpoint>", escaped);
        g_autoptr(VmsnapCheckpoint) checkpoint = vmsnap_checkpoint_parse(xml, NULL);
        g_test_message("%zu: %s", i, checkpoint ? "XML has it" : "XML has it not");
        g_assert_true(checkpoint || !vmsnap_checkpoint_name_is_valid(bad[i]));
    }
}

/* What is written is read again */

static VmsnapSnapshot *snapshot_new(void) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    (void)memory_snapshot_add_disk(snapshot, "vda", extents_alternate(UINT64_C(5) << 30, 1 << 30));
    (void)memory_snapshot_add_disk(snapshot, "vdc", extents_alternate(513, 512));
    ((VmsnapDisk *)g_ptr_array_index(snapshot->disks, 0))->modified_ns = INT64_C(1700000000123456789);
    ((VmsnapDisk *)g_ptr_array_index(snapshot->disks, 1))->modified_ns = 1;
    return snapshot;
}

static void snapshot_clear(VmsnapSnapshot *snapshot) {
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static void test_a_description_is_read_again(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    g_autofree char *uncommitted = vmsnap_checkpoint_describe(snapshot, FALSE);
    g_autofree char *committed = vmsnap_checkpoint_describe(snapshot, TRUE);
    g_assert_cmpstr(uncommitted, ==, "made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":false}");
    g_assert_true(g_str_has_prefix(committed, "made by vmsnap: {\"snapshot\":\"" UUID "\",\"committed\":true"));

    g_autoptr(VmsnapCheckpoint) before = parse_described(uncommitted);
    g_assert_cmpstr(before->snapshot, ==, UUID);
    g_assert_false(before->committed);
    check_disk(before, "vda", 0, 0);
    g_autoptr(VmsnapCheckpoint) after = parse_described(committed);
    g_assert_cmpstr(after->snapshot, ==, UUID);
    g_assert_true(after->committed);
    check_disk(after, "vda", UINT64_C(5) << 30, INT64_C(1700000000123456789));
    check_disk(after, "vdc", 513, 1);
    snapshot_clear(snapshot);
}

/* Names that a domain can give its disks, and those that people can give checkpoints. */
static const char *const odd_names[] = {
    "cp1", "a b", " a ", "a&b<c>\"d'e", "\xc3\xbc\xe2\x82\xac", "%s%d%%", "a:b", "]]>", "<!--", "&amp;", "-", "a\\b"};

static void test_odd_disks_are_described(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(odd_names); i++) {
        VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
        VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, odd_names[i], extents_alternate(4096, 512));
        disk->modified_ns = 4711;
        g_autofree char *text = vmsnap_checkpoint_describe(snapshot, TRUE);
        g_autofree char *description = g_markup_escape_text(text, -1);
        g_autofree char *name = g_markup_escape_text(odd_names[i], -1);
        g_autofree char *xml = g_strdup_printf(
            CHECKPOINT("<description>%s</description><disks><disk checkpoint='bitmap' name='%s'/></disks>"),
            description, name);
        g_autoptr(VmsnapCheckpoint) checkpoint = parse(xml);
        g_assert_cmpstr(checkpoint->snapshot, ==, UUID);
        check_disk(checkpoint, odd_names[i], 4096, 4711);
        snapshot_clear(snapshot);
    }
}

static VmsnapDomain *domain_new(void) {
    g_autoptr(GError) error = NULL;
    VmsnapDomain *domain = vmsnap_domain_parse(
        "<domain><name>vm1</name><uuid>6f1c2d3e-0000-4000-8000-00000000000a</uuid><devices>"
        "<disk type='file'><driver type='qcow2'/><source file='/a'/><target dev='vda'/></disk>"
        "<disk type='file'><driver type='raw'/><source file='/b'/><target dev='vdb'/></disk>"
        "<disk type='file'><driver type='qcow2'/><source file='/c'/><target dev='v&lt;&apos;&quot;c'/></disk>"
        "<disk type='file'><driver type='qcow2'/><source file='/d'/><target dev='vdd'/></disk>"
        "<disk type='file' device='cdrom'><target dev='sda'/></disk>"
        "<disk type='file'><source file='/f'/><target dev='vdf'/></disk></devices></domain>",
        &error);
    g_assert_no_error(error);
    return domain;
}

static void test_only_chosen_qcow2_disks_are_tracked(void) {
    static const char *const exclude[] = {"vdd", NULL};
    VmsnapSnapshot *snapshot = snapshot_new();
    g_autoptr(VmsnapDomain) domain = domain_new();
    g_autoptr(GPtrArray) selected = vmsnap_domain_select(domain, NULL, exclude, snapshot, NULL);
    g_assert_cmpuint(selected->len, ==, 4);
    g_autofree char *xml = vmsnap_checkpoint_build_xml("cp1", "words", domain, selected);
    g_autoptr(VmsnapCheckpoint) checkpoint = parse(xml);
    g_assert_cmpuint(checkpoint->disks->len, ==, 2);
    g_assert_nonnull(vmsnap_checkpoint_find_disk(checkpoint, "vda"));
    g_assert_nonnull(vmsnap_checkpoint_find_disk(checkpoint, "v<'\"c"));
    /* One that is not named, libvirt would track. */
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = xmlXPathNewContext(document);
    g_assert_true(vmsnap_xml_is_true(context, "count(/domaincheckpoint/disks/disk) = 6"));
    g_assert_true(vmsnap_xml_is_true(context, "count(/domaincheckpoint/disks/disk[@checkpoint='no']) = 4"));
    snapshot_clear(snapshot);
}

static void test_odd_names_and_descriptions_are_built(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    g_autoptr(VmsnapDomain) domain = domain_new();
    g_autoptr(GPtrArray) selected = vmsnap_domain_select(domain, NULL, NULL, snapshot, NULL);
    g_autofree char *description = vmsnap_checkpoint_describe(snapshot, FALSE);
    for (size_t i = 0; i < G_N_ELEMENTS(odd_names); i++) {
        g_autofree char *xml = vmsnap_checkpoint_build_xml(odd_names[i], description, domain, selected);
        g_autoptr(VmsnapCheckpoint) checkpoint = parse(xml);
        g_assert_true(vmsnap_checkpoint_name_is_valid(odd_names[i]));
        g_assert_cmpstr(checkpoint->name, ==, odd_names[i]);
        g_assert_cmpstr(checkpoint->snapshot, ==, UUID);
        g_assert_false(checkpoint->committed);
    }
    snapshot_clear(snapshot);
}

static void check_replaced(const char *xml, const char *description) {
    g_autoptr(GError) error = NULL;
    g_autofree char *replaced = vmsnap_checkpoint_replace_description(xml, description, &error);
    g_assert_no_error(error);
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(replaced);
    g_assert_nonnull(document);
    g_autoptr(xmlXPathContext) context = xmlXPathNewContext(document);
    g_autofree char *text = vmsnap_xml_find_text(context, "/domaincheckpoint/description");
    g_assert_cmpstr(text, ==, description);
    g_assert_true(vmsnap_xml_is_true(context, "count(/domaincheckpoint/description) = 1"));
    g_autoptr(VmsnapCheckpoint) before = parse(xml), after = parse(replaced);
    g_assert_cmpstr(after->name, ==, before->name);
    g_assert_cmpuint(after->disks->len, ==, before->disks->len);
    for (guint i = 0; i < before->disks->len; i++) {
        const VmsnapCheckpointDisk *disk = g_ptr_array_index(before->disks, i);
        g_assert_nonnull(vmsnap_checkpoint_find_disk(after, disk->name));
    }
}

static void test_a_description_is_replaced(void) {
    static const char *const documents[] = {
        CHECKPOINT(DISKS),
        CHECKPOINT("<description>old</description>" DISKS),
        CHECKPOINT("<description/>" DISKS),
        CHECKPOINT("<description>old &amp; <![CDATA[<older>]]><!-- oldest --></description>" DISKS),
        CHECKPOINT("<domain><description>of the domain</description></domain>" DISKS),
        "<?xml version='1.0' encoding='UTF-8'?>\n<domaincheckpoint>\n  <name>\xc3\xbc&lt;</name>\n" DISKS
        "</domaincheckpoint>",
    };
    static const char *const descriptions[] = {
        "new", "a&b<c>\"d'e",          "&amp;&lt;",
        "]]>", "\xc3\xbc\xe2\x82\xac", "made by vmsnap: {\"snapshot\":\"a\",\"committed\":true}"};
    for (size_t i = 0; i < G_N_ELEMENTS(documents); i++)
        for (size_t k = 0; k < G_N_ELEMENTS(descriptions); k++)
            check_replaced(documents[i], descriptions[k]);
}

static void test_the_description_of_the_domain_stays(void) {
    g_autofree char *xml = vmsnap_checkpoint_replace_description(
        CHECKPOINT("<domain><description>of the domain</description></domain>"), "new", NULL);
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = xmlXPathNewContext(document);
    g_autofree char *text = vmsnap_xml_find_text(context, "/domaincheckpoint/domain/description");
    g_assert_cmpstr(text, ==, "of the domain");
}

/* As it is committed: built, described anew, and with all that libvirt has added. */
static void test_a_checkpoint_goes_through_its_life(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    g_autoptr(VmsnapDomain) domain = domain_new();
    g_autoptr(GPtrArray) selected = vmsnap_domain_select(domain, NULL, NULL, snapshot, NULL);
    g_autofree char *uncommitted = vmsnap_checkpoint_describe(snapshot, FALSE);
    g_autofree char *committed = vmsnap_checkpoint_describe(snapshot, TRUE);
    g_autofree char *xml = vmsnap_checkpoint_build_xml("cp1", uncommitted, domain, selected);
    g_autofree char *replaced = vmsnap_checkpoint_replace_description(xml, committed, NULL);
    g_autoptr(VmsnapCheckpoint) checkpoint = parse(replaced);
    g_assert_cmpstr(checkpoint->name, ==, "cp1");
    g_assert_cmpstr(checkpoint->snapshot, ==, UUID);
    g_assert_true(checkpoint->committed);
    check_disk(checkpoint, "vda", UINT64_C(5) << 30, INT64_C(1700000000123456789));
    g_assert_cmpuint(checkpoint->disks->len, ==, 3);
    snapshot_clear(snapshot);
}

static void test_what_has_no_root_cannot_be_described(void) {
    static const char *const texts[] = {"", "no xml", "<domaincheckpoint>"};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(vmsnap_checkpoint_replace_description(texts[i], "new", &error));
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    }
}

static void test_names_become_parts_of_file_names(void) {
    static const char *const bad[] = {"",     ".",    "..",   ".hidden", "/",     "a/b", "../a",
                                      "a\nb", "a\rb", "a\tb", "\xff",    "a\xc3", "/a",  "a/"};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        g_assert_false(vmsnap_checkpoint_name_is_valid(bad[i]));
    g_assert_true(vmsnap_checkpoint_name_is_valid("a.b"));
    g_assert_true(vmsnap_checkpoint_name_is_valid("a."));
}

/* "vmsnap-20231114T221320.123Z": it sorts by time, and has no colon, which QEMU would take for a protocol. */
static void test_a_name_is_that_of_now(void) {
    g_autoptr(GDateTime) before = g_date_time_new_now_utc();
    g_autofree char *name = vmsnap_checkpoint_make_name();
    g_autofree char *later = (g_usleep(2000), vmsnap_checkpoint_make_name());
    g_autofree char *minute = g_date_time_format(before, "vmsnap-%Y%m%dT%H%M");
    g_autoptr(GDateTime) next = g_date_time_add_minutes(before, 1);
    g_autofree char *next_minute = g_date_time_format(next, "vmsnap-%Y%m%dT%H%M");
    g_assert_true(g_regex_match_simple("^vmsnap-[0-9]{8}T[0-9]{6}\\.[0-9]{3}Z$", name, 0, 0));
    g_assert_true(g_str_has_prefix(name, minute) || g_str_has_prefix(name, next_minute));
    g_assert_cmpint(strcmp(name, later), <, 0);
    g_assert_true(vmsnap_checkpoint_name_is_valid(name));
}

int main(int argc, char **argv) {
    /* A time zone that no name may be of. */
    g_assert_true(g_setenv("TZ", "Asia/Kathmandu", TRUE));
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/checkpoint/" path, function)
    ADD("has-a-name-and-disks", test_a_checkpoint_has_a_name_and_disks);
    ADD("what-stands-deeper-is-of-the-domain", test_what_stands_deeper_is_of_the_domain);
    ADD("what-is-none-is-refused", test_what_is_no_checkpoint_is_refused);
    ADD("those-of-others-are-not-ours", test_checkpoints_of_others_are_not_ours);
    ADD("ours-is-committed-only-if-it-says-so", test_ours_is_committed_only_if_it_says_so);
    ADD("disks-are-described", test_disks_are_described);
    ADD("hostile-disks-tell-nothing", test_hostile_disks_tell_nothing);
    ADD("huge-numbers-are-survived", test_huge_numbers_are_survived);
    ADD("names-have-no-control-characters", test_names_have_no_control_characters);
    ADD("deep-descriptions-are-survived", test_deep_descriptions_are_survived);
    ADD("entities-do-not-expand", test_entities_do_not_expand);
    ADD("a-description-is-read-again", test_a_description_is_read_again);
    ADD("odd-disks-are-described", test_odd_disks_are_described);
    ADD("only-chosen-qcow2-disks-are-tracked", test_only_chosen_qcow2_disks_are_tracked);
    ADD("odd-names-and-descriptions-are-built", test_odd_names_and_descriptions_are_built);
    ADD("a-description-is-replaced", test_a_description_is_replaced);
    ADD("the-description-of-the-domain-stays", test_the_description_of_the_domain_stays);
    ADD("goes-through-its-life", test_a_checkpoint_goes_through_its_life);
    ADD("what-has-no-root-cannot-be-described", test_what_has_no_root_cannot_be_described);
    ADD("names-become-parts-of-file-names", test_names_become_parts_of_file_names);
    ADD("a-name-is-that-of-now", test_a_name_is_that_of_now);
#undef ADD
    return g_test_run();
}
