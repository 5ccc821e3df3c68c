/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "increment.h"

#include "vmsnap/error.h"

#include <string.h>

static const VmsnapCheckpoint *find_checkpoint(const GPtrArray *checkpoints, const char *name) {
    for (guint i = 0; i < checkpoints->len; i++) {
        const VmsnapCheckpoint *checkpoint = g_ptr_array_index(checkpoints, i);
        if (g_str_equal(checkpoint->name, name))
            return checkpoint;
    }
    return NULL;
}

/* Returns: the newest one of vmsnap's that a backup of the disk rests on, or NULL. */
static const VmsnapCheckpoint *find_newest(const GPtrArray *checkpoints, const char *disk) {
    for (guint i = checkpoints->len; i-- > 0;) {
        const VmsnapCheckpoint *checkpoint = g_ptr_array_index(checkpoints, i);
        if (checkpoint->snapshot && checkpoint->committed && vmsnap_checkpoint_find_disk(checkpoint, disk))
            return checkpoint;
    }
    return NULL;
}

static gboolean since_check(const VmsnapBeginOptions *options, const GPtrArray *checkpoints, const char *machine,
                            GError **error) {
    const VmsnapCheckpoint *since = options->since ? find_checkpoint(checkpoints, options->since) : NULL;
    if (!options->since || (since && since->committed))
        return TRUE;
    const char *reason = since ? "the backup that it was created with was not completed" : "it has none of that name";
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use checkpoint '%s' of domain '%s': %s; see 'virsh checkpoint-list %s', or mount with "
                "-o incremental",
                options->since, machine, reason, machine);
    return FALSE;
}

/* One that is not committed is deleted before. */
static gboolean name_check(const VmsnapBeginOptions *options, const GPtrArray *checkpoints, const char *machine,
                           GError **error) {
    const VmsnapCheckpoint *other = options->checkpoint ? find_checkpoint(checkpoints, options->checkpoint) : NULL;
    if (!other || !other->committed)
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to create checkpoint '%s' of domain '%s': there is one of that name; choose another, or delete "
                "it with 'virsh checkpoint-delete'",
                options->checkpoint, machine);
    return FALSE;
}

/* Where checkpoints are named, all disks must fit. */
static gboolean is_strict(const VmsnapBeginOptions *options) {
    return !options->incremental;
}

static gboolean disk_refuse(const VmsnapBeginOptions *options, const VmsnapDisk *disk, const char *reason,
                            GError **error) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use checkpoint '%s' for disk '%s': %s; leave it out with -o exclude=%s, or mount with "
                "-o incremental, which takes it in full",
                options->since ? options->since : options->checkpoint, disk->name, reason, disk->name);
    return FALSE;
}

static void disk_make_full(VmsnapDisk *disk, const char *reason) {
    g_clear_pointer(&disk->since, g_free);
    g_free(disk->full_reason);
    disk->full_reason = g_strdup(reason);
}

/* Returns: FALSE if it must be refused. */
static gboolean disk_lacks(const VmsnapBeginOptions *options, VmsnapDisk *disk, const char *reason, GError **error) {
    if (is_strict(options))
        return disk_refuse(options, disk, reason, error);
    disk_make_full(disk, reason);
    return TRUE;
}

/* Returns: (transfer none): what the changes of a disk are to count from, or NULL if there is nothing. */
static const VmsnapCheckpoint *choose_since(const VmsnapBeginOptions *options, const GPtrArray *checkpoints,
                                            const char *disk) {
    if (options->since)
        return find_checkpoint(checkpoints, options->since);
    return options->incremental ? find_newest(checkpoints, disk) : NULL;
}

/* Returns: (transfer full): why a disk cannot be as asked for, or NULL if it can. */
static char *find_obstacle(const VmsnapBeginOptions *options, const VmsnapDomainDisk *source,
                           const VmsnapCheckpoint *since, const VmsnapCheckpointDisk *before) {
    if (!source->keeps_track)
        return g_strdup_printf("its image is %s, and only qcow2 keeps track of changes",
                               source->format ? source->format : "of no known format");
    if (!before && options->since)
        return g_strdup("it does not track this disk");
    if (!before && options->incremental)
        return g_strdup("no committed checkpoint of vmsnap's tracks it");
    if (before && before->source && !g_strv_contains((const char *const *)source->chain, before->source))
        return g_strdup_printf("its image was '%s' at checkpoint '%s', and is another one now", before->source,
                               since->name);
    return NULL;
}

static gboolean disk_plan(const VmsnapBeginOptions *options, const GPtrArray *checkpoints,
                          const VmsnapDomainDisk *source, VmsnapDisk *disk, GError **error) {
    const VmsnapCheckpoint *since = choose_since(options, checkpoints, source->base.name);
    const VmsnapCheckpointDisk *before = since ? vmsnap_checkpoint_find_disk(since, source->base.name) : NULL;
    g_autofree char *obstacle = find_obstacle(options, source, since, before);
    if (obstacle)
        return disk_lacks(options, disk, obstacle, error);
    if (before) {
        disk->since = g_strdup(since->name);
        disk->since_size_bytes = before->size_bytes;
        disk->since_modified_ns = before->modified_ns;
    }
    return TRUE;
}

