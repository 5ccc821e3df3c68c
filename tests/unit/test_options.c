/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line as people, mount(8), fstab and autofs write it. */
#include "tools/options.h"

#include "vmsnap/error.h"

#include <string.h>
#include <unistd.h>

/* Parses "mount.vmsnap ARGUMENTS...". */
static VmsnapOptions *parse(GError **error, ...) {
    g_autoptr(GPtrArray) arguments = g_ptr_array_new();
    g_ptr_array_add(arguments, (gpointer) "mount.vmsnap");
    va_list list;
    va_start(list, error);
    char *argument;
    while ((argument = va_arg(list, char *)))
        g_ptr_array_add(arguments, argument);
    va_end(list);
    int count = (int)arguments->len;
    g_ptr_array_add(arguments, NULL);
    return vmsnap_options_parse(count, (char **)arguments->pdata, error);
}

static VmsnapOptions *parse_string(const char *string) {
    g_autoptr(GError) error = NULL;
    VmsnapOptions *options = parse(&error, "vm1", "/mnt", "-o", string, NULL);
    g_assert_no_error(error);
    g_assert_nonnull(options);
    return options;
}

/* The error must be one of usage, a single line without a full stop, and have all of @parts in it. */
static void check_usage_error(const GError *error, const char *const *parts) {
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE);
    gboolean full_stop = g_str_has_suffix(error->message, ".") && !g_str_has_suffix(error->message, "...");
    if (strchr(error->message, '\n') || full_stop)
        g_error("'%s' is not one line without a full stop", error->message);
    for (; *parts; parts++)
        if (!strstr(error->message, *parts))
            g_error("'%s' does not say '%s'", error->message, *parts);
}

#define CHECK_USAGE_ERROR(error, ...) check_usage_error(error, (const char *const[]){__VA_ARGS__, NULL})

static void check_refused(const char *string, const char *named) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse(&error, "vm1", "/mnt", "-o", string, NULL);
    if (options)
        g_error("the options '%s' are accepted", string);
    CHECK_USAGE_ERROR(error, named);
}

static void test_a_bare_command_has_the_defaults(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse(&error, "vm1", "/mnt/snap", NULL);
    g_assert_no_error(error);
    g_assert_cmpstr(options->source, ==, "vm1");
    g_assert_cmpstr(options->mount_point, ==, "/mnt/snap");
    g_assert_false(options->fake || options->sloppy || options->verbose || options->foreground);
    g_assert_false(options->show_version || options->allow_other);
    g_assert_null(options->connect_uri);
    g_assert_null(options->disks);
    g_assert_null(options->exclude);
    g_assert_null(options->scratch_dir);
    g_assert_cmpuint(options->uid, ==, geteuid());
    g_assert_cmpuint(options->gid, ==, getegid());
    g_assert_cmpuint(options->mode, ==, 0400);
    g_assert_cmpuint(options->timeout_ms, ==, 30000);
    g_assert_cmpuint(options->connections, ==, 2);
    g_assert_cmpuint(options->readahead_bytes, ==, 64 << 20);
    g_assert_cmpuint(options->speed_bytes_per_s, ==, 0);
    g_assert_cmpint(options->quiesce, ==, VMSNAP_QUIESCE_NO);
    g_assert_cmpuint(options->freeze_timeout_ms, ==, 5000);
    g_assert_cmpuint(options->scratch_reserve_bytes, ==, 512 << 20);
    g_assert_cmpuint(options->scratch_max_bytes, ==, 0);
    g_assert_false(options->read_only || options->release || options->cleanup);
    g_assert_cmpuint(options->mount_options->len, ==, 0);
    g_assert_true(options->format.format == &vmsnap_format_raw);
    g_assert_null(options->config_paths);
}

static void test_own_options_are_read(void) {
    g_autoptr(VmsnapOptions) options = parse_string(
        "connect=qemu:///session,disks=vda:vdb,exclude=sda,scratch=/srv/scratch,uid=1000,gid=1001,"
        "mode=0440,allow_other,timeout=7,connections=5,readahead=3M,speed=4K,ro,quiesce=try,freeze_timeout=9,"
        "scratch_reserve=2G,scratch_max=10G");
    g_assert_cmpstr(options->connect_uri, ==, "qemu:///session");
    g_assert_cmpstrv(options->disks, ((const char *[]){"vda", "vdb", NULL}));
    g_assert_cmpstrv(options->exclude, ((const char *[]){"sda", NULL}));
    g_assert_cmpstr(options->scratch_dir, ==, "/srv/scratch");
    g_assert_cmpuint(options->uid, ==, 1000);
    g_assert_cmpuint(options->gid, ==, 1001);
    g_assert_cmpuint(options->mode, ==, 0440);
    g_assert_true(options->allow_other);
    g_assert_cmpuint(options->timeout_ms, ==, 7000);
    g_assert_cmpuint(options->connections, ==, 5);
    g_assert_cmpuint(options->readahead_bytes, ==, 3 << 20);
    g_assert_cmpuint(options->speed_bytes_per_s, ==, 4096);
    g_assert_cmpint(options->quiesce, ==, VMSNAP_QUIESCE_TRY);
    g_assert_cmpuint(options->freeze_timeout_ms, ==, 9000);
    g_assert_cmpuint(options->scratch_reserve_bytes, ==, UINT64_C(2) << 30);
    g_assert_cmpuint(options->scratch_max_bytes, ==, UINT64_C(10) << 30);
    g_assert_true(options->read_only);
    g_assert_cmpuint(options->mount_options->len, ==, 0);
}

