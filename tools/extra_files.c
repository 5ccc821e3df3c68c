/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "extra_files.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_BYTES (1 << 20)

/* What is no regular file may have no end, or do something when it is opened. */
static int open_regular(const char *path, const char **ret_reason) {
    struct stat status;
    int fd = -1;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        *ret_reason = "it is no file";
    else if ((fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) < 0)
        *ret_reason = g_strerror(errno);
    return fd;
}

/* Reads one byte more than may be, to learn whether there is one. Files of /proc do not tell their size. */
static ssize_t read_up_to(int fd, char *buffer, size_t room) {
    size_t length = 0;
    while (length < room) {
        ssize_t n_bytes = TEMP_FAILURE_RETRY(read(fd, buffer + length, room - length));
        if (n_bytes < 0)
            return -1;
        if (n_bytes == 0)
            break;
        length += (size_t)n_bytes;
    }
    return (ssize_t)length;
}

static GBytes *load(const char *path, GError **error) {
    g_autofree char *buffer = g_malloc(MAX_BYTES + 1);
    const char *reason = NULL;
    int fd = open_regular(path, &reason);
    if (fd >= 0) {
        ssize_t length = read_up_to(fd, buffer, MAX_BYTES + 1);
        reason = length < 0 ? g_strerror(errno) : "it has more than 1 MiB, and is no configuration";
        (void)close(fd);
        if (length >= 0 && length <= MAX_BYTES)
            return g_bytes_new(buffer, (gsize)length);
    }
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to use option 'config=%s': %s", path, reason);
    return NULL;
}

GPtrArray *vmsnap_extra_files_load(const char *const *paths, GError **error) {
    g_autoptr(GPtrArray) contents = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    for (const char *const *path = paths; path && *path; path++) {
        GBytes *content = load(*path, error);
        if (!content)
            return NULL;
        g_ptr_array_add(contents, content);
    }
    return g_steal_pointer(&contents);
}

void vmsnap_extra_files_add(VmsnapSnapshot *snapshot, const char *const *paths, const GPtrArray *contents) {
    for (guint i = 0; i < contents->len; i++) {
        g_autofree char *name = g_path_get_basename(paths[i]);
        vmsnap_snapshot_add_file(snapshot, name, g_bytes_ref(g_ptr_array_index(contents, i)), VMSNAP_FILE_CONFIG);
    }
}
