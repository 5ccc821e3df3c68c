/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "extra_files.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <sys/stat.h>

#define MAX_BYTES (1 << 20)

/* What is no regular file might have no end, or no beginning. */
static gboolean check_kind(const char *path, GError **error) {
    struct stat status;
    if (stat(path, &status) != 0)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to use option 'config=%s': %s", path,
                    g_strerror(errno));
    else if (!S_ISREG(status.st_mode))
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to use option 'config=%s': it is no file", path);
    else if (status.st_size > MAX_BYTES)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use option 'config=%s': it has more than 1 MiB, and is no configuration", path);
    else
        return TRUE;
    return FALSE;
}

GPtrArray *vmsnap_extra_files_load(const char *const *paths, GError **error) {
    g_autoptr(GPtrArray) contents = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    for (const char *const *path = paths; path && *path; path++) {
        char *content;
        gsize length;
        g_autoptr(GError) read_error = NULL;
        if (!check_kind(*path, error))
            return NULL;
        if (!g_file_get_contents(*path, &content, &length, &read_error)) {
            g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to use option 'config=%s': %s", *path,
                        read_error->message);
            return NULL;
        }
        g_ptr_array_add(contents, g_bytes_new_take(content, length));
    }
    return g_steal_pointer(&contents);
}

void vmsnap_extra_files_add(VmsnapSnapshot *snapshot, const char *const *paths, const GPtrArray *contents) {
    for (guint i = 0; i < contents->len; i++) {
        g_autofree char *name = g_path_get_basename(paths[i]);
        vmsnap_snapshot_add_file(snapshot, name, g_bytes_ref(g_ptr_array_index(contents, i)), VMSNAP_FILE_CONFIG);
    }
}