static VmsnapOptions *parse_for_qmp(const char *string, GError **error) {
    return parse(error, "qmp:run/vm1.qmp", "/mnt", "-o", string, NULL);
}

static void test_options_of_a_machine_without_libvirt_are_read(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse_for_qmp("release,agent=vm1.qga,quiesce=require,scratch=/srv", &error);
    g_assert_no_error(error);
    g_autofree char *agent = g_canonicalize_filename("vm1.qga", NULL);
    g_autofree char *path = g_canonicalize_filename("run/vm1.qmp", NULL);
    g_autofree char *source = g_strconcat("qmp:", path, NULL);
    g_assert_cmpstr(options->source, ==, source);
    g_assert_cmpstr(options->agent, ==, agent);
    g_assert_true(options->release);
}

static void test_what_only_libvirt_does_is_refused_without(void) {
    static const char *const refused[] = {"connect=qemu:///system", "checkpoint=cp1", "since=cp1",  "incremental",
                                          "keep_checkpoints=1",     "commit=umount",  "backing=%d", "only_changed"};
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autoptr(GError) error = NULL;
        g_auto(GStrv) parts = g_strsplit(refused[i], "=", 2);
        g_autofree char *quoted = g_strdup_printf("failed to use option '%s' with 'qmp:/", parts[0]);
        g_autoptr(VmsnapOptions) options = parse_for_qmp(refused[i], &error);
        g_assert_null(options);
        CHECK_USAGE_ERROR(error, quoted);
    }
}

static void test_an_agent_is_only_for_quiesce(void) {
    static const char *const strings[] = {"agent=/run/vm1.qga", "agent=/run/vm1.qga,quiesce=no",
                                          "agent=/run/vm1.qga,quiesce=try,quiesce=no"};
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmsnapOptions) options = parse_for_qmp(strings[i], &error);
        g_assert_null(options);
        CHECK_USAGE_ERROR(error, "'agent'", "quiesce=try");
    }
}

static void test_a_guest_is_frozen_as_asked(void) {
    static const struct {
        const char *string;
        VmsnapQuiesceMode mode;
    } cases[] = {{"quiesce=no", VMSNAP_QUIESCE_NO},
                 {"quiesce=try", VMSNAP_QUIESCE_TRY},
                 {"quiesce=require", VMSNAP_QUIESCE_REQUIRE},
                 {"quiesce=require,quiesce=no", VMSNAP_QUIESCE_NO}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmsnapOptions) options = parse_string(cases[i].string);
        g_assert_cmpint(options->quiesce, ==, cases[i].mode);
    }
}

static void test_disks_have_a_format(void) {
    static const struct {
        const char *string;
        const VmsnapFormat *format;
        uint32_t cluster_bytes;
    } cases[] = {{"format=raw", &vmsnap_format_raw, 65536},
                 {"format=qcow2", &vmsnap_format_qcow2, 65536},
                 {"format=vma", &vmsnap_format_vma, 65536},
                 {"format=vma,format=qcow2", &vmsnap_format_qcow2, 65536},
                 {"format=qcow2,cluster_size=512", &vmsnap_format_qcow2, 512},
                 {"cluster_size=4096,format=qcow2", &vmsnap_format_qcow2, 4096},
                 {"format=qcow2,cluster_size=128K", &vmsnap_format_qcow2, 131072},
                 {"format=qcow2,cluster_size=2M", &vmsnap_format_qcow2, 2097152},
                 {"format=qcow2,cluster_size=4k,cluster_size=1M", &vmsnap_format_qcow2, 1048576}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmsnapOptions) options = parse_string(cases[i].string);
        g_assert_true(options->format.format == cases[i].format);
        g_assert_cmpuint(options->format.cluster_bytes, ==, cases[i].cluster_bytes);
    }
}

static void test_no_other_formats_are_known(void) {
    check_refused("format=", "format");
    check_refused("format=vmdk", "'format=vmdk': it is none of raw, qcow2 and vma");
    check_refused("format=QCOW2", "'format=QCOW2'");
    check_refused("format=raw:qcow2", "'format=raw:qcow2'");
}

static void test_clusters_have_a_power_of_two_from_512_to_2m(void) {
    static const char *const sizes[] = {"0",  "1",  "256",     "511",        "513", "1000", "65535", "3K",
                                        "3M", "4M", "2097153", "4294967808", "1G",  "-1",   "64KB",  "big"};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *string = g_strdup_printf("format=qcow2,cluster_size=%s", sizes[i]);
        g_autofree char *named = g_strdup_printf("'cluster_size=%s'", sizes[i]);
        check_refused(string, named);
    }
}

