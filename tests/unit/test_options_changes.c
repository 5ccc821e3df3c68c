/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options of incremental snapshots: what they take, and which of them make no sense together. */
#include "tools/options.h"

#include "vmsnap/error.h"

#include <string.h>

/* Parses "mount.vmsnap vm1 /mnt -o STRING". */
static VmsnapOptions *try_parse(const char *string, GError **error) {
    const char *arguments[] = {"mount.vmsnap", "vm1", "/mnt", "-o", string, NULL};
    return vmsnap_options_parse(G_N_ELEMENTS(arguments) - 1, (char **)arguments, error);
}

static VmsnapOptions *parse(const char *string) {
    g_autoptr(GError) error = NULL;
    VmsnapOptions *options = try_parse(string, &error);
    g_assert_no_error(error);
    g_assert_nonnull(options);
    return options;
}

/* The error is one of usage, a single line without a full stop, and names the option. */
static void check_refused(const char *string, const char *named) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = try_parse(string, &error);
    if (options)
        g_error("the options '%s' are accepted", string);
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE);
    gboolean full_stop = g_str_has_suffix(error->message, ".") && !g_str_has_suffix(error->message, "...");
    if (strchr(error->message, '\n') || full_stop || strstr(error->message, "  "))
        g_error("'%s' is not one line without a full stop", error->message);
    if (!strstr(error->message, named))
        g_error("'%s' does not say '%s'", error->message, named);
}

static void test_nothing_of_it_is_the_default(void) {
    g_autoptr(VmsnapOptions) options = parse("rw");
    g_assert_null(options->checkpoint);
    g_assert_null(options->since);
    g_assert_null(options->backing);
    g_assert_null(options->format.backing);
    g_assert_false(options->incremental || options->format.only_changed || options->has_commit);
    g_assert_cmpuint(options->keep_checkpoints, ==, 0);
    g_assert_cmpint(options->commit, ==, VMSNAP_COMMIT_UMOUNT);
}

static void test_they_are_read(void) {
    g_autoptr(VmsnapOptions) named =
        parse("checkpoint=cp2,since=cp1,keep_checkpoints=7,commit=explicit,format=qcow2,backing=../%d-%s.qcow2");
    g_assert_cmpstr(named->checkpoint, ==, "cp2");
    g_assert_cmpstr(named->since, ==, "cp1");
    g_assert_cmpuint(named->keep_checkpoints, ==, 7);
    g_assert_cmpint(named->commit, ==, VMSNAP_COMMIT_EXPLICIT);
    g_assert_cmpstr(named->format.backing, ==, "../%d-%s.qcow2");
    g_assert_false(named->incremental);
    g_assert_cmpuint(named->mount_options->len, ==, 0);

    g_autoptr(VmsnapOptions) automatic = parse("incremental,only_changed,commit=umount");
    g_assert_true(automatic->incremental && automatic->format.only_changed && automatic->has_commit);
    g_assert_cmpint(automatic->commit, ==, VMSNAP_COMMIT_UMOUNT);
    g_assert_null(automatic->checkpoint);
    g_assert_null(automatic->since);
}

static void test_what_makes_sense_is_accepted(void) {
    static const char *const strings[] = {
        "checkpoint=cp1",
        "since=cp1",
        "checkpoint=cp2,since=cp1",
        "incremental",
        "incremental,incremental",
        "incremental,format=raw",
        "incremental,format=qcow2",
        "incremental,format=qcow2,cluster_size=512",
        "incremental,format=qcow2,backing=%d",
        "since=cp1,format=qcow2,backing=%d",
        "backing=%d,format=qcow2,since=cp1",
        "incremental,only_changed",
        "since=cp1,only_changed",
        "only_changed,since=cp1,format=raw",
        "incremental,keep_checkpoints=1",
        "keep_checkpoints=100000,checkpoint=cp1",
        "incremental,commit=explicit",
        "checkpoint=cp1,commit=explicit",
        "checkpoint=cp1,commit=umount",
        "checkpoint=cp1,commit=umount,ro",
        "incremental,ro",
        "checkpoint=cp1,commit=explicit,ro,rw",
        "incremental,commit=explicit,commit=umount,ro",
        /* An archive of whole disks may be what later backups rest on. */
        "checkpoint=cp1,format=vma",
        "checkpoint=cp1,format=vma,keep_checkpoints=3",
        "since=cp1,format=vma,format=raw",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++) {
        g_autoptr(VmsnapOptions) options = parse(strings[i]);
        g_assert_nonnull(options);
    }
}

