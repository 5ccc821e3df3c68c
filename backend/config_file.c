/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A kernel with its initrd may be a hundred megabytes, so the copy is a mapped file and not memory. The file has no
 * name and so cannot be left behind, and nobody else can shrink it under the mapping.
 *
 * QEMU's user may have put a link where its firmware variables should be. So files are opened with the rights of that
 * user, who has to be able to read them anyway.
 */
#include "config_file.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_SENDFILE_BYTES ((size_t)1 << 30)

static gboolean copy_all(int from, int to) {
    ssize_t copied;
    do {
        copied = sendfile(to, from, NULL, MAX_SENDFILE_BYTES);
    } while (copied > 0 || (copied < 0 && errno == EINTR));
    return copied == 0;
}

/* O_NONBLOCK: what should be a file may turn out to be a FIFO that nobody writes to. */
static int open_regular(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat status;
    if (fd < 0 || (fstat(fd, &status) == 0 && S_ISREG(status.st_mode)))
        return fd;
    (void)close(fd);
    errno = EINVAL;
    return -1;
}

/*
 * The kernel keeps these per thread, and only glibc's wrappers change them for all: the raw calls concern this thread
 * alone. Without its groups and with another user for files, root has no more rights than that user.
 */
static int open_regular_as(const char *path, uid_t uid, gid_t gid) {
    if (geteuid() != 0 || uid == 0)
        return open_regular(path);
    g_autofree gid_t *own_groups = g_new(gid_t, NGROUPS_MAX);
    long n_own_groups = syscall(SYS_getgroups, NGROUPS_MAX, own_groups);
    if (n_own_groups < 0 || syscall(SYS_setgroups, 0, NULL) != 0)
        return -1;
    (void)syscall(SYS_setfsgid, gid);
    (void)syscall(SYS_setfsuid, uid);
    int fd = open_regular(path);
    int code = errno;
    (void)syscall(SYS_setfsuid, geteuid());
    (void)syscall(SYS_setfsgid, getegid());
    (void)syscall(SYS_setgroups, n_own_groups, own_groups);
    errno = code;
    return fd;
}

GBytes *vmsnap_config_file_load(const char *path, uid_t uid, gid_t gid, const char *directory, GError **error) {
    int from = open_regular_as(path, uid, gid);
    int to = from >= 0 ? open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600) : -1;
    g_autoptr(GMappedFile) mapped = NULL;
    if (to >= 0 && copy_all(from, to))
        mapped = g_mapped_file_new_from_fd(to, FALSE, error);
    else
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to copy '%s': %s", path, g_strerror(errno));
    if (to >= 0)
        (void)close(to);
    if (from >= 0)
        (void)close(from);
    return mapped ? g_mapped_file_get_bytes(mapped) : NULL;
}
