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
#define IMAGE_MODE 0600
#define CLUSTER_BITS 16
#define CLUSTER_BYTES (UINT64_C(1) << CLUSTER_BITS)

/* All of it big-endian; what is not named is not used in an empty image. */
typedef struct {
    uint32_t magic, version;
    uint64_t backing_name_offset;
    uint32_t backing_name_bytes, cluster_bits;
    uint64_t size_bytes;
    uint32_t encryption, l1_entries;
    uint64_t l1_offset, refcount_table_offset;
    uint32_t refcount_table_clusters, n_snapshots;
    uint64_t snapshots_offset, incompatible, compatible, autoclear;
    uint32_t refcount_order, header_bytes;
} Qcow2Header;
G_STATIC_ASSERT(sizeof(Qcow2Header) == 104);

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

/* A write is cut short where the room ends. */
static gboolean write_at(int fd, const void *data, size_t length, uint64_t offset) {
    ssize_t written = pwrite(fd, data, length, (off_t)offset);
    if (written >= 0 && (size_t)written < length)
        errno = ENOSPC;
    return written == (ssize_t)length;
}

/* In the order of the file, in clusters: the header, the refcount table, one refcount block, and the L1 table. */
static gboolean image_write(int fd, uint64_t size_bytes) {
    const uint64_t bytes_per_l1_entry = CLUSTER_BYTES / sizeof(uint64_t) * CLUSTER_BYTES;
    const uint64_t l1_entries = MAX((size_bytes + bytes_per_l1_entry - 1) / bytes_per_l1_entry, 1);
    const uint64_t n_clusters = 3 + (l1_entries * sizeof(uint64_t) + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
    const Qcow2Header header = {
        .magic = GUINT32_TO_BE(0x514649fb),
        .version = GUINT32_TO_BE(3),
        .cluster_bits = GUINT32_TO_BE(CLUSTER_BITS),
        .size_bytes = GUINT64_TO_BE(size_bytes),
        .l1_entries = GUINT32_TO_BE((uint32_t)l1_entries),
        .l1_offset = GUINT64_TO_BE(3 * CLUSTER_BYTES),
        .refcount_table_offset = GUINT64_TO_BE(CLUSTER_BYTES),
        .refcount_table_clusters = GUINT32_TO_BE(1),
        .refcount_order = GUINT32_TO_BE(4),
        .header_bytes = GUINT32_TO_BE(sizeof header),
    };
    const uint64_t refcount_block = GUINT64_TO_BE(2 * CLUSTER_BYTES);
    g_autofree uint16_t *refcounts = g_new(uint16_t, n_clusters);
    for (uint64_t i = 0; i < n_clusters; i++)
        refcounts[i] = GUINT16_TO_BE(1);
    const size_t refcounts_bytes = n_clusters * sizeof *refcounts;
    return write_at(fd, &header, sizeof header, 0) &&
           write_at(fd, &refcount_block, sizeof refcount_block, CLUSTER_BYTES) &&
           write_at(fd, refcounts, refcounts_bytes, 2 * CLUSTER_BYTES) &&
           ftruncate(fd, (off_t)(n_clusters * CLUSTER_BYTES)) == 0;
}

/* Without its owner, QEMU could not open it where libvirt is told to leave owners alone. */
gboolean vmsnap_scratch_make_image(int dir_fd, const char *name, uint64_t size_bytes, uid_t uid, gid_t gid,
                                   GError **error) {
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, IMAGE_MODE);
    gboolean made = fd >= 0 && image_write(fd, size_bytes) && (geteuid() != 0 || fchown(fd, uid, gid) == 0);
    int code = errno;
    if (fd >= 0 && close(fd) != 0 && made) {
        made = FALSE;
        code = errno;
    }
    if (!made)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM,
                    "failed to make '%s' in the scratch directory: %s; free some space there, or name another with "
                    "-o scratch=DIR",
                    name, g_strerror(code));
    return made;
}

void vmsnap_scratch_remove_image(int dir_fd, const char *name) {
    (void)unlinkat(dir_fd, name, 0);
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
