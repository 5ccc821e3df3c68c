/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mount(8) calls its helpers as "mount.vmsnap SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]", and people
 * call it the same way. libmount knows which options are common to all filesystems; what it does not know must be ours.
 */
#include "options.h"

#include "fs/size.h"
#include "option_rules.h"
#include "vmsnap/checkpoint_name.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <grp.h>
#include <libmount.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_MODE 0400
#define DEFAULT_TIMEOUT_S 30
#define MAX_TIMEOUT_S 3600
#define DEFAULT_CONNECTIONS 2
#define MAX_CONNECTIONS 16
#define DEFAULT_READAHEAD_BYTES (UINT64_C(64) << 20)
#define MAX_READAHEAD_BYTES (UINT64_C(1) << 40)
#define DEFAULT_FREEZE_TIMEOUT_S 5
#define MAX_FREEZE_TIMEOUT_S 300
#define DEFAULT_CLUSTER_BYTES (64U << 10)
#define MIN_CLUSTER_BYTES 512
#define MAX_CLUSTER_BYTES (UINT64_C(2) << 20)
#define MAX_KEEP_CHECKPOINTS 100000
#define DEFAULT_SCRATCH_RESERVE_BYTES (UINT64_C(512) << 20)

static gboolean usage_error(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

static gboolean usage_error(GError **error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *message = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_set_error_literal(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE, message);
    return FALSE;
}

static gboolean set_string(char **target, const char *value) {
    g_free(*target);
    *target = g_strdup(value);
    return TRUE;
}

static gboolean set_names(char ***target, const char *name, const char *example, const char *value, GError **error) {
    g_auto(GStrv) names = g_strsplit(value, ":", -1);
    for (char **each = names; *each; each++)
        if (!**each)
            return usage_error(error, "failed to use option '%s=%s': it has an empty name; write %s=%s", name, value,
                               name, example);
    g_strfreev(*target);
    *target = g_steal_pointer(&names);
    return TRUE;
}

static gboolean parse_connect(VmsnapOptions *options, const char *value, GError **error) {
    (void)error;
    return set_string(&options->connect_uri, value);
}

static gboolean parse_disks(VmsnapOptions *options, const char *value, GError **error) {
    return set_names(&options->disks, "disks", "vda:vdb", value, error);
}

static gboolean parse_exclude(VmsnapOptions *options, const char *value, GError **error) {
    return set_names(&options->exclude, "exclude", "vda:vdb", value, error);
}

static gboolean parse_scratch(VmsnapOptions *options, const char *value, GError **error) {
    (void)error;
    g_free(options->scratch_dir);
    options->scratch_dir = g_canonicalize_filename(value, NULL);
    return TRUE;
}

static gboolean parse_uid(VmsnapOptions *options, const char *value, GError **error) {
    guint64 number;
    const struct passwd *user = getpwnam(value);
    if (user)
        options->uid = user->pw_uid;
    else if (g_ascii_string_to_unsigned(value, 10, 0, (uid_t)-2, &number, NULL))
        options->uid = (uid_t)number;
    else
        return usage_error(error, "failed to use option 'uid=%s': there is no such user", value);
    return TRUE;
}

static gboolean parse_gid(VmsnapOptions *options, const char *value, GError **error) {
    guint64 number;
    const struct group *group = getgrnam(value);
    if (group)
        options->gid = group->gr_gid;
    else if (g_ascii_string_to_unsigned(value, 10, 0, (gid_t)-2, &number, NULL))
        options->gid = (gid_t)number;
    else
        return usage_error(error, "failed to use option 'gid=%s': there is no such group", value);
    return TRUE;
}

static gboolean parse_mode(VmsnapOptions *options, const char *value, GError **error) {
    guint64 mode;
    if (!g_ascii_string_to_unsigned(value, 8, 0, 0777, &mode, NULL))
        return usage_error(error, "failed to use option 'mode=%s': it is no octal mode such as 0440", value);
    /* Bits for writing have no effect here, but copies take them over and may need them. There are no programs. */
    options->mode = (mode_t)mode & 0666;
    return TRUE;
}

static gboolean parse_timeout(VmsnapOptions *options, const char *value, GError **error) {
    guint64 seconds;
    if (!g_ascii_string_to_unsigned(value, 10, 1, MAX_TIMEOUT_S, &seconds, NULL))
        return usage_error(error, "failed to use option 'timeout=%s': it is no number of seconds from 1 to %d", value,
                           MAX_TIMEOUT_S);
    options->timeout_ms = (unsigned)seconds * 1000;
    return TRUE;
}

static gboolean parse_quiesce(VmsnapOptions *options, const char *value, GError **error) {
    static const char *const modes[] = {
        [VMSNAP_QUIESCE_NO] = "no",
        [VMSNAP_QUIESCE_TRY] = "try",
        [VMSNAP_QUIESCE_REQUIRE] = "require",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (g_str_equal(value, modes[i])) {
            options->quiesce = (VmsnapQuiesceMode)i;
            return TRUE;
        }
    }
    return usage_error(error, "failed to use option 'quiesce=%s': it is none of no, try and require", value);
}

static gboolean parse_freeze_timeout(VmsnapOptions *options, const char *value, GError **error) {
    guint64 seconds;
    if (!g_ascii_string_to_unsigned(value, 10, 1, MAX_FREEZE_TIMEOUT_S, &seconds, NULL))
        return usage_error(error, "failed to use option 'freeze_timeout=%s': it is no number of seconds from 1 to %d",
                           value, MAX_FREEZE_TIMEOUT_S);
    options->freeze_timeout_ms = (unsigned)seconds * 1000;
    return TRUE;
}

static gboolean parse_agent(VmsnapOptions *options, const char *value, GError **error) {
    (void)error;
    g_free(options->agent);
    options->agent = g_canonicalize_filename(value, NULL);
    return TRUE;
}

static gboolean parse_scratch_reserve(VmsnapOptions *options, const char *value, GError **error) {
    if (!vmsnap_size_parse(value, &options->scratch_reserve_bytes))
        return usage_error(error, "failed to use option 'scratch_reserve=%s': it is no size such as 512M", value);
    return TRUE;
}

static gboolean parse_scratch_max(VmsnapOptions *options, const char *value, GError **error) {
    if (!vmsnap_size_parse(value, &options->scratch_max_bytes))
        return usage_error(error, "failed to use option 'scratch_max=%s': it is no size such as 10G, or 0 for no limit",
                           value);
    return TRUE;
}

static gboolean parse_connections(VmsnapOptions *options, const char *value, GError **error) {
    guint64 connections;
    if (!g_ascii_string_to_unsigned(value, 10, 1, MAX_CONNECTIONS, &connections, NULL))
        return usage_error(error, "failed to use option 'connections=%s': it is no number from 1 to %d", value,
                           MAX_CONNECTIONS);
    options->connections = (unsigned)connections;
    return TRUE;
}

static gboolean parse_readahead(VmsnapOptions *options, const char *value, GError **error) {
    if (!vmsnap_size_parse(value, &options->readahead_bytes) || options->readahead_bytes > MAX_READAHEAD_BYTES)
        return usage_error(error, "failed to use option 'readahead=%s': it is no size such as 64M, or 0 for none",
                           value);
    return TRUE;
}

static gboolean parse_speed(VmsnapOptions *options, const char *value, GError **error) {
    if (!vmsnap_size_parse(value, &options->speed_bytes_per_s))
        return usage_error(error, "failed to use option 'speed=%s': it is no number of bytes a second such as 50M",
                           value);
    return TRUE;
}

static gboolean parse_format(VmsnapOptions *options, const char *value, GError **error) {
    options->format.format = vmsnap_format_find(value);
    return options->format.format ||
           usage_error(error, "failed to use option 'format=%s': it is none of raw, qcow2 and vma", value);
}

static gboolean parse_cluster_size(VmsnapOptions *options, const char *value, GError **error) {
    uint64_t bytes;
    if (!vmsnap_size_parse(value, &bytes) || bytes < MIN_CLUSTER_BYTES || bytes > MAX_CLUSTER_BYTES ||
        (bytes & (bytes - 1)) != 0)
        return usage_error(error, "failed to use option 'cluster_size=%s': it is no power of two from 512 to 2M",
                           value);
    options->format.cluster_bytes = (uint32_t)bytes;
    options->has_cluster_size = TRUE;
    return TRUE;
}

/* Given again, it adds to what there is. */
static gboolean parse_config(VmsnapOptions *options, const char *value, GError **error) {
    g_auto(GStrv) before = g_steal_pointer(&options->config_paths);
    if (!set_names(&options->config_paths, "config", "FILE:FILE", value, error))
        return FALSE;
    g_autoptr(GStrvBuilder) paths = g_strv_builder_new();
    g_strv_builder_addv(paths, before ? (const char **)before : (const char *[]){NULL});
    g_strv_builder_addv(paths, (const char **)options->config_paths);
    g_strfreev(options->config_paths);
    options->config_paths = g_strv_builder_end(paths);
    return TRUE;
}

static gboolean parse_checkpoint_name(char **target, const char *option, const char *value, GError **error) {
    return vmsnap_checkpoint_name_is_valid(value)
               ? set_string(target, value)
               : usage_error(error,
                             "failed to use option '%s=%s': a name of a checkpoint is printable text without a slash, "
                             "and does not begin with a dot",
                             option, value);
}

static gboolean parse_checkpoint(VmsnapOptions *options, const char *value, GError **error) {
    return parse_checkpoint_name(&options->checkpoint, "checkpoint", value, error);
}

static gboolean parse_since(VmsnapOptions *options, const char *value, GError **error) {
    return parse_checkpoint_name(&options->since, "since", value, error);
}

static gboolean parse_incremental(VmsnapOptions *options, const char *value, GError **error) {
    (void)value;
    (void)error;
    options->incremental = TRUE;
    return TRUE;
}

static gboolean parse_keep_checkpoints(VmsnapOptions *options, const char *value, GError **error) {
    guint64 number;
    if (!g_ascii_string_to_unsigned(value, 10, 1, MAX_KEEP_CHECKPOINTS, &number, NULL))
        return usage_error(error, "failed to use option 'keep_checkpoints=%s': it is no number from 1 to %d", value,
                           MAX_KEEP_CHECKPOINTS);
    options->keep_checkpoints = (unsigned)number;
    return TRUE;
}

static gboolean parse_commit(VmsnapOptions *options, const char *value, GError **error) {
    static const char *const modes[] = {
        [VMSNAP_COMMIT_UMOUNT] = "umount",
        [VMSNAP_COMMIT_EXPLICIT] = "explicit",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (g_str_equal(value, modes[i])) {
            options->commit = (VmsnapCommitMode)i;
            options->has_commit = TRUE;
            return TRUE;
        }
    }
    return usage_error(error, "failed to use option 'commit=%s': it is none of umount and explicit", value);
}

static gboolean parse_backing(VmsnapOptions *options, const char *value, GError **error) {
    if (!vmsnap_backing_pattern_is_valid(value))
        return usage_error(
            error,
            "failed to use option 'backing=%s': it is no file name, in which %%d is the disk, %%s the checkpoint and "
            "%%%% a percent sign",
            value);
    (void)set_string(&options->backing, value);
    options->format.backing = options->backing;
    return TRUE;
}

static gboolean parse_only_changed(VmsnapOptions *options, const char *value, GError **error) {
    (void)value;
    (void)error;
    options->format.only_changed = TRUE;
    return TRUE;
}

static gboolean parse_release(VmsnapOptions *options, const char *value, GError **error) {
    (void)value;
    (void)error;
    options->release = TRUE;
    return TRUE;
}

static gboolean parse_ro(VmsnapOptions *options, const char *value, GError **error) {
    (void)value;
    (void)error;
    options->read_only = TRUE;
    return TRUE;
}

static gboolean parse_rw(VmsnapOptions *options, const char *value, GError **error) {
    (void)value;
    (void)error;
    options->read_only = FALSE;
    return TRUE;
}

static gboolean parse_allow_other(VmsnapOptions *options, const char *value, GError **error) {
    (void)value;
    (void)error;
    options->allow_other = TRUE;
    return TRUE;
}

static gboolean parse_remount(VmsnapOptions *options, const char *value, GError **error) {
    (void)options;
    (void)value;
    return usage_error(error, "failed to use option 'remount': a snapshot cannot change; unmount it and mount it anew");
}

static const struct {
    const char *name;
    gboolean takes_value;
    gboolean (*parse)(VmsnapOptions *options, const char *value, GError **error);
} own_options[] = {
    {"connect", TRUE, parse_connect},
    {"disks", TRUE, parse_disks},
    {"exclude", TRUE, parse_exclude},
    {"scratch", TRUE, parse_scratch},
    {"uid", TRUE, parse_uid},
    {"gid", TRUE, parse_gid},
    {"mode", TRUE, parse_mode},
    {"timeout", TRUE, parse_timeout},
    {"quiesce", TRUE, parse_quiesce},
    {"freeze_timeout", TRUE, parse_freeze_timeout},
    {"agent", TRUE, parse_agent},
    {"scratch_reserve", TRUE, parse_scratch_reserve},
    {"scratch_max", TRUE, parse_scratch_max},
    {"connections", TRUE, parse_connections},
    {"readahead", TRUE, parse_readahead},
    {"speed", TRUE, parse_speed},
    {"format", TRUE, parse_format},
    {"cluster_size", TRUE, parse_cluster_size},
    {"config", TRUE, parse_config},
    {"checkpoint", TRUE, parse_checkpoint},
    {"since", TRUE, parse_since},
    {"incremental", FALSE, parse_incremental},
    {"keep_checkpoints", TRUE, parse_keep_checkpoints},
    {"commit", TRUE, parse_commit},
    {"backing", TRUE, parse_backing},
    {"only_changed", FALSE, parse_only_changed},
    {"release", FALSE, parse_release},
    {"ro", FALSE, parse_ro},
    {"rw", FALSE, parse_rw},
    {"remount", FALSE, parse_remount},
    {"allow_other", FALSE, parse_allow_other},
};

/* Those of the common options that mean something to a read-only filesystem without programs or devices. */
static const char *const forwarded_options[] = {
    "noexec", "noatime", "nodiratime", "context", "fscontext", "defcontext", "rootcontext", NULL,
};

/* Names in libmount's tables may end in "=" or "[=]", and those of a prefix stand for all that begin so. */
static gboolean matches_common(const struct libmnt_optmap *entry, const char *name) {
    if (entry->mask & MNT_PREFIX)
        return g_str_has_prefix(name, entry->name);
    size_t length = strcspn(entry->name, "=[");
    return strlen(name) == length && strncmp(name, entry->name, length) == 0;
}

static gboolean is_common(const char *name) {
    static const int tables[] = {MNT_LINUX_MAP, MNT_USERSPACE_MAP};
    for (size_t i = 0; i < G_N_ELEMENTS(tables); i++)
        for (const struct libmnt_optmap *entry = mnt_get_builtin_optmap(tables[i]); entry->name; entry++)
            if (matches_common(entry, name))
                return TRUE;
    return g_str_has_prefix(name, "x-") || g_str_has_prefix(name, "X-");
}

static gboolean parse_own(VmsnapOptions *options, const char *name, const char *value, gboolean *ret_found,
                          GError **error) {
    for (size_t i = 0; i < G_N_ELEMENTS(own_options); i++) {
        if (!g_str_equal(own_options[i].name, name))
            continue;
        *ret_found = TRUE;
        gboolean has_value = value && value[0];
        if (own_options[i].takes_value && !has_value)
            return usage_error(error, "failed to use option '%s': it needs a value, %s=...", name, name);
        if (!own_options[i].takes_value && value)
            return usage_error(error, "failed to use option '%s=%s': it takes no value", name, value);
        g_ptr_array_add(options->given, (gpointer)own_options[i].name);
        return own_options[i].parse(options, value, error);
    }
    *ret_found = FALSE;
    return TRUE;
}

static gboolean parse_option(VmsnapOptions *options, const char *name, const char *value, GError **error) {
    gboolean found;
    if (!parse_own(options, name, value, &found, error))
        return FALSE;
    if (found)
        return TRUE;
    if (g_strv_contains(forwarded_options, name))
        g_string_append_printf(options->mount_options, "%s%s%s%s", options->mount_options->len ? "," : "", name,
                               value ? "=" : "", value ? value : "");
    else if (!is_common(name) && !options->sloppy)
        return usage_error(
            error, "failed to use option '%s': vmsnap has no such option; see mount.vmsnap(8), or use -s", name);
    return TRUE;
}

/* fstab quotes values that have a comma in them. */
static char *unquote(const char *value, size_t length) {
    gboolean quoted = length >= 2 && value[0] == '"' && value[length - 1] == '"';
    return quoted ? g_strndup(value + 1, length - 2) : g_strndup(value, length);
}

static gboolean parse_option_string(VmsnapOptions *options, const char *string, GError **error) {
    g_autofree char *copy = g_strdup(string);
    char *rest = copy, *name, *value;
    size_t name_length, value_length;
    int result;
    while ((result = mnt_optstr_next_option(&rest, &name, &name_length, &value, &value_length)) == 0) {
        g_autofree char *own_name = g_strndup(name, name_length);
        g_autofree char *own_value = value ? unquote(value, value_length) : NULL;
        if (own_name[0] && !parse_option(options, own_name, own_value, error))
            return FALSE;
    }
    /* libmount takes what begins in an open quote for the end of the string. */
    gboolean whole = result == 1 && !strchr(rest, '"');
    return whole || usage_error(error, "failed to read the options '%s': a quote is not closed", string);
}

/* mount(8) makes a path of a source that is also a file in the current directory. No domain has a '/' in its name. */
static char *source_from_operand(const char *operand) {
    return operand[0] == '/' ? g_path_get_basename(operand) : vmsnap_source_resolve(operand);
}

static gboolean parse_operands(VmsnapOptions *options, char **operands, GError **error) {
    guint n_operands = operands ? g_strv_length(operands) : 0;
    if (options->cleanup && n_operands <= 1) {
        options->source = n_operands > 0 ? vmsnap_source_resolve(operands[0]) : NULL;
        return TRUE;
    }
    if (options->cleanup)
        return usage_error(error, "usage: mount.vmsnap --cleanup [DOMAIN]; see mount.vmsnap --help");
    if (n_operands != 2)
        return usage_error(error, "usage: mount.vmsnap SOURCE MOUNTPOINT [-o OPTION,...]; see mount.vmsnap --help");
    if (!operands[0][0])
        return usage_error(error, "failed to mount '': the source has no name");
    options->source = source_from_operand(operands[0]);
    options->mount_point = g_strdup(operands[1]);
    return TRUE;
}

static const char help_text[] =
    "SOURCE is a libvirt domain: its name, UUID or id; or a QEMU without libvirt: qmp:SOCKET, the\n"
    "path of its monitor; or an NBD server whose exports somebody else has begun:\n"
    "nbd+unix:///?socket=PATH, nbd://HOST:PORT, nbds://... with TLS, each with the name of an\n"
    "export as its path, or without for all of them.\n"
    "\n"
    "Options of -o, beside those of mount(8):\n"
    "  connect=URI        libvirt's URI (default: libvirt's own)\n"
    "  disks=vda:vdb      only these disks (default: all that can be backed up)\n"
    "  exclude=vdc        all but these disks\n"
    "  scratch=DIR        where QEMU keeps overwritten data (default: /var/lib/vmsnap)\n"
    "  format=FORMAT      show disks as raw (default) or qcow2, or all in one file as vma\n"
    "  cluster_size=SIZE  of qcow2 (default: 64K)\n"
    "  config=FILE:FILE   more files that belong to the machine\n"
    "  incremental        since the newest checkpoint of vmsnap's, and a new one\n"
    "  checkpoint=NAME    create a checkpoint, from which another mount can go on\n"
    "  since=NAME         tell what has changed since that checkpoint\n"
    "  keep_checkpoints=N delete vmsnap's older ones (default: keep all)\n"
    "  commit=WHEN        keep the new checkpoint after umount (default), or if told: explicit\n"
    "  backing=PATTERN    backing file of a qcow2 with changes (default: %d.%s.qcow2)\n"
    "  only_changed       raw files with holes where nothing has changed\n"
    "  uid=, gid=, mode=  owner, group and mode of the files (default: yours, 0400)\n"
    "  allow_other        let other users in, as far as the mode does\n"
    "  timeout=SECONDS    how long to wait for libvirt or a server (default: 30)\n"
    "  quiesce=MODE       freeze the guest's filesystems: no (default), try or require\n"
    "  agent=PATH         the guest agent's socket, of a machine without libvirt\n"
    "  freeze_timeout=S   for the guest agent, in seconds (default: 5)\n"
    "  scratch_reserve=SIZE  what scratch leaves free; then the snapshot ends (default: 512M)\n"
    "  scratch_max=SIZE   what scratch may use; then the snapshot ends (default: no limit)\n"
    "  connections=N      NBD connections for each disk (default: 2)\n"
    "  readahead=SIZE     memory for reading ahead (default: 64M, 0 for none)\n"
    "  speed=BYTES/S      limit for reading disks, such as 50M (default: none)\n"
    "  release            give back what was read: files are read once, the guest pays less\n"
    "\n"
    "End it with umount MOUNTPOINT. See mount.vmsnap(8).\n";

static VmsnapOptions *options_new(void) {
    VmsnapOptions *options = g_new0(VmsnapOptions, 1);
    options->uid = geteuid();
    options->gid = getegid();
    options->mode = DEFAULT_MODE;
    options->timeout_ms = DEFAULT_TIMEOUT_S * 1000;
    options->connections = DEFAULT_CONNECTIONS;
    options->readahead_bytes = DEFAULT_READAHEAD_BYTES;
    options->freeze_timeout_ms = DEFAULT_FREEZE_TIMEOUT_S * 1000;
    options->scratch_reserve_bytes = DEFAULT_SCRATCH_RESERVE_BYTES;
    options->format.format = &vmsnap_format_raw;
    options->format.cluster_bytes = DEFAULT_CLUSTER_BYTES;
    options->mount_options = g_string_new(NULL);
    options->given = g_ptr_array_new();
    return options;
}

void vmsnap_options_free(VmsnapOptions *options) {
    if (!options)
        return;
    g_free(options->source);
    g_free(options->mount_point);
    g_free(options->connect_uri);
    g_free(options->agent);
    g_free(options->checkpoint);
    g_free(options->since);
    g_free(options->backing);
    g_strfreev(options->disks);
    g_strfreev(options->exclude);
    g_strfreev(options->config_paths);
    g_clear_pointer(&options->config_contents, g_ptr_array_unref);
    g_free(options->scratch_dir);
    g_string_free(options->mount_options, TRUE);
    g_ptr_array_unref(options->given);
    g_free(options);
}

VmsnapOptions *vmsnap_options_parse(int argc, char **argv, GError **error) {
    g_autoptr(VmsnapOptions) options = options_new();
    g_auto(GStrv) option_strings = NULL, operands = NULL;
    g_autofree char *ignored_type = NULL, *ignored_namespace = NULL;
    gboolean ignored = FALSE;
    /* A "filename" is what keeps its bytes: others must be text in the locale's charset, and at boot there is none. */
    const GOptionEntry entries[] = {
        {"options", 'o', 0, G_OPTION_ARG_FILENAME_ARRAY, &option_strings, "Mount options", "OPTION,..."},
        {"foreground", 0, 0, G_OPTION_ARG_NONE, &options->foreground, "Stay attached and log to stderr", NULL},
        {"cleanup", 0, 0, G_OPTION_ARG_NONE, &options->cleanup, "Clear what dead mounts have left, and mount nothing",
         NULL},
        {"fake", 'f', 0, G_OPTION_ARG_NONE, &options->fake, "Check everything but mount nothing", NULL},
        {"sloppy", 's', 0, G_OPTION_ARG_NONE, &options->sloppy, "Tolerate unknown mount options", NULL},
        {"verbose", 'v', 0, G_OPTION_ARG_NONE, &options->verbose, "Say more", NULL},
        {"version", 'V', 0, G_OPTION_ARG_NONE, &options->show_version, "Show the version", NULL},
        {"read-only", 'r', 0, G_OPTION_ARG_NONE, &options->read_only, "Nothing at all can be written", NULL},
        {"rw", 'w', G_OPTION_FLAG_HIDDEN | G_OPTION_FLAG_REVERSE, G_OPTION_ARG_NONE, &options->read_only, NULL, NULL},
        {"no-mtab", 'n', 0, G_OPTION_ARG_NONE, &ignored, "Accepted: there is no mtab", NULL},
        {"types", 't', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_STRING, &ignored_type, NULL, NULL},
        {"namespace", 'N', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &ignored_namespace, NULL, NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &operands, NULL, NULL},
        {NULL},
    };
    g_autoptr(GOptionContext) context = g_option_context_new("SOURCE MOUNTPOINT - mount a running machine's instant");
    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_description(context, help_text);
    g_autoptr(GError) parse_error = NULL;
    if (!g_option_context_parse(context, &argc, &argv, &parse_error)) {
        usage_error(error, "failed to read the command line: %s; see mount.vmsnap --help", parse_error->message);
        return NULL;
    }
    for (char **string = option_strings; string && *string; string++)
        if (!parse_option_string(options, *string, error))
            return NULL;
    if (!options->show_version && !parse_operands(options, operands, error))
        return NULL;
    if (!vmsnap_option_rules_check(options, error))
        return NULL;
    return g_steal_pointer(&options);
}
