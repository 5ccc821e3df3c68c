/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "map_file.h"

#include <string.h>

struct VmsnapMapFile {
    const VmsnapDiskView *view;
    VmsnapMapTextFunc to_text;
    GMutex lock;
    GBytes *text; /* or NULL; guarded by lock */
};

VmsnapMapFile *vmsnap_map_file_new(const VmsnapDiskView *view, VmsnapMapTextFunc to_text) {
    VmsnapMapFile *file = g_new0(VmsnapMapFile, 1);
    file->view = view;
    file->to_text = to_text;
    g_mutex_init(&file->lock);
    return file;
}

void vmsnap_map_file_free(VmsnapMapFile *file) {
    g_clear_pointer(&file->text, g_bytes_unref);
    g_mutex_clear(&file->lock);
    g_free(file);
}

static GBytes *text_new(const VmsnapMapFile *file) {
    g_autoptr(VmsnapBlockMap) map = vmsnap_block_map_new(file->view);
    char *text = file->to_text(map);
    return g_bytes_new_take(text, strlen(text));
}

/* The lock is held while the text is made: whoever comes meanwhile wants the same. */
GBytes *vmsnap_map_file_get(VmsnapMapFile *file) {
    if (!vmsnap_scan_is_complete(file->view->scan))
        return text_new(file);
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&file->lock);
    if (!file->text)
        file->text = text_new(file);
    return g_bytes_ref(file->text);
}
