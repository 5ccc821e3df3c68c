/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether a file is read past the page cache must be said when it is opened, and only the name of the program tells
 * then how it is going to read. That is a hint and no more: both ways give the same bytes.
 *
 * The name does not lie in the memory of the process. The command line of dd does; but the kernel gives none that lies
 * in a mapped file, so that to read it cannot mean to wait for a page of a filesystem, which might be this one.
 */
#include "opener.h"

#include "size.h"

#include <string.h>

/* Measured (HACKING.md): from here on, reads past the page cache are faster. */
#define LARGE_BLOCK_BYTES ((uint64_t)128 << 10)

/* They read at least that much at a time, be it because st_blksize says so. */
static const char *const large_block_readers[] = {"borg", "cat", "cp", "qemu-img", "restic", "rsync", NULL};

static char *read_proc(pid_t pid, const char *name, gsize *ret_length) {
    char *content = NULL;
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", (int)pid, name);
    return g_file_get_contents(path, &content, ret_length, NULL) ? content : NULL;
}

/* Its arguments are bs=BYTES, which counts for both directions, or ibs=BYTES; each ends in a NUL. */
static gboolean dd_reads_large_blocks(pid_t pid) {
    gsize length;
    g_autofree char *arguments = read_proc(pid, "cmdline", &length);
    for (const char *argument = arguments; argument && argument < arguments + length;
         argument += strlen(argument) + 1) {
        const char *value = g_str_has_prefix(argument, "ibs=") ? argument + strlen("ibs=") : NULL;
        value = g_str_has_prefix(argument, "bs=") ? argument + strlen("bs=") : value;
        uint64_t block_bytes;
        if (value && vmsnap_size_parse(value, &block_bytes) && block_bytes >= LARGE_BLOCK_BYTES)
            return TRUE;
    }
    return FALSE;
}

gboolean vmsnap_opener_reads_large_blocks(pid_t pid) {
    g_autofree char *name = pid > 0 ? read_proc(pid, "comm", NULL) : NULL;
    if (!name)
        return FALSE;
    (void)g_strchomp(name);
    return g_strv_contains(large_block_readers, name) || (g_str_equal(name, "dd") && dd_reads_large_blocks(pid));
}
