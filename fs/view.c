/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which files a snapshot has, and what their readers share. */
#include "view.h"

#include "manifest.h"
#include "map_file.h"
#include "size.h"
#include "status.h"

#include "vmsnap/error.h"

#include <errno.h>

/* Buffers for reads that find nothing fetched ahead. Each is as large as FUSE's largest read, so this is 12 MiB. */
#define DEMAND_BUFFER_BYTES ((size_t)1 << 20)
#define MAX_DEMAND_BUFFERS 12

#define HIDDEN_NAME ".vmsnap"
#define MANIFEST_NAME "manifest.json"

static GBytes *bytes_of(char *text) {
    return g_bytes_new_take(text, strlen(text));
}

static GBytes *status_json_generate(gpointer user_data) {
    return bytes_of(vmsnap_status_build_json(user_data));
}

static GBytes *status_text_generate(gpointer user_data) {
    return bytes_of(vmsnap_status_build_text(user_data));
}

static GBytes *speed_generate(gpointer user_data) {
    const VmsnapView *view = user_data;
    return bytes_of(g_strdup_printf("%" G_GUINT64_FORMAT "\n", vmsnap_throttle_get_rate(view->throttle)));
}

static int speed_store(const char *text, gpointer user_data) {
    const VmsnapView *view = user_data;
    uint64_t bytes_per_s;
    if (!vmsnap_size_parse(text, &bytes_per_s))
        return -EINVAL;
    vmsnap_throttle_set_rate(view->throttle, bytes_per_s);
    return 0;
}

static GBytes *commit_generate(gpointer user_data) {
    return bytes_of(g_strdup(vmsnap_view_has_commit(user_data) ? "yes\n" : "no\n"));
}

/* Whoever gives the order of a snapshot that is lost must not believe that it was heard. */
static int commit_store(const char *text, gpointer user_data) {
    static const char *const yes[] = {"yes", "1", NULL}, *const no[] = {"no", "0", NULL};
    VmsnapView *view = user_data;
    gboolean commit = g_strv_contains(yes, text);
    if (!commit && !g_strv_contains(no, text))
        return -EINVAL;
    if (commit && vmsnap_snapshot_is_broken(view->snapshot))
        return -EIO;
    g_atomic_int_set(&view->has_commit, commit);
    return 0;
}

static GBytes *map_generate(gpointer user_data) {
    return vmsnap_map_file_get(user_data);
}

static VmsnapNode *view_add_memory_file(VmsnapView *view, VmsnapNode *directory, const char *name, GBytes *content) {
    return vmsnap_tree_add_file(view->tree, directory, name, vmsnap_layout_new_memory(content));
}

static void view_add_map(VmsnapView *view, VmsnapNode *directory, const VmsnapDiskView *disk, const char *suffix,
                         VmsnapMapTextFunc to_text) {
    g_autofree char *name = g_strconcat(disk->disk->name, suffix, NULL);
    VmsnapMapFile *file = vmsnap_map_file_new(disk, to_text);
    g_ptr_array_add(view->map_files, file);
    vmsnap_tree_add_live_file(view->tree, directory, name, map_generate, NULL, file)->map = disk;
}

static void view_add_maps(VmsnapView *view, VmsnapNode *directory) {
    for (guint i = 0; i < view->disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        view_add_map(view, directory, disk, ".json", vmsnap_block_map_to_json);
        view_add_map(view, directory, disk, ".borg", vmsnap_block_map_to_lines);
    }
}

/* Returns: (transfer full): the name of the list of what has changed, beside the file that shows it; or NULL. */
static char *name_changes_list(const VmsnapFormatOptions *format, const VmsnapDisk *disk) {
    return format->only_changed && disk->since ? g_strconcat(disk->name, ".changed.map", NULL) : NULL;
}

/* Even where it is known what has changed: then tools that go by dates can skip what has not. */
static gboolean shows_whole_disks(const VmsnapView *view) {
    return view->format.format == &vmsnap_format_raw && !view->format.only_changed;
}

