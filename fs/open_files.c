/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel keeps a pointer to each open file, and gives it back when the last descriptor is closed; but not if the
 * mount is aborted or the process ends before. So all of them stand in a set.
 */
#include "open_files.h"

struct VmsnapOpenFiles {
    GMutex lock;
    GHashTable *files; /* set of VmsnapOpenFile, owned; guarded by lock */
};

static void open_file_free(gpointer data) {
    VmsnapOpenFile *file = data;
    vmsnap_reader_close(file->reader);
    g_clear_pointer(&file->content, g_bytes_unref);
    g_free(file);
}

VmsnapOpenFiles *vmsnap_open_files_new(void) {
    VmsnapOpenFiles *files = g_new0(VmsnapOpenFiles, 1);
    g_mutex_init(&files->lock);
    files->files = g_hash_table_new_full(NULL, NULL, open_file_free, NULL);
    return files;
}

void vmsnap_open_files_free(VmsnapOpenFiles *files) {
    if (!files)
        return;
    g_hash_table_unref(files->files);
    g_mutex_clear(&files->lock);
    g_free(files);
}

VmsnapOpenFile *vmsnap_open_files_open(VmsnapOpenFiles *files, const VmsnapNode *node,
                                       const VmsnapReaderResources *resources) {
    VmsnapOpenFile *file = g_new0(VmsnapOpenFile, 1);
    if (node->layout)
        file->reader = vmsnap_reader_new(node->layout, resources);
    else
        file->content = node->generate(node->live_data);
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&files->lock);
    (void)g_hash_table_add(files->files, file);
    return file;
}

void vmsnap_open_files_close(VmsnapOpenFiles *files, VmsnapOpenFile *file) {
    g_mutex_lock(&files->lock);
    (void)g_hash_table_steal(files->files, file);
    g_mutex_unlock(&files->lock);
    open_file_free(file);
}
