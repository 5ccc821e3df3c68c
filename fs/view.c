/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which files a snapshot has. */
#include "view.h"

#include "manifest.h"
#include "status.h"

static char *status_json_generate(gpointer user_data) {
    return vmsnap_status_build_json(user_data);
}

static char *status_text_generate(gpointer user_data) {
    return vmsnap_status_build_text(user_data);
}

static void view_add_memory_file(VmsnapView *view, VmsnapNode *directory, const char *name, GBytes *content) {
    (void)vmsnap_tree_add_file(view->tree, directory, name, vmsnap_layout_new_memory(content));
}

static void view_add_disks(VmsnapView *view, VmsnapNode *root) {
    for (guint i = 0; i < view->snapshot->disks->len; i++) {
        VmsnapDiskView *disk = vmsnap_disk_view_new(g_ptr_array_index(view->snapshot->disks, i));
        g_ptr_array_add(view->disks, disk);
        g_autofree char *name = g_strconcat(disk->disk->name, ".raw", NULL);
        (void)vmsnap_tree_add_file(view->tree, root, name, vmsnap_layout_new_raw(disk));
    }
}

VmsnapView *vmsnap_view_new(VmsnapSnapshot *snapshot) {
    VmsnapView *view = g_new0(VmsnapView, 1);
    view->snapshot = snapshot;
    view->disks = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_disk_view_free);
    view->tree = vmsnap_tree_new(snapshot->machine_uuid);

    VmsnapNode *root = vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID);
    VmsnapNode *hidden = vmsnap_tree_add_directory(view->tree, root, ".vmsnap", TRUE);
    view_add_disks(view, root);
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        view_add_memory_file(view, file->hidden ? hidden : root, file->name, file->content);
    }
    g_autoptr(GBytes) manifest = vmsnap_manifest_build(snapshot);
    view_add_memory_file(view, root, "manifest.json", manifest);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "status.json", status_json_generate, view);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "status", status_text_generate, view);
    return view;
}

void vmsnap_view_free(VmsnapView *view) {
    if (!view)
        return;
    vmsnap_tree_free(view->tree);
    g_ptr_array_unref(view->disks);
    g_free(view);
}

void vmsnap_view_start(VmsnapView *view) {
    for (guint i = 0; i < view->disks->len; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        vmsnap_scan_start(disk->scan);
    }
}