static VmsnapReaderResources resources_new(const VmsnapView *view, const VmsnapViewOptions *options) {
    uint64_t n_chunks = (options->readahead_bytes + VMSNAP_READER_CHUNK_BYTES - 1) / VMSNAP_READER_CHUNK_BYTES;
    return (VmsnapReaderResources){
        .snapshot = view->snapshot,
        .demand = vmsnap_buffer_pool_new(DEMAND_BUFFER_BYTES, MAX_DEMAND_BUFFERS),
        .ahead = vmsnap_buffer_pool_new(VMSNAP_READER_CHUNK_BYTES, (guint)MIN(n_chunks, G_MAXUINT)),
        .throttle = view->throttle,
        .releases = options->release,
    };
}

VmsnapView *vmsnap_view_new(VmsnapSnapshot *snapshot, const VmsnapViewOptions *options) {
    VmsnapView *view = g_new0(VmsnapView, 1);
    view->snapshot = snapshot;
    view->format = options->format;
    view->disks = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_disk_view_free);
    view->map_files = g_ptr_array_new_with_free_func((GDestroyNotify)vmsnap_map_file_free);
    view->tree = vmsnap_tree_new(snapshot->machine_uuid);
    view->throttle = vmsnap_throttle_new(options->speed_bytes_per_s);
    view->resources = resources_new(view, options);

    for (guint i = 0; i < snapshot->disks->len; i++)
        g_ptr_array_add(view->disks, vmsnap_disk_view_new(g_ptr_array_index(snapshot->disks, i), view->throttle));

    VmsnapNode *root = vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID);
    VmsnapNode *hidden = vmsnap_tree_add_directory(view->tree, root, HIDDEN_NAME, TRUE);
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        (void)view_add_memory_file(view, file->kind == VMSNAP_FILE_HIDDEN ? hidden : root, file->name, file->content);
    }
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "status.json", status_json_generate, NULL, view);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "status", status_text_generate, NULL, view);
    (void)vmsnap_tree_add_live_file(view->tree, hidden, "speed", speed_generate, speed_store, view);
    if (options->takes_commit)
        (void)vmsnap_tree_add_live_file(view->tree, hidden, "commit", commit_generate, commit_store, view);
    view_add_maps(view, vmsnap_tree_add_directory(view->tree, hidden, "map", FALSE));
    return view;
}

void vmsnap_view_note_read_error(VmsnapView *view) {
    g_atomic_int_set(&view->has_read_error, TRUE);
}

gboolean vmsnap_view_was_read_well(const VmsnapView *view) {
    return !g_atomic_int_get(&view->has_read_error);
}

gboolean vmsnap_view_has_commit(const VmsnapView *view) {
    return g_atomic_int_get(&view->has_commit);
}

void vmsnap_view_free(VmsnapView *view) {
    if (!view)
        return;
    vmsnap_tree_free(view->tree);
    g_ptr_array_unref(view->map_files);
    g_ptr_array_unref(view->disks);
    vmsnap_buffer_pool_free(view->resources.demand);
    vmsnap_buffer_pool_free(view->resources.ahead);
    vmsnap_throttle_free(view->throttle);
    g_free(view);
}

/* A file of what has changed is of no use without the list of it: its holes may be zeroes as well. */
static void view_add_changes_list(VmsnapView *view, const VmsnapDiskView *disk) {
    g_autofree char *name = name_changes_list(&view->format, disk->disk);
    if (!name)
        return;
    g_autoptr(GBytes) content = bytes_of(vmsnap_block_map_to_lines(disk->shown));
    (void)view_add_memory_file(view, vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID), name, content);
}

static void view_add_disks(VmsnapView *view) {
    const VmsnapFormat *format = view->format.format;
    VmsnapNode *root = vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID);
    guint n_in_file = format->one_file ? view->disks->len : 1;
    for (guint i = 0; i < view->disks->len; i += n_in_file) {
        VmsnapDiskView *const *disks = (VmsnapDiskView *const *)&g_ptr_array_index(view->disks, i);
        g_autofree char *name = vmsnap_format_name_file(&view->format, disks[0]->disk);
        VmsnapLayout *layout = format->layout_new(&view->format, view->snapshot, disks, n_in_file);
        VmsnapNode *node = vmsnap_tree_add_file(view->tree, root, name, layout);
        if (shows_whole_disks(view))
            node->modified_ns = disks[0]->disk->modified_ns;
        view_add_changes_list(view, disks[0]);
    }
}