/* Whoever chooses clusters means qcow2, and would have had something else. */
static void test_only_qcow2_has_clusters_to_choose(void) {
    check_refused("cluster_size=64K", "only format=qcow2 has clusters to choose");
    check_refused("cluster_size=64K,format=raw", "'cluster_size'");
    check_refused("format=vma,cluster_size=64K", "'cluster_size'");
    check_refused("format=qcow2,cluster_size=64K,format=vma", "'cluster_size'");
    g_autoptr(GError) error = NULL;
    g_assert_null(parse(&error, "vm1", "/mnt", "-o", "cluster_size=1M", "-o", "format=raw", NULL));
    CHECK_USAGE_ERROR(error, "'cluster_size'");
    g_autoptr(GError) no_error = NULL;
    g_autoptr(VmsnapOptions) options =
        parse(&no_error, "vm1", "/mnt", "-o", "cluster_size=1M", "-o", "format=qcow2", NULL);
    g_assert_no_error(no_error);
    g_assert_cmpuint(options->format.cluster_bytes, ==, 1 << 20);
}

static void test_more_files_are_named(void) {
    g_autoptr(VmsnapOptions) one = parse_string("config=/etc/hosts");
    g_assert_cmpstrv(one->config_paths, ((const char *[]){"/etc/hosts", NULL}));
    g_autoptr(VmsnapOptions) two = parse_string("config=/a b:../c.conf");
    g_assert_cmpstrv(two->config_paths, ((const char *[]){"/a b", "../c.conf", NULL}));
    g_autoptr(VmsnapOptions) again = parse_string("config=/a:/b,config=/c");
    g_assert_cmpstrv(again->config_paths, ((const char *[]){"/a", "/b", "/c", NULL}));
    check_refused("config=", "config");
    check_refused("config=/a:", "config=/a:");
    check_refused("config=:/a", "config=FILE:FILE");
    check_refused("config=/a::/b", "config=/a::/b");
}

static void test_times_are_seconds_up_to_a_bound(void) {
    g_autoptr(VmsnapOptions) least = parse_string("timeout=1,freeze_timeout=1");
    g_assert_cmpuint(least->timeout_ms, ==, 1000);
    g_assert_cmpuint(least->freeze_timeout_ms, ==, 1000);
    g_autoptr(VmsnapOptions) most = parse_string("timeout=3600,freeze_timeout=300");
    g_assert_cmpuint(most->timeout_ms, ==, 3600000);
    g_assert_cmpuint(most->freeze_timeout_ms, ==, 300000);
}

static void test_users_and_groups_have_names(void) {
    g_autoptr(VmsnapOptions) options = parse_string("uid=root,gid=root");
    g_assert_cmpuint(options->uid, ==, 0);
    g_assert_cmpuint(options->gid, ==, 0);
}

static void test_no_mode_makes_files_executable(void) {
    static const struct {
        const char *string;
        mode_t mode;
    } cases[] = {{"mode=0777", 0666}, {"mode=644", 0644}, {"mode=400", 0400}, {"mode=0", 0}, {"mode=0750", 0640}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmsnapOptions) options = parse_string(cases[i].string);
        g_assert_cmpuint(options->mode, ==, cases[i].mode);
    }
}

static void test_a_disk_has_1_to_16_connections(void) {
    for (unsigned n = 1; n <= 16; n++) {
        g_autofree char *string = g_strdup_printf("connections=%u", n);
        g_autoptr(VmsnapOptions) options = parse_string(string);
        g_assert_cmpuint(options->connections, ==, n);
    }
}

static void test_sizes_have_suffixes(void) {
    static const struct {
        const char *value;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},        {"1", 1},          {"100001", 100001},        {"7k", 7 << 10},
        {"7K", 7 << 10}, {"64M", 64 << 20}, {"3G", UINT64_C(3) << 30}, {"1T", UINT64_C(1) << 40},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const char *value = cases[i].value;
        g_autofree char *string =
            g_strdup_printf("readahead=%s,speed=%s,scratch_reserve=%s,scratch_max=%s", value, value, value, value);
        g_autoptr(VmsnapOptions) options = parse_string(string);
        g_assert_cmpuint(options->readahead_bytes, ==, cases[i].bytes);
        g_assert_cmpuint(options->speed_bytes_per_s, ==, cases[i].bytes);
        g_assert_cmpuint(options->scratch_reserve_bytes, ==, cases[i].bytes);
        g_assert_cmpuint(options->scratch_max_bytes, ==, cases[i].bytes);
    }
}

static void test_a_limit_may_be_as_high_as_numbers_go(void) {
    g_autoptr(VmsnapOptions) options = parse_string(
        "speed=18446744073709551615,scratch_reserve=18446744073709551615,scratch_max=18446744073709551615");
    g_assert_cmpuint(options->speed_bytes_per_s, ==, UINT64_MAX);
    g_assert_cmpuint(options->scratch_reserve_bytes, ==, UINT64_MAX);
    g_assert_cmpuint(options->scratch_max_bytes, ==, UINT64_MAX);
}

/* mount(8) hands over "ro" and "rw"; people who call the helper themselves write -r too. */
static void test_the_last_of_ro_and_rw_counts(void) {
    static const struct {
        const char *string;
        gboolean read_only;
    } cases[] = {{"ro", TRUE}, {"rw", FALSE}, {"ro,rw", FALSE}, {"rw,ro", TRUE}, {"rw,timeout=5,ro,noexec", TRUE}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmsnapOptions) options = parse_string(cases[i].string);
        g_assert_cmpint(options->read_only, ==, cases[i].read_only);
    }
}

