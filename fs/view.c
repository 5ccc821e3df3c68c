/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which files a snapshot has, and what their readers share. */
#include "view.h"

#include "manifest.h"
#include "map_wait.h"
#include "size.h"
#include "status.h"

#include "vmsnap/error.h"

#include <errno.h>

/* Buffers for reads that find nothing fetched ahead. Each is as large as FUSE's largest read, so this is 12 MiB. */
#define DEMAND_BUFFER_BYTES ((size_t)1 << 20)
#define MAX_DEMAND_BUFFERS 12

#define HIDDEN_NAME ".vmsnap"
#define MANIFEST_NAME "manifest.json"

static char *status_json_generate(gpointer user_data) {
    return vmsnap_status_build_json(user_data);
}

static char *status_text_generate(gpointer user_data) {
    return vmsnap_status_build_text(user_data);
}

static char *speed_generate(gpointer user_data) {
    const VmsnapView *view = user_data;
    return g_strdup_printf("%" G_GUINT64_FORMAT "\n", vmsnap_throttle_get_rate(view->throttle));
}

static int speed_store(const char *text, gpointer user_data) {
    const VmsnapView *view = user_data;
    uint64_t bytes_per_s;
    if (!vmsnap_size_parse(text, &bytes_per_s))
        return -EINVAL;
    vmsnap_throttle_set_rate(view->throttle, bytes_per_s);
    return 0;
}

static void view_add_memory_file(VmsnapView *view, VmsnapNode *directory, const char *name, GBytes *content) {
    (void)vmsnap_tree_add_file(view->tree, directory, name, vmsnap_layout_new_memory(content));
}

static VmsnapReaderResources resources_new(const VmsnapView *view, const VmsnapViewOptions *options) {
    uint64_t n_chunks = (options->readahead_bytes + VMSNAP_READER_CHUNK_BYTES - 1) / VMSNAP_READER_CHUNK_BYTES;
    return (VmsnapReaderResources){
        .snapshot = view->snapshot,
        .demand = vmsnap_buffer_pool_new(DEMAND_BUFFER_BYTES, MAX_DEMAND_BUFFERS),
        .ahead = vmsnap_buffer_pool_new(VMSNAP_READER_CHUNK_BYTES, (guint)MIN(n_chunks, G_MAXUINT)),
        .throttle = view->throttle,
    };
}

VmsnapView *vmsnap_view_new(VmsnapSnapshot *snapshot, const VmsnapViewOptions *options) {
    VmsnapView *view = g_new0(VmsnapView, 1);
    view->snapshot = snapshot;
    view->format = options->format;
    view->disks = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_disk_view_free);
    view->tree = vmsnap_tree_new(snapshot->machine_uuid);
    view->throttle = vmsnap_throttle_new(options->speed_bytes_per_s);
    view->resources = resources_new(view, options);

    for (guint i = 0; i < snapshot->disks->len; i++)
        g_ptr_array_add(view->disks, vmsnap_disk_view_new(g_ptr_array_index(snapshot->disks, i), view->throttle));

    VmsnapNode *root = vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID);
    VmsnapNode *hidden = vmsnap_tree_add_directory(view->tree, root, HIDDEN_NAME, TRUE);
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        view_add_memory_file(view, file->kind == VMSNAP_FILE_HIDDEN ? hidden : root, file->name, file->content);
    }
    g_autoptr(GBytes) manifest = vmsnap_manifest_build(snapshot, options->format.format);
    view_add_memory_file(view, root, MANIFEST_NAME, manifest);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "status.json", status_json_generate, NULL, view);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "status", status_text_generate, NULL, view);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "speed", speed_generate, speed_store, view);
    return view;
}

void vmsnap_view_free(VmsnapView *view) {
    if (!view)
        return;
    vmsnap_tree_free(view->tree);
    g_ptr_array_unref(view->disks);
    vmsnap_buffer_pool_free(view->resources.demand);
    vmsnap_buffer_pool_free(view->resources.ahead);
    vmsnap_throttle_free(view->throttle);
    g_free(view);
}

static void view_add_disks(VmsnapView *view) {
    const VmsnapFormat *format = view->format.format;
    guint n_in_file = format->one_file ? view->disks->len : 1;
    for (guint i = 0; i < view->disks->len; i += n_in_file) {
        VmsnapDiskView *const *disks = (VmsnapDiskView *const *)&g_ptr_array_index(view->disks, i);
        g_autofree char *name = vmsnap_format_name_file(format, disks[0]->disk);
        VmsnapLayout *layout = format->layout_new(&view->format, view->snapshot, disks, n_in_file);
        (void)vmsnap_tree_add_file(view->tree, vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID), name, layout);
    }
}

gboolean vmsnap_view_start(VmsnapView *view, VmsnapInterruptedFunc interrupted, gpointer user_data, GError **error) {
    for (guint i = 0; i < view->disks->len; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        vmsnap_scan_start(disk->scan);
    }
    if (view->format.format->needs_maps && !vmsnap_map_wait(view->snapshot, view->disks, interrupted, user_data, error))
        return FALSE;
    view_add_disks(view);
    return TRUE;
}

static gboolean names_add(GHashTable *names, char *name, GError **error) {
    if (g_hash_table_contains(names, name)) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to use '%s' for two files; rename the one that config= names, or choose another format",
                    name);
        g_free(name);
        return FALSE;
    }
    g_hash_table_add(names, name);
    return TRUE;
}

static gboolean check_names(const VmsnapViewOptions *options, const VmsnapSnapshot *snapshot, GError **error) {
    g_autoptr(GHashTable) names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    const VmsnapFormat *format = options->format.format;
    guint n_in_file = format->one_file ? MAX(snapshot->disks->len, 1) : 1;
    g_hash_table_add(names, g_strdup(HIDDEN_NAME));
    g_hash_table_add(names, g_strdup(MANIFEST_NAME));
    for (guint i = 0; i < snapshot->disks->len; i += n_in_file)
        if (!names_add(names, vmsnap_format_name_file(format, g_ptr_array_index(snapshot->disks, i)), error))
            return FALSE;
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        if (file->kind != VMSNAP_FILE_HIDDEN && !names_add(names, g_strdup(file->name), error))
            return FALSE;
    }
    return TRUE;
}

gboolean vmsnap_view_check(const VmsnapViewOptions *options, const VmsnapSnapshot *snapshot, GError **error) {
    return check_names(options, snapshot, error) && vmsnap_format_check(&options->format, snapshot, error);
}

void vmsnap_view_stop(VmsnapView *view) {
    vmsnap_throttle_stop(view->throttle);
}