/* What is zeroes must be known before it is read, or it would be read from what has been released. */
static gboolean needs_maps(const VmsnapView *view) {
    return view->format.format->needs_maps || view->format.only_changed || view->resources.releases;
}

static gboolean view_map_changes(VmsnapView *view, VmsnapInterruptedFunc interrupted, gpointer user_data,
                                 GError **error) {
    g_autoptr(GPtrArray) scans = g_ptr_array_new();
    for (guint i = 0; i < view->disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        if (!disk->changes)
            continue;
        vmsnap_scan_start(disk->changes, NULL);
        g_ptr_array_add(scans, disk->changes);
    }
    return vmsnap_map_wait(view->snapshot, scans, interrupted, user_data, error);
}

static gboolean view_map_content(VmsnapView *view, VmsnapInterruptedFunc interrupted, gpointer user_data,
                                 GError **error) {
    g_autoptr(GPtrArray) scans = g_ptr_array_new();
    for (guint i = 0; i < view->disks->len; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        disk->only_changes = disk->changes && !shows_whole_disks(view);
        vmsnap_scan_start(disk->scan, disk->only_changes ? vmsnap_disk_view_get_changes(disk) : NULL);
        g_ptr_array_add(scans, disk->scan);
    }
    return !needs_maps(view) || vmsnap_map_wait(view->snapshot, scans, interrupted, user_data, error);
}

static void view_list_changes(VmsnapView *view) {
    for (guint i = 0; i < view->disks->len; i++) {
        VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        if (disk->only_changes)
            disk->shown = vmsnap_block_map_new(disk);
    }
}

static void view_begin_release(VmsnapView *view) {
    for (guint i = 0; view->resources.releases && i < view->disks->len; i++)
        vmsnap_disk_view_begin_release(g_ptr_array_index(view->disks, i));
}

/* A disk that has not changed since a checkpoint was changed last when it had been by then. */
static void view_date_disks(VmsnapView *view) {
    for (guint i = 0; i < view->disks->len; i++) {
        const VmsnapDiskView *disk = g_ptr_array_index(view->disks, i);
        gboolean clean = vmsnap_disk_view_get_dirty_bytes(disk) == 0 && disk->disk->since_modified_ns;
        disk->disk->modified_ns = clean ? disk->disk->since_modified_ns : view->snapshot->instant_ns;
    }
}

/*
 * borg forgets files whose date is the newest of a backup, since they may have been written to again within the same
 * moment. If disks are to be known again, something must be newer: by the least that there is.
 */
static void view_add_manifest(VmsnapView *view) {
    VmsnapNode *root = vmsnap_tree_get(view->tree, VMSNAP_TREE_ROOT_ID);
    g_autoptr(GBytes) manifest = vmsnap_manifest_build(view);
    VmsnapNode *node = view_add_memory_file(view, root, MANIFEST_NAME, manifest);
    if (view->snapshot->checkpoint)
        node->modified_ns = view->snapshot->instant_ns + 1;
}

gboolean vmsnap_view_start(VmsnapView *view, VmsnapInterruptedFunc interrupted, gpointer user_data, GError **error) {
    if (!view_map_changes(view, interrupted, user_data, error) ||
        !view_map_content(view, interrupted, user_data, error))
        return FALSE;
    view_begin_release(view);
    view_list_changes(view);
    view_date_disks(view);
    view_add_disks(view);
    view_add_manifest(view);
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
    for (guint i = 0; i < snapshot->disks->len; i += n_in_file) {
        const VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        char *list_name = name_changes_list(&options->format, disk);
        if (!names_add(names, vmsnap_format_name_file(&options->format, disk), error) ||
            (list_name && !names_add(names, list_name, error)))
            return FALSE;
    }
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