static void test_r_is_read_only(void) {
    static const char *const spellings[] = {"-r", "--read-only", "-nrv"};
    for (size_t i = 0; i < G_N_ELEMENTS(spellings); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmsnapOptions) options = parse(&error, spellings[i], "vm1", "/mnt", "-o", "timeout=5", NULL);
        g_assert_no_error(error);
        g_assert_true(options->read_only);
    }
}

static void test_a_relative_scratch_directory_becomes_absolute(void) {
    g_autofree char *directory = g_get_current_dir();
    g_autofree char *expected = g_build_filename(directory, "scratch", NULL);
    g_autoptr(VmsnapOptions) options = parse_string("scratch=./scratch");
    g_assert_cmpstr(options->scratch_dir, ==, expected);
}

static void test_the_last_of_several_counts(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options =
        parse(&error, "-o", "disks=vda,timeout=5,connect=a:///", "vm1", "-o", "disks=vdb:vdc", "/mnt", "-o",
              "timeout=6,connect=b:///,scratch=/a,scratch=/b", NULL);
    g_assert_no_error(error);
    g_assert_cmpstrv(options->disks, ((const char *[]){"vdb", "vdc", NULL}));
    g_assert_cmpuint(options->timeout_ms, ==, 6000);
    g_assert_cmpstr(options->connect_uri, ==, "b:///");
    g_assert_cmpstr(options->scratch_dir, ==, "/b");
}