static void test_what_makes_no_sense_is_refused(void) {
    static const struct {
        const char *string;
        const char *named;
    } cases[] = {
        {"incremental,checkpoint=cp1", "'checkpoint'"},
        {"checkpoint=cp1,incremental", "'checkpoint'"},
        {"incremental,since=cp1", "'since'"},
        {"incremental,since=cp1,checkpoint=cp2", "incremental"},
        {"since=cp1,checkpoint=cp1", "'checkpoint'"},
        {"incremental,format=vma", "'incremental'"},
        {"format=vma,since=cp1", "'since'"},
        {"format=vma,since=cp1,checkpoint=cp2", "'since'"},
        {"keep_checkpoints=3", "'keep_checkpoints'"},
        {"keep_checkpoints=3,since=cp1", "'keep_checkpoints'"},
        {"commit=explicit", "'commit'"},
        {"commit=umount", "'commit'"},
        {"commit=explicit,since=cp1", "'commit'"},
        {"commit=explicit,incremental,ro", "'commit'"},
        {"ro,checkpoint=cp1,commit=explicit", "'commit'"},
        {"backing=%d", "'backing'"},
        {"backing=%d,incremental", "format=qcow2"},
        {"backing=%d,incremental,format=raw", "'backing'"},
        {"backing=%d,format=qcow2", "incremental or since="},
        {"backing=%d,format=qcow2,checkpoint=cp1", "incremental or since="},
        {"only_changed", "incremental or since="},
        {"only_changed,checkpoint=cp1", "incremental or since="},
        {"only_changed,incremental,format=qcow2", "'only_changed'"},
        {"only_changed,since=cp1,format=qcow2", "format=raw"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_refused(cases[i].string, cases[i].named);
}

static void test_r_is_ro_for_them_too(void) {
    g_autoptr(GError) error = NULL;
    const char *arguments[] = {"mount.vmsnap", "-r", "vm1", "/mnt", "-o", "incremental,commit=explicit", NULL};
    g_assert_null(vmsnap_options_parse(G_N_ELEMENTS(arguments) - 1, (char **)arguments, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE);
    g_assert_nonnull(strstr(error->message, "'commit'"));
}

static void test_bad_values_are_refused_by_name(void) {
    static const struct {
        const char *string;
        const char *named;
    } cases[] = {
        {"checkpoint", "'checkpoint'"},
        {"checkpoint=", "'checkpoint'"},
        {"checkpoint=.cp1", "checkpoint=.cp1"},
        {"checkpoint=a/b", "checkpoint=a/b"},
        {"checkpoint=..", "checkpoint=.."},
        {"checkpoint=a\tb", "'checkpoint="},
        {"checkpoint=\xff", "'checkpoint="},
        {"since", "'since'"},
        {"since=", "'since'"},
        {"since=/etc", "since=/etc"},
        {"since=.", "since=."},
        {"since=b\xfcro", "'since="},
        {"incremental=1", "incremental=1"},
        {"incremental=", "incremental="},
        {"incremental=yes", "incremental=yes"},
        {"only_changed=1,incremental", "only_changed=1"},
        {"only_changed=", "only_changed="},
        {"incremental,keep_checkpoints", "'keep_checkpoints'"},
        {"incremental,keep_checkpoints=", "'keep_checkpoints'"},
        {"incremental,keep_checkpoints=0", "keep_checkpoints=0"},
        {"incremental,keep_checkpoints=-1", "keep_checkpoints=-1"},
        {"incremental,keep_checkpoints=all", "keep_checkpoints=all"},
        {"incremental,keep_checkpoints=3x", "keep_checkpoints=3x"},
        {"incremental,keep_checkpoints=100001", "keep_checkpoints=100001"},
        {"incremental,keep_checkpoints=4294967297", "keep_checkpoints=4294967297"},
        {"incremental,keep_checkpoints=18446744073709551617", "keep_checkpoints=18446744073709551617"},
        {"incremental,commit", "'commit'"},
        {"incremental,commit=", "'commit'"},
        {"incremental,commit=yes", "commit=yes"},
        {"incremental,commit=Explicit", "commit=Explicit"},
        {"incremental,commit=umount ", "commit=umount "},
        {"incremental,format=qcow2,backing", "'backing'"},
        {"incremental,format=qcow2,backing=", "'backing'"},
        {"incremental,format=qcow2,backing=%", "backing=%"},
        {"incremental,format=qcow2,backing=%x", "backing=%x"},
        {"incremental,format=qcow2,backing=%d%", "backing=%d%"},
        {"incremental,format=qcow2,backing=%n%s", "backing=%n%s"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_refused(cases[i].string, cases[i].named);
}

static void test_names_keep_their_bytes(void) {
    static const char *const names[] = {"a b", "a=b",  "\xc3\xbc", "a:b", "100%", "vmsnap-20231114T221320.123Z",
                                        "-1",  "a\\b", "'a'"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *string = g_strdup_printf("since=%s,checkpoint=x%s", names[i], names[i]);
        g_autoptr(VmsnapOptions) options = parse(string);
        g_assert_cmpstr(options->since, ==, names[i]);
        g_assert_cmpstr(options->checkpoint + 1, ==, names[i]);
    }
    g_autoptr(VmsnapOptions) quoted = parse("since=\"a,b\",format=qcow2,backing=\"%d, %s\"");
    g_assert_cmpstr(quoted->since, ==, "a,b");
    g_assert_cmpstr(quoted->format.backing, ==, "%d, %s");
}

static void test_the_last_of_several_counts(void) {
    g_autoptr(VmsnapOptions) options = parse("since=cp1,since=cp2,checkpoint=a,checkpoint=b,keep_checkpoints=1,"
                                             "keep_checkpoints=2,commit=explicit,commit=umount,format=qcow2,"
                                             "backing=%d,backing=%s");
    g_assert_cmpstr(options->since, ==, "cp2");
    g_assert_cmpstr(options->checkpoint, ==, "b");
    g_assert_cmpuint(options->keep_checkpoints, ==, 2);
    g_assert_cmpint(options->commit, ==, VMSNAP_COMMIT_UMOUNT);
    g_assert_cmpstr(options->format.backing, ==, "%s");
}

/* A bad value is told, whatever it is used with. */
static void test_sloppy_tolerates_nothing_of_it(void) {
    static const char *const strings[] = {"since=a/b", "keep_checkpoints=0", "incremental,since=cp1", "only_changed"};
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++) {
        g_autoptr(GError) error = NULL;
        const char *arguments[] = {"mount.vmsnap", "-s", "vm1", "/mnt", "-o", strings[i], NULL};
        g_assert_null(vmsnap_options_parse(G_N_ELEMENTS(arguments) - 1, (char **)arguments, &error));
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE);
    }
}

static void test_help_names_each_of_them(void) {
    if (g_test_subprocess()) {
        const char *arguments[] = {"mount.vmsnap", "--help", NULL};
        (void)vmsnap_options_parse(G_N_ELEMENTS(arguments) - 1, (char **)arguments, NULL);
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_passed();
    g_test_trap_assert_stdout("* incremental *checkpoint=*since=*keep_checkpoints=*commit=*backing=*only_changed*");
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
#define ADD(path, function) g_test_add_func("/options-changes/" path, function)
    ADD("nothing-of-it-is-the-default", test_nothing_of_it_is_the_default);
    ADD("they-are-read", test_they_are_read);
    ADD("what-makes-sense-is-accepted", test_what_makes_sense_is_accepted);
    ADD("what-makes-no-sense-is-refused", test_what_makes_no_sense_is_refused);
    ADD("r-is-ro-for-them-too", test_r_is_ro_for_them_too);
    ADD("bad-values-are-refused-by-name", test_bad_values_are_refused_by_name);
    ADD("names-keep-their-bytes", test_names_keep_their_bytes);
    ADD("the-last-of-several-counts", test_the_last_of_several_counts);
    ADD("sloppy-tolerates-nothing-of-it", test_sloppy_tolerates_nothing_of_it);
    ADD("help-names-each-of-them", test_help_names_each_of_them);
#undef ADD
    return g_test_run();
}
