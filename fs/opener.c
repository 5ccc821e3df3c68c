/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether a file is read past the page cache must be said when it is opened, and only the name of the program tells
 * then how it is going to read. That is a hint and no more: both ways give the same bytes.
 *
 * The name does not lie in the memory of the process. The command line of dd does: the kernel gives none that lies in a
 * mapped file, so no page of a filesystem is waited for; but it waits for the lock of that memory, which the process
 * may hold while it waits for this filesystem. So only one thread at a time looks there, and the others take no hint.
 */
#include "opener.h"

#include "size.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Measured (HACKING.md): from here on, reads past the page cache are faster. */
#define LARGE_BLOCK_BYTES ((uint64_t)128 << 10)

/* They read at least that much at a time, be it because st_blksize says so. */
static const char *const large_block_readers[] = {"borg", "cat", "cp", "qemu-img", "restic", "rsync", NULL};

/* What a process says of itself may be without end: this takes the beginning, and adds a NUL. */
static size_t read_proc(pid_t pid, const char *name, char *buffer, size_t buffer_bytes) {
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", (int)pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, buffer, buffer_bytes - 1) : 0;
    if (fd >= 0)
        (void)close(fd);
    length = MAX(length, 0);
    buffer[length] = '\0';
    return (size_t)length;
}

/* Its arguments are bs=BYTES, which counts for both directions, or ibs=BYTES; each ends in a NUL. */
static gboolean dd_reads_large_blocks(pid_t pid) {
    char arguments[4096];
    size_t length = read_proc(pid, "cmdline", arguments, sizeof arguments);
    for (const char *argument = arguments; argument < arguments + length; argument += strlen(argument) + 1) {
        const char *value = g_str_has_prefix(argument, "ibs=") ? argument + strlen("ibs=") : NULL;
        value = g_str_has_prefix(argument, "bs=") ? argument + strlen("bs=") : value;
        uint64_t block_bytes;
        if (value && vmsnap_size_parse(value, &block_bytes) && block_bytes >= LARGE_BLOCK_BYTES)
            return TRUE;
    }
    return FALSE;
}

gboolean vmsnap_opener_reads_large_blocks(pid_t pid) {
    static GMutex dd_lock;
    char name[64];
    if (pid <= 0 || read_proc(pid, "comm", name, sizeof name) == 0)
        return FALSE;
    (void)g_strchomp(name);
    if (g_strv_contains(large_block_readers, name))
        return TRUE;
    if (!g_str_equal(name, "dd") || !g_mutex_trylock(&dd_lock))
        return FALSE;
    gboolean large = dd_reads_large_blocks(pid);
    g_mutex_unlock(&dd_lock);
    return large;
}