static void test_bad_values_are_refused_by_name(void) {
    static const struct {
        const char *string;
        const char *named;
    } cases[] = {
        {"connect", "'connect'"},
        {"connect=", "'connect'"},
        {"disks", "'disks'"},
        {"disks=", "'disks'"},
        {"disks=:", "disks=:"},
        {"disks=vda:", "disks=vda:"},
        {"disks=:vda", "disks=:vda"},
        {"disks=vda::vdb", "disks=vda::vdb"},
        {"exclude=", "'exclude'"},
        {"exclude=vda:", "exclude=vda:"},
        {"scratch", "'scratch'"},
        {"scratch=", "'scratch'"},
        {"uid", "'uid'"},
        {"uid=nobody-of-that-name", "uid=nobody-of-that-name"},
        {"uid=-1", "uid=-1"},
        {"uid=4294967295", "uid=4294967295"},
        {"uid=18446744073709551616", "uid=18446744073709551616"},
        {"uid=10x", "uid=10x"},
        {"gid=", "'gid'"},
        {"gid=no-group-of-that-name", "gid=no-group-of-that-name"},
        {"gid=4294967295", "gid=4294967295"},
        {"mode=", "'mode'"},
        {"mode=0800", "mode=0800"},
        {"mode=1000", "mode=1000"},
        {"mode=u+r", "mode=u+r"},
        {"mode=-400", "mode=-400"},
        {"timeout=", "'timeout'"},
        {"timeout=0", "timeout=0"},
        {"timeout=-1", "timeout=-1"},
        {"timeout=3601", "timeout=3601"},
        {"timeout=5s", "timeout=5s"},
        {"timeout= 5", "timeout= 5"},
        {"timeout=99999999999999999999", "timeout=99999999999999999999"},
        {"connections", "'connections'"},
        {"connections=", "'connections'"},
        {"connections=0", "connections=0"},
        {"connections=17", "connections=17"},
        {"connections=-1", "connections=-1"},
        {"connections=2x", "connections=2x"},
        {"connections=18446744073709551618", "connections=18446744073709551618"},
        {"readahead", "'readahead'"},
        {"readahead=", "'readahead'"},
        {"readahead=no", "readahead=no"},
        {"readahead=-1", "readahead=-1"},
        {"readahead=64MB", "readahead=64MB"},
        {"readahead=M", "readahead=M"},
        {"readahead=1099511627777", "readahead=1099511627777"},
        {"readahead=1025G", "readahead=1025G"},
        {"readahead=2T", "readahead=2T"},
        {"readahead=16777216T", "readahead=16777216T"},
        {"release=1", "release=1"},
        {"release=", "release="},
        {"speed", "'speed'"},
        {"speed=", "'speed'"},
        {"speed=fast", "speed=fast"},
        {"speed=1.5M", "speed=1.5M"},
        {"speed=50M/s", "speed=50M/s"},
        {"speed= 50M", "speed= 50M"},
        {"speed=18446744073709551616", "speed=18446744073709551616"},
        {"quiesce", "'quiesce'"},
        {"quiesce=", "'quiesce'"},
        {"quiesce=yes", "quiesce=yes"},
        {"quiesce=1", "quiesce=1"},
        {"quiesce=Try", "quiesce=Try"},
        {"quiesce=required", "quiesce=required"},
        {"quiesce=try ", "quiesce=try "},
        {"freeze_timeout", "'freeze_timeout'"},
        {"freeze_timeout=", "'freeze_timeout'"},
        {"freeze_timeout=0", "freeze_timeout=0"},
        {"freeze_timeout=-1", "freeze_timeout=-1"},
        {"freeze_timeout=301", "freeze_timeout=301"},
        {"freeze_timeout=5s", "freeze_timeout=5s"},
        {"freeze_timeout=18446744073709551617", "freeze_timeout=18446744073709551617"},
        {"scratch_reserve", "'scratch_reserve'"},
        {"scratch_reserve=", "'scratch_reserve'"},
        {"scratch_reserve=10%", "scratch_reserve=10%"},
        {"scratch_reserve=-1", "scratch_reserve=-1"},
        {"scratch_reserve=1.5G", "scratch_reserve=1.5G"},
        {"scratch_reserve=18446744073709551616", "scratch_reserve=18446744073709551616"},
        {"scratch_max", "'scratch_max'"},
        {"scratch_max=", "'scratch_max'"},
        {"scratch_max=none", "scratch_max=none"},
        {"scratch_max=10GB", "scratch_max=10GB"},
        {"scratch_max=16777216T", "scratch_max=16777216T"},
        {"ro=1", "ro=1"},
        {"rw=", "rw="},
        {"allow_other=1", "allow_other=1"},
        {"allow_other=", "allow_other="},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_refused(cases[i].string, cases[i].named);
}

static void test_a_bad_value_among_good_ones_is_refused(void) {
    check_refused("rw,uid=0,timeout=never,disks=vda", "timeout=never");
    check_refused("rw,timeout=never,remount", "timeout=never");
}

static void test_remount_is_refused(void) {
    check_refused("remount", "'remount'");
    check_refused("remount,rw", "'remount'");
}

static void test_options_of_mount_are_accepted(void) {
    static const char *const strings[] = {
        "rw",
        "ro",
        "defaults",
        "auto",
        "noauto",
        "user",
        "user=jane",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "dirsync",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "strictatime",
        "lazytime",
        "diratime",
        "nodiratime",
        "nosymfollow",
        "silent",
        "loud",
        "x-systemd.automount",
        "x-systemd.idle-timeout=10min",
        "x-systemd.requires=libvirtd.service",
        "x-gvfs-hide",
        "x-mount.mkdir=0700",
        "X-mount.mkdir",
        "x-anything,X-anything=at all",
        "comment=systemd.automount",
        "comment=",
        "uhelper=vmsnap",
        "helper=vmsnap",
        "",
        ",",
        "rw,,ro",
        "noauto,user,nofail,_netdev,x-systemd.automount,x-gvfs-hide,comment=backup,defaults,relatime",
        "rw,nosuid,nodev,noexec,relatime,user=jane,uhelper=vmsnap",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++) {
        g_autoptr(VmsnapOptions) options = parse_string(strings[i]);
        g_assert_false(options->allow_other);
        g_assert_cmpuint(options->mode, ==, 0400);
    }
}

/* The kernel gets what means something to it, and nothing that libfuse or it would refuse. */
static void test_only_what_the_kernel_knows_is_forwarded(void) {
    static const struct {
        const char *string;
        const char *forwarded;
    } cases[] = {
        {"rw,noauto,user,nofail,_netdev,x-systemd.automount,comment=a,defaults,relatime", ""},
        {"noexec,allow_other,noatime", "noexec,noatime"},
        {"nodiratime,timeout=5,noexec", "nodiratime,noexec"},
        {"context=system_u:object_r:tmp_t:s0", "context=system_u:object_r:tmp_t:s0"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmsnapOptions) options = parse_string(cases[i].string);
        g_assert_cmpstr(options->mount_options->str, ==, cases[i].forwarded);
    }
}

static void test_unknown_options_are_refused_unless_sloppy(void) {
    static const char *const unknown[] = {"nonsense",   "nonsense=1", "disk=vda", "Disks=vda", "vda",
                                          "allow_othe", "allow_root", "fsname=x", "uidx=1",    "commen=x"};
    for (size_t i = 0; i < G_N_ELEMENTS(unknown); i++) {
        g_autofree char *name = g_strndup(unknown[i], strcspn(unknown[i], "="));
        g_autofree char *quoted = g_strdup_printf("'%s'", name);
        check_refused(unknown[i], quoted);
        g_autoptr(GError) error = NULL;
        g_autoptr(VmsnapOptions) options = parse(&error, "vm1", "/mnt", "-s", "-o", unknown[i], NULL);
        g_assert_no_error(error);
        g_assert_true(options->sloppy);
        g_assert_cmpuint(options->mount_options->len, ==, 0);
    }
}

static void test_sloppy_tolerates_no_bad_values(void) {
    g_autoptr(GError) error = NULL;
    g_assert_null(parse(&error, "vm1", "/mnt", "-s", "-o", "timeout=never", NULL));
    CHECK_USAGE_ERROR(error, "timeout=never");
}

static void test_quotes_keep_commas(void) {
    g_autoptr(VmsnapOptions) options = parse_string("connect=\"qemu:///system?a,b\",scratch=\"/srv/a, b\",timeout=5");
    g_assert_cmpstr(options->connect_uri, ==, "qemu:///system?a,b");
    g_assert_cmpstr(options->scratch_dir, ==, "/srv/a, b");
    g_assert_cmpuint(options->timeout_ms, ==, 5000);
}

static void test_open_quotes_are_refused(void) {
    check_refused("scratch=\"/srv", "quote");
    check_refused("scratch=\"/srv,timeout=5", "quote");
    check_refused("timeout=5,scratch=\"", "quote");
}

static void test_values_keep_their_bytes(void) {
    g_autoptr(VmsnapOptions) utf8 = parse_string("scratch=/srv/b\xc3\xbcro,connect=test:///\xc3\xa9");
    g_assert_cmpstr(utf8->scratch_dir, ==, "/srv/b\xc3\xbcro");
    g_assert_cmpstr(utf8->connect_uri, ==, "test:///\xc3\xa9");
    g_autoptr(VmsnapOptions) latin1 = parse_string("scratch=/srv/b\xfcro");
    g_assert_cmpstr(latin1->scratch_dir, ==, "/srv/b\xfcro");
    g_autoptr(VmsnapOptions) equals = parse_string("connect=qemu:///system?socket=/run/a=b");
    g_assert_cmpstr(equals->connect_uri, ==, "qemu:///system?socket=/run/a=b");
}

static void test_operands_keep_their_bytes(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse(&error, "b\xfcro \xc3\xbc,1", "/mnt/\xfc x", NULL);
    g_assert_no_error(error);
    g_assert_cmpstr(options->source, ==, "b\xfcro \xc3\xbc,1");
    g_assert_cmpstr(options->mount_point, ==, "/mnt/\xfc x");
}

/* mount(8) hands over the path of a file in its directory that is called as the domain. */
static void test_a_source_that_mount_took_for_a_file_is_a_name_again(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse(&error, "/root/vm1", "/mnt", NULL);
    g_assert_no_error(error);
    g_assert_cmpstr(options->source, ==, "vm1");
}

static void test_other_kinds_of_sources_stay_as_typed(void) {
    static const char *const sources[] = {"qmp:/run/vm1/qmp.sock", "nbd+unix:///vda?socket=/run/nbd.sock",
                                          "nbd://localhost:10809", "7", "6f1c2d3e-0000-4000-8000-000000000001"};
    for (size_t i = 0; i < G_N_ELEMENTS(sources); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmsnapOptions) options = parse(&error, sources[i], "/mnt", NULL);
        g_assert_no_error(error);
        g_assert_cmpstr(options->source, ==, sources[i]);
    }
}