static void snapshot_note_since(VmsnapSnapshot *snapshot) {
    g_clear_pointer(&snapshot->since, g_free);
    for (guint i = 0; i < snapshot->disks->len && !snapshot->since; i++)
        snapshot->since = g_strdup(((const VmsnapDisk *)g_ptr_array_index(snapshot->disks, i))->since);
}

static gboolean keep_track(const GPtrArray *selected) {
    for (guint i = 0; i < selected->len; i++)
        if (((const VmsnapDomainDisk *)g_ptr_array_index(selected, i))->keeps_track)
            return TRUE;
    return FALSE;
}

gboolean vmsnap_increment_plan(const VmsnapBeginOptions *options, const GPtrArray *checkpoints,
                               const GPtrArray *selected, VmsnapSnapshot *snapshot, GError **error) {
    if (!options->incremental && !options->since && !options->checkpoint)
        return TRUE;
    if (!since_check(options, checkpoints, snapshot->machine, error) ||
        !name_check(options, checkpoints, snapshot->machine, error))
        return FALSE;
    for (guint i = 0; i < selected->len; i++)
        if (!disk_plan(options, checkpoints, g_ptr_array_index(selected, i), g_ptr_array_index(snapshot->disks, i),
                       error))
            return FALSE;
    if (options->checkpoint)
        snapshot->checkpoint = g_strdup(options->checkpoint);
    else if (options->incremental && keep_track(selected))
        snapshot->checkpoint = vmsnap_checkpoint_make_name();
    snapshot_note_since(snapshot);
    return TRUE;
}

static gboolean names_disk(const char *message, const VmsnapDisk *disk) {
    g_autofree char *quoted = g_strdup_printf("disk '%s'", disk->name);
    return strstr(message, quoted) != NULL;
}

gboolean vmsnap_increment_drop(VmsnapSnapshot *snapshot, const char *message) {
    gboolean dropped = FALSE, names_any = FALSE;
    for (guint i = 0; i < snapshot->disks->len; i++)
        names_any = names_any || names_disk(message, g_ptr_array_index(snapshot->disks, i));
    for (guint i = 0; i < snapshot->disks->len; i++) {
        VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        if (!disk->since || (names_any && !names_disk(message, disk)))
            continue;
        disk_make_full(disk, message);
        dropped = TRUE;
    }
    snapshot_note_since(snapshot);
    return dropped;
}

/* Returns: the disk that @message is about, which names it as QEMU does, or NULL. */
static VmsnapDomainDisk *find_by_node(const GPtrArray *selected, const char *message) {
    for (guint i = 0; i < selected->len; i++) {
        VmsnapDomainDisk *source = g_ptr_array_index(selected, i);
        g_autofree char *quoted = source->node ? g_strdup_printf("'%s'", source->node) : NULL;
        if (quoted && strstr(message, quoted))
            return source;
    }
    return NULL;
}

gboolean vmsnap_increment_untrack(VmsnapSnapshot *snapshot, const GPtrArray *selected, const char *message) {
    VmsnapDomainDisk *untracked = find_by_node(selected, message);
    gboolean tracks = FALSE;
    if (!snapshot->checkpoint || !strstr(message, "bitmap") || (untracked && !untracked->keeps_track))
        return FALSE;
    for (guint i = 0; i < selected->len; i++) {
        VmsnapDomainDisk *source = g_ptr_array_index(selected, i);
        if (untracked && source != untracked) {
            tracks = tracks || source->keeps_track;
            continue;
        }
        source->keeps_track = FALSE;
        disk_make_full(g_ptr_array_index(snapshot->disks, i), message);
    }
    if (!tracks)
        g_clear_pointer(&snapshot->checkpoint, g_free);
    snapshot_note_since(snapshot);
    return TRUE;
}

gboolean vmsnap_increment_check_sizes(const VmsnapBeginOptions *options, VmsnapSnapshot *snapshot, GError **error) {
    for (guint i = 0; i < snapshot->disks->len; i++) {
        VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        if (!disk->since || disk->since_size_bytes == 0 || disk->since_size_bytes == disk->size_bytes)
            continue;
        g_autofree char *reason = g_strdup_printf("it was resized since checkpoint '%s', from %" G_GUINT64_FORMAT
                                                  " to %" G_GUINT64_FORMAT " bytes",
                                                  disk->since, disk->since_size_bytes, disk->size_bytes);
        if (!disk_lacks(options, disk, reason, error))
            return FALSE;
    }
    snapshot_note_since(snapshot);
    return TRUE;
}
