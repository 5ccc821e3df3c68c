/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "scratch.h"

#include "dirs.h"
#include "vmsnap/backend.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* With less than this beside the reserve a snapshot would not outlive its first minute. */
#define MIN_ROOM_BYTES (UINT64_C(16) << 20)
/* Of a snapshot's directory; its uuid follows. */
#define NAME_PREFIX "vmsnap-"

static gboolean directory_measure(const char *directory, uint64_t *ret_left_bytes, GError **error) {
    struct statvfs filesystem;
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    gboolean usable = fd >= 0 && fstatvfs(fd, &filesystem) == 0;
    int code = errno;
    if (fd >= 0)
        (void)close(fd);
    if (usable)
        *ret_left_bytes = (uint64_t)filesystem.f_bavail * filesystem.f_frsize;
    else
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use scratch directory '%s': %s; name another directory with -o scratch=DIR", directory,
                    g_strerror(code));
    return usable;
}

static gboolean room_check(const char *directory, uint64_t reserve_bytes, GError **error) {
    uint64_t left_bytes;
    if (!directory_measure(directory, &left_bytes, error))
        return FALSE;
    if (left_bytes >= MIN_ROOM_BYTES && left_bytes - MIN_ROOM_BYTES >= reserve_bytes)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use scratch directory '%s': its filesystem is full, with %" G_GUINT64_FORMAT
                " MiB left, of which %" G_GUINT64_FORMAT
                " MiB are to stay free; free some space, lower -o scratch_reserve=SIZE, or name another directory "
                "with -o scratch=DIR",
                directory, left_bytes >> 20, reserve_bytes >> 20);
    return FALSE;
}

char *vmsnap_scratch_choose(const char *base_dir, const char *uuid, uint64_t reserve_bytes, GError **error) {
    g_autofree char *base = base_dir ? g_strdup(base_dir) : vmsnap_dirs_get_state();
    if (!base_dir && !vmsnap_dirs_make_base(base, error))
        return NULL;
    if (!room_check(base, reserve_bytes, error))
        return NULL;
    g_autofree char *name = g_strconcat(NAME_PREFIX, uuid, NULL);
    return g_build_filename(base, name, NULL);
}

static gint64 boot_time_s(void) {
    struct timespec up = {0};
    (void)clock_gettime(CLOCK_BOOTTIME, &up);
    return g_get_real_time() / G_USEC_PER_SEC - up.tv_sec;
}

/* Where records are lost but the host was not, as in another container, what it belongs to may live. */
static gboolean is_orphan(const char *base, const char *name) {
    const char *uuid = g_str_has_prefix(name, NAME_PREFIX) ? name + strlen(NAME_PREFIX) : "";
    if (!g_uuid_string_is_valid(uuid) || vmsnap_record_is_known(uuid))
        return FALSE;
    g_autofree char *path = g_build_filename(base, name, NULL);
    struct stat status;
    return lstat(path, &status) == 0 && status.st_mtime < boot_time_s();
}

gboolean vmsnap_scratch_sweep(GError **error) {
    if (geteuid() != 0)
        return TRUE;
    g_autoptr(GError) first_error = NULL;
    g_autofree char *base = vmsnap_dirs_get_state();
    g_autoptr(GDir) directory = g_dir_open(base, 0, NULL);
    const char *name;
    while (directory && (name = g_dir_read_name(directory))) {
        if (!is_orphan(base, name))
            continue;
        g_autofree char *path = g_build_filename(base, name, NULL);
        if (vmsnap_dirs_remove_private(path, first_error ? NULL : &first_error))
            g_message("removed '%s', which a crash of this host had left", path);
    }
    gboolean swept = !first_error;
    if (first_error)
        g_propagate_error(error, g_steal_pointer(&first_error));
    return swept;
}

gboolean vmsnap_scratch_measure(int dir_fd, const char *name, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes) {
    struct stat file;
    struct statvfs filesystem;
    if (fstatat(dir_fd, name, &file, AT_SYMLINK_NOFOLLOW) != 0 || fstatvfs(dir_fd, &filesystem) != 0)
        return FALSE;
    *ret_used_bytes = (uint64_t)file.st_blocks * 512;
    *ret_left_bytes = (uint64_t)filesystem.f_bavail * filesystem.f_frsize;
    return TRUE;
}