/* The daemon leaves the directory. */
static void test_paths_in_a_source_become_absolute(void) {
    g_autoptr(GError) error = NULL;
    g_autofree char *here = g_get_current_dir();
    g_autofree char *escaped = g_uri_escape_string(here, "/", FALSE);
    g_autofree char *expected = g_strdup_printf("nbd+unix:///vda?socket=%s/nbd.sock", escaped);
    g_autoptr(VmsnapOptions) options = parse(&error, "nbd+unix:///vda?socket=nbd.sock", "/mnt", NULL);
    g_assert_no_error(error);
    g_assert_cmpstr(options->source, ==, expected);
    g_autoptr(VmsnapOptions) cleanup = parse(&error, "--cleanup", "nbd+unix:///vda?socket=nbd.sock", NULL);
    g_assert_no_error(error);
    g_assert_cmpstr(cleanup->source, ==, expected);
}

/* Only where they are given; and before it is told what is missing with them. */
static void test_options_that_an_export_has_no_use_for_are_refused(void) {
    static const char *const refused[] = {
        "connect=qemu:///system", "quiesce=no",    "quiesce=try", "freeze_timeout=5", "scratch=/var/tmp",
        "scratch_reserve=1G",     "scratch_max=0", "incremental", "checkpoint=cp1",   "since=cp1",
        "keep_checkpoints=3",     "commit=umount", "backing=%d",  "only_changed",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GError) no_error = NULL;
        g_autofree char *name = g_strndup(refused[i], strcspn(refused[i], "="));
        g_autofree char *quoted = g_strdup_printf("failed to use option '%s' with 'nbd://h/vda': ", name);
        g_autoptr(VmsnapOptions) options = parse(&error, "nbd://h/vda", "/mnt", "-o", refused[i], NULL);
        g_assert_null(options);
        CHECK_USAGE_ERROR(error, quoted, "; leave it out");
        g_autoptr(VmsnapOptions) cleanup = parse(&no_error, "--cleanup", "nbd://h/vda", NULL);
        g_assert_no_error(no_error);
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options =
        parse(&error, "nbd://h/vda", "/mnt", "-o",
              "disks=a,exclude=b,format=qcow2,timeout=5,connections=4,readahead=0,speed=1M,uid=0,mode=440,ro", NULL);
    g_assert_no_error(error);
    g_assert_nonnull(options);
}

static void test_letters_may_be_bundled(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse(&error, "vm1", "/mnt", "-fnrsv", NULL);
    g_assert_no_error(error);
    g_assert_true(options->fake && options->sloppy && options->verbose);
    g_assert_false(options->foreground);
}

static void test_each_letter_of_mount_is_accepted(void) {
    static const char *const letters[] = {"-f", "-n", "-r", "-s", "-v", "-w"};
    for (size_t i = 0; i < G_N_ELEMENTS(letters); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmsnapOptions) options = parse(&error, "vm1", "/mnt", letters[i], NULL);
        g_assert_no_error(error);
        g_assert_cmpint(options->fake, ==, letters[i][1] == 'f');
        g_assert_cmpint(options->verbose, ==, letters[i][1] == 'v');
        g_assert_cmpint(options->read_only, ==, letters[i][1] == 'r');
    }
}

