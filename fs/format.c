/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "format.h"

#include "vmsnap/error.h"

#include <limits.h>

/* Of a name that is made out of something longer. */
#define MAX_MACHINE_LENGTH 100

static const VmsnapFormat *const formats[] = {
    &vmsnap_format_raw,
    &vmsnap_format_qcow2,
    &vmsnap_format_vma,
};

const VmsnapFormat *vmsnap_format_find(const char *name) {
    for (size_t i = 0; i < G_N_ELEMENTS(formats); i++)
        if (g_str_equal(formats[i]->name, name))
            return formats[i];
    return NULL;
}

/*
 * libvirt lets no slash into a name. What has one is an URI or a path, of which only letters and numbers are of use:
 * nbd://host:10809 is nbd_host_10809.
 */
static char *name_machine(const char *machine) {
    if (!strchr(machine, '/'))
        return g_strdup(machine);
    GString *name = g_string_new(NULL);
    for (const char *c = machine; *c && name->len < MAX_MACHINE_LENGTH; c++) {
        if (g_ascii_isalnum(*c) || ((*c == '.' || *c == '-') && name->len > 0))
            (void)g_string_append_c(name, *c);
        else if (name->len > 0 && name->str[name->len - 1] != '_')
            (void)g_string_append_c(name, '_');
    }
    if (name->len > 0 && name->str[name->len - 1] == '_')
        (void)g_string_truncate(name, name->len - 1);
    return g_string_free(name->len > 0 ? name : g_string_append(name, "machine"), FALSE);
}

char *vmsnap_format_name_file(const VmsnapFormatOptions *options, const VmsnapDisk *disk) {
    const VmsnapFormat *format = options->format;
    const char *tag = format->tag ? format->tag(options, disk) : NULL;
    g_autofree char *name = format->one_file ? name_machine(disk->snapshot->machine) : g_strdup(disk->name);
    return g_strdup_printf("%s%s%s.%s", name, tag ? "." : "", tag ? tag : "", format->name);
}

gboolean vmsnap_backing_pattern_is_valid(const char *pattern) {
    if (strstr(pattern, "://"))
        return FALSE;
    for (const char *c = pattern; *c; c++)
        if (*c == '%' && (*++c == '\0' || !strchr("ds%", *c)))
            return FALSE;
    return *pattern;
}

static char *pattern_expand(const char *pattern, const VmsnapDisk *disk) {
    GString *name = g_string_new(NULL);
    for (const char *c = pattern; *c; c++) {
        if (*c != '%')
            (void)g_string_append_c(name, *c);
        else if (*++c == '%')
            (void)g_string_append_c(name, '%');
        else
            (void)g_string_append(name, *c == 'd' ? disk->name : disk->since);
    }
    return g_string_free(name, FALSE);
}

/* What stands before a colon, QEMU takes for a protocol, unless there is a slash before it. */
char *vmsnap_format_name_backing(const VmsnapFormatOptions *options, const VmsnapDisk *disk) {
    if (!disk->since)
        return NULL;
    g_autofree char *name = options->backing
                                ? pattern_expand(options->backing, disk)
                                : g_strdup_printf("%s.%s.%s", disk->name, disk->since, options->format->name);
    size_t before = strcspn(name, ":/");
    return g_strconcat(name[before] == ':' ? "./" : "", name, NULL);
}

const char *vmsnap_backing_get_format(const char *name) {
    return g_str_has_suffix(name, ".raw") || g_str_has_suffix(name, ".img") ? "raw" : "qcow2";
}

gboolean vmsnap_format_check(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot, GError **error) {
    for (guint i = 0; i < snapshot->disks->len; i++) {
        g_autofree char *name = vmsnap_format_name_file(options, g_ptr_array_index(snapshot->disks, i));
        if (strlen(name) <= NAME_MAX)
            continue;
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use format %s: the file name '%s' is longer than %d bytes; shorten the name of the "
                    "machine, the disk or the checkpoint",
                    options->format->name, name, NAME_MAX);
        return FALSE;
    }
    return !options->format->check || options->format->check(options, snapshot, error);
}
