/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "format.h"

#include "vmsnap/error.h"

#include <limits.h>

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

char *vmsnap_format_name_file(const VmsnapFormat *format, const VmsnapDisk *disk) {
    return g_strdup_printf("%s.%s", format->one_file ? disk->snapshot->machine : disk->name, format->name);
}

gboolean vmsnap_format_check(const VmsnapFormatOptions *options, const VmsnapSnapshot *snapshot, GError **error) {
    for (guint i = 0; i < snapshot->disks->len; i++) {
        g_autofree char *name = vmsnap_format_name_file(options->format, g_ptr_array_index(snapshot->disks, i));
        if (strlen(name) <= NAME_MAX)
            continue;
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use format %s: the file name '%s' is longer than %d bytes; use format=raw",
                    options->format->name, name, NAME_MAX);
        return FALSE;
    }
    return !options->format->check || options->format->check(options, snapshot, error);
}