/* The way mount(8) calls its helpers: "SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE]". */
static void test_the_call_of_mount_is_understood(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options =
        parse(&error, "vm1", "/mnt", "-sfnv", "-N", "/proc/1/ns/mnt", "-o", "rw,timeout=9", "-t", "vmsnap", NULL);
    g_assert_no_error(error);
    g_assert_cmpstr(options->source, ==, "vm1");
    g_assert_cmpstr(options->mount_point, ==, "/mnt");
    g_assert_cmpuint(options->timeout_ms, ==, 9000);
}

static void test_foreground_is_a_long_option(void) {
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = parse(&error, "--foreground", "vm1", "/mnt", NULL);
    g_assert_no_error(error);
    g_assert_true(options->foreground);
    g_assert_false(options->fake);
}

static void test_the_version_needs_no_operands(void) {
    static const char *const spellings[] = {"-V", "--version"};
    for (size_t i = 0; i < G_N_ELEMENTS(spellings); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(VmsnapOptions) options = parse(&error, spellings[i], NULL);
        g_assert_no_error(error);
        g_assert_true(options->show_version);
    }
}

static void test_help_is_printed(void) {
    static const char *const spellings[] = {"-h", "--help"};
    if (g_test_subprocess()) {
        (void)parse(NULL, spellings[0], NULL);
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_passed();
    g_test_trap_assert_stdout(
        "*SOURCE MOUNTPOINT*connect=URI*disks=*exclude=*scratch=*timeout=*connections=*readahead=*speed=* release *");
}

static void test_missing_and_surplus_operands_are_refused(void) {
    g_autoptr(GError) none = NULL, one = NULL, three = NULL, empty = NULL;
    g_assert_null(parse(&none, NULL));
    CHECK_USAGE_ERROR(none, "SOURCE MOUNTPOINT");
    g_assert_null(parse(&one, "vm1", NULL));
    CHECK_USAGE_ERROR(one, "SOURCE MOUNTPOINT");
    g_assert_null(parse(&three, "vm1", "/mnt", "/mnt2", NULL));
    CHECK_USAGE_ERROR(three, "SOURCE MOUNTPOINT");
    g_assert_null(parse(&empty, "", "/mnt", NULL));
    CHECK_USAGE_ERROR(empty, "no name");
}

static VmsnapOptions *parse_cleanup(const char *domain) {
    g_autoptr(GError) error = NULL;
    VmsnapOptions *options = parse(&error, "--cleanup", domain, NULL);
    g_assert_no_error(error);
    g_assert_nonnull(options);
    g_assert_true(options->cleanup);
    g_assert_null(options->mount_point);
    return options;
}

static void test_cleanup_takes_a_domain_or_none(void) {
    static const char *const domains[] = {"vm1", "6f1c2d3e-0000-4000-8000-00000000000a", "a b", "\xff", "7"};
    g_autoptr(VmsnapOptions) all = parse_cleanup(NULL);
    g_assert_null(all->source);
    for (size_t i = 0; i < G_N_ELEMENTS(domains); i++) {
        g_autoptr(VmsnapOptions) options = parse_cleanup(domains[i]);
        g_assert_cmpstr(options->source, ==, domains[i]);
    }
}

static void test_cleanup_mounts_nothing(void) {
    g_autoptr(GError) two = NULL, after = NULL;
    g_assert_null(parse(&two, "--cleanup", "vm1", "/mnt", NULL));
    CHECK_USAGE_ERROR(two, "--cleanup [DOMAIN]");
    g_assert_null(parse(&after, "vm1", "/mnt", "--cleanup", NULL));
    CHECK_USAGE_ERROR(after, "--cleanup [DOMAIN]");
}

/* There is nothing to choose with -o, but what is wrong there is still told. */
static void test_cleanup_takes_options(void) {
    g_autoptr(GError) error = NULL, bad = NULL;
    g_autoptr(VmsnapOptions) options =
        parse(&error, "-v", "-o", "connect=qemu:///session,timeout=5", "--cleanup", "vm1", NULL);
    g_assert_no_error(error);
    g_assert_true(options->cleanup && options->verbose);
    g_assert_cmpstr(options->source, ==, "vm1");
    g_assert_cmpuint(options->timeout_ms, ==, 5000);
    g_assert_null(parse(&bad, "--cleanup", "-o", "timeout=never", NULL));
    CHECK_USAGE_ERROR(bad, "timeout=never");
}

static void test_unknown_letters_are_refused(void) {
    static const char *const arguments[] = {"-x", "--nonsense", "-fx", "-o"};
    for (size_t i = 0; i < G_N_ELEMENTS(arguments); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(parse(&error, "vm1", "/mnt", arguments[i], NULL));
        CHECK_USAGE_ERROR(error, "--help");
    }
}

static void test_free_takes_null(void) {
    vmsnap_options_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/options/a-bare-command-has-the-defaults", test_a_bare_command_has_the_defaults);
    g_test_add_func("/options/own-options-are-read", test_own_options_are_read);
    g_test_add_func("/options/options-of-a-machine-without-libvirt-are-read",
                    test_options_of_a_machine_without_libvirt_are_read);
    g_test_add_func("/options/what-only-libvirt-does-is-refused-without",
                    test_what_only_libvirt_does_is_refused_without);
    g_test_add_func("/options/an-agent-is-only-for-quiesce", test_an_agent_is_only_for_quiesce);
    g_test_add_func("/options/a-guest-is-frozen-as-asked", test_a_guest_is_frozen_as_asked);
    g_test_add_func("/options/disks-have-a-format", test_disks_have_a_format);
    g_test_add_func("/options/no-other-formats-are-known", test_no_other_formats_are_known);
    g_test_add_func("/options/clusters-have-a-power-of-two-from-512-to-2m",
                    test_clusters_have_a_power_of_two_from_512_to_2m);
    g_test_add_func("/options/only-qcow2-has-clusters-to-choose", test_only_qcow2_has_clusters_to_choose);
    g_test_add_func("/options/more-files-are-named", test_more_files_are_named);
    g_test_add_func("/options/times-are-seconds-up-to-a-bound", test_times_are_seconds_up_to_a_bound);
    g_test_add_func("/options/users-and-groups-have-names", test_users_and_groups_have_names);
    g_test_add_func("/options/no-mode-makes-files-executable", test_no_mode_makes_files_executable);
    g_test_add_func("/options/a-disk-has-1-to-16-connections", test_a_disk_has_1_to_16_connections);
    g_test_add_func("/options/sizes-have-suffixes", test_sizes_have_suffixes);
    g_test_add_func("/options/a-limit-may-be-as-high-as-numbers-go", test_a_limit_may_be_as_high_as_numbers_go);
    g_test_add_func("/options/the-last-of-ro-and-rw-counts", test_the_last_of_ro_and_rw_counts);
    g_test_add_func("/options/r-is-read-only", test_r_is_read_only);
    g_test_add_func("/options/a-relative-scratch-directory-becomes-absolute",
                    test_a_relative_scratch_directory_becomes_absolute);
    g_test_add_func("/options/the-last-of-several-counts", test_the_last_of_several_counts);
    g_test_add_func("/options/bad-values-are-refused-by-name", test_bad_values_are_refused_by_name);
    g_test_add_func("/options/a-bad-value-among-good-ones-is-refused", test_a_bad_value_among_good_ones_is_refused);
    g_test_add_func("/options/remount-is-refused", test_remount_is_refused);
    g_test_add_func("/options/options-of-mount-are-accepted", test_options_of_mount_are_accepted);
    g_test_add_func("/options/only-what-the-kernel-knows-is-forwarded", test_only_what_the_kernel_knows_is_forwarded);
    g_test_add_func("/options/unknown-options-are-refused-unless-sloppy",
                    test_unknown_options_are_refused_unless_sloppy);
    g_test_add_func("/options/sloppy-tolerates-no-bad-values", test_sloppy_tolerates_no_bad_values);
    g_test_add_func("/options/quotes-keep-commas", test_quotes_keep_commas);
    g_test_add_func("/options/open-quotes-are-refused", test_open_quotes_are_refused);
    g_test_add_func("/options/values-keep-their-bytes", test_values_keep_their_bytes);
    g_test_add_func("/options/operands-keep-their-bytes", test_operands_keep_their_bytes);
    g_test_add_func("/options/a-source-that-mount-took-for-a-file-is-a-name-again",
                    test_a_source_that_mount_took_for_a_file_is_a_name_again);
    g_test_add_func("/options/other-kinds-of-sources-stay-as-typed", test_other_kinds_of_sources_stay_as_typed);
    g_test_add_func("/options/paths-in-a-source-become-absolute", test_paths_in_a_source_become_absolute);
    g_test_add_func("/options/those-that-an-export-has-no-use-for-are-refused",
                    test_options_that_an_export_has_no_use_for_are_refused);
    g_test_add_func("/options/letters-may-be-bundled", test_letters_may_be_bundled);
    g_test_add_func("/options/each-letter-of-mount-is-accepted", test_each_letter_of_mount_is_accepted);
    g_test_add_func("/options/the-call-of-mount-is-understood", test_the_call_of_mount_is_understood);
    g_test_add_func("/options/foreground-is-a-long-option", test_foreground_is_a_long_option);
    g_test_add_func("/options/the-version-needs-no-operands", test_the_version_needs_no_operands);
    g_test_add_func("/options/help-is-printed", test_help_is_printed);
    g_test_add_func("/options/missing-and-surplus-operands-are-refused", test_missing_and_surplus_operands_are_refused);
    g_test_add_func("/options/cleanup-takes-a-domain-or-none", test_cleanup_takes_a_domain_or_none);
    g_test_add_func("/options/cleanup-mounts-nothing", test_cleanup_mounts_nothing);
    g_test_add_func("/options/cleanup-takes-options", test_cleanup_takes_options);
    g_test_add_func("/options/unknown-letters-are-refused", test_unknown_letters_are_refused);
    g_test_add_func("/options/free-takes-null", test_free_takes_null);
    return g_test_run();
}
