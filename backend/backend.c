/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checked wrappers over the backend vtable, and the state that every snapshot has: whether it is still whole. It knows
 * which backends exist and nothing of what they do.
 */
#include "vmsnap/backend.h"

#include "config.h"
#include "dirs.h"
#include "export_backend.h"
#include "qmp_backend.h"
#include "vmsnap/error.h"

#include <errno.h>

#ifdef HAVE_LIBVIRT
#include "libvirt_backend.h"
#endif

#define MAX_EXTENTS_LENGTH_BYTES (UINT64_C(1) << 31)
#define MAX_RELEASE_LENGTH_BYTES (UINT64_C(1) << 30)

/* In the order in which they are asked whether a source is theirs: libvirt's takes what is left. */
static const VmsnapBackend *const backends[] = {
    &vmsnap_qmp_backend,
    &vmsnap_export_backend,
#ifdef HAVE_LIBVIRT
    &vmsnap_libvirt_backend,
#endif
    NULL,
};

static const VmsnapBackend *backend_find_by_name(const char *name) {
    for (size_t i = 0; backends[i]; i++)
        if (g_strcmp0(backends[i]->name, name) == 0)
            return backends[i];
    return NULL;
}

static const VmsnapBackend *backend_find(const char *source) {
    for (size_t i = 0; backends[i]; i++)
        if (backends[i]->handles(source))
            return backends[i];
    return NULL;
}

char *vmsnap_source_resolve(const char *source) {
    const VmsnapBackend *backend = backend_find(source);
    return backend && backend->resolve ? backend->resolve(source) : g_strdup(source);
}

gboolean vmsnap_source_check_option(const char *source, const char *option, GError **error) {
    const VmsnapBackend *backend = backend_find(source);
    for (const VmsnapRefusal *refusal = backend ? backend->refuses : NULL; refusal && refusal->option; refusal++) {
        if (!g_str_equal(refusal->option, option))
            continue;
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE, "failed to use option '%s' with '%s': %s; leave it out",
                    option, source, refusal->reason);
        return FALSE;
    }
    return TRUE;
}

static const VmsnapWords *words_of(const VmsnapBackend *backend) {
    static const VmsnapWords unknown = {.noun = "source", .host = "its host"};
    return backend ? &backend->words : &unknown;
}

const VmsnapWords *vmsnap_source_get_words(const char *source) {
    return words_of(backend_find(source));
}

const VmsnapWords *vmsnap_backend_get_words(const char *name) {
    return words_of(backend_find_by_name(name));
}

VmsnapConsistency vmsnap_snapshot_get_consistency(const VmsnapSnapshot *snapshot) {
    if (snapshot->backend->is_foreign)
        return VMSNAP_CONSISTENCY_UNKNOWN;
    return snapshot->quiesced ? VMSNAP_CONSISTENCY_FILESYSTEM : VMSNAP_CONSISTENCY_CRASH;
}

VmsnapSnapshot *vmsnap_snapshot_begin(const VmsnapBeginOptions *options, GError **error) {
    g_return_val_if_fail(options->source && options->connections > 0, NULL);
    const VmsnapBackend *backend = backend_find(options->source);
    if (!backend) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE,
                    "failed to mount '%s': this vmsnap was built without support for that kind of source",
                    options->source);
        return NULL;
    }
    g_assert(!options->release || backend->release);
    VmsnapSnapshot *snapshot = backend->begin(options, error);
    g_assert(snapshot || !error || *error);
    return snapshot;
}

gboolean vmsnap_snapshot_start(VmsnapSnapshot *snapshot, GError **error) {
    return !snapshot->backend->start || snapshot->backend->start(snapshot, error);
}

gboolean vmsnap_snapshot_end(VmsnapSnapshot *snapshot, gboolean aborted, gboolean commit, GError **error) {
    gboolean ended = snapshot->backend->end(snapshot, aborted, commit, error);
    g_assert(ended || !error || *error);
    return ended;
}

static gboolean machine_recover(VmsnapRecord *record, GError **error) {
    if (!vmsnap_record_has_left(record))
        return TRUE;
    const VmsnapBackend *backend = backend_find_by_name(record->backend);
    if (backend)
        return backend->recover(record, error);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to end the snapshot of '%s': this vmsnap was built without support for its source",
                record->machine);
    return FALSE;
}

static gboolean directories_remove(const VmsnapRecord *record, GError **error) {
    g_autoptr(GError) first_error = NULL;
    vmsnap_dirs_remove_private(record->runtime_dir, &first_error);
    vmsnap_dirs_remove_private(record->scratch_dir, first_error ? NULL : &first_error);
    if (!first_error)
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&first_error));
    return FALSE;
}

static void record_set_outcome(VmsnapRecord *record, const char *outcome, const char *reason) {
    g_free(record->outcome);
    g_free(record->reason);
    record->outcome = g_strdup(outcome);
    record->reason = g_strdup(reason);
}

/* What went wrong with the snapshot itself is worse, and stays so when all is cleared. */
static void record_set_leftover(int fd, VmsnapRecord *record, const GError *left) {
    if (!g_str_equal(record->outcome, VMSNAP_OUTCOME_BROKEN) &&
        !g_str_equal(record->outcome, VMSNAP_OUTCOME_UNCOMMITTED))
        record_set_outcome(record, VMSNAP_OUTCOME_LEFTOVER, left->message);
    (void)vmsnap_record_update(fd, record);
}

gboolean vmsnap_snapshot_clear_machine(int fd, VmsnapRecord *record, GError **error) {
    if (!machine_recover(record, error))
        return FALSE;
    (void)vmsnap_record_update(fd, record);
    return TRUE;
}

gboolean vmsnap_snapshot_recover(int fd, VmsnapRecord *record, GError **error) {
    if (!record->outcome) {
        record_set_outcome(record, VMSNAP_OUTCOME_BROKEN, "its daemon died");
        (void)vmsnap_record_update(fd, record);
    }
    g_autoptr(GError) left = NULL;
    if (vmsnap_snapshot_clear_machine(fd, record, &left))
        return TRUE;
    record_set_leftover(fd, record, left);
    g_propagate_error(error, g_steal_pointer(&left));
    return FALSE;
}

gboolean vmsnap_snapshot_remove_left(int fd, VmsnapRecord *record, GError **error) {
    g_assert(!vmsnap_record_has_left(record));
    g_autoptr(GError) left = NULL;
    if (directories_remove(record, &left)) {
        if (g_str_equal(record->outcome, VMSNAP_OUTCOME_LEFTOVER))
            record_set_outcome(record, VMSNAP_OUTCOME_COMPLETE, NULL);
        (void)vmsnap_record_update(fd, record);
        vmsnap_record_remove(record->uuid);
        return TRUE;
    }
    record_set_leftover(fd, record, left);
    g_propagate_error(error, g_steal_pointer(&left));
    return FALSE;
}

void vmsnap_snapshot_free(VmsnapSnapshot *snapshot) {
    if (snapshot)
        snapshot->backend->free(snapshot);
}

void vmsnap_snapshot_break(VmsnapSnapshot *snapshot, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *reason = g_strdup_vprintf(format, arguments);
    va_end(arguments);

    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&snapshot->lock);
    if (snapshot->break_reason)
        return;
    snapshot->break_reason = g_steal_pointer(&reason);
    g_atomic_int_set(&snapshot->broken, TRUE);
}

gboolean vmsnap_snapshot_is_broken(const VmsnapSnapshot *snapshot) {
    return g_atomic_int_get(&snapshot->broken);
}

char *vmsnap_snapshot_dup_break_reason(VmsnapSnapshot *snapshot) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&snapshot->lock);
    return g_strdup(snapshot->break_reason);
}

static gboolean crosses_boundary(const VmsnapDisk *disk, uint64_t offset, uint64_t length) {
    uint64_t boundary_bytes = disk->boundary_bytes;
    return boundary_bytes > 0 && offset / boundary_bytes != (offset + length - 1) / boundary_bytes;
}

static void disk_check_range(const VmsnapDisk *disk, uint64_t offset, uint64_t length) {
    g_assert(length > 0 && length <= disk->size_bytes && offset <= disk->size_bytes - length);
}

void vmsnap_disk_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                      gpointer user_data) {
    disk_check_range(disk, offset, length);
    g_assert(!crosses_boundary(disk, offset, length));
    if (vmsnap_snapshot_is_broken(disk->snapshot))
        done(-EIO, user_data);
    else
        disk->snapshot->backend->read(disk, buffer, length, offset, done, user_data);
}

void vmsnap_disk_extents(VmsnapDisk *disk, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                         VmsnapExtentsFunc done, gpointer user_data) {
    disk_check_range(disk, offset, length);
    g_assert(question == VMSNAP_EXTENTS_OF_CONTENT || disk->since);
    g_assert(length <= MAX_EXTENTS_LENGTH_BYTES);
    if (vmsnap_snapshot_is_broken(disk->snapshot))
        done(-EIO, NULL, 0, user_data);
    else
        disk->snapshot->backend->extents(disk, question, offset, length, done, user_data);
}

void vmsnap_disk_release(VmsnapDisk *disk, uint64_t offset, uint64_t length, VmsnapDoneFunc done, gpointer user_data) {
    disk_check_range(disk, offset, length);
    g_assert(disk->can_release);
    g_assert(offset % VMSNAP_RELEASE_UNIT_BYTES == 0 && length % VMSNAP_RELEASE_UNIT_BYTES == 0);
    g_assert(length <= MAX_RELEASE_LENGTH_BYTES);
    g_assert(offset + length <= (disk->size_bytes - 1) / VMSNAP_RELEASE_UNIT_BYTES * VMSNAP_RELEASE_UNIT_BYTES);
    if (vmsnap_snapshot_is_broken(disk->snapshot))
        done(-EIO, user_data);
    else
        disk->snapshot->backend->release(disk, offset, length, done, user_data);
}

gboolean vmsnap_disk_get_scratch(VmsnapDisk *disk, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes) {
    const VmsnapBackend *backend = disk->snapshot->backend;
    return backend->scratch && backend->scratch(disk, ret_used_bytes, ret_left_bytes);
}

static void disk_free(gpointer data) {
    VmsnapDisk *disk = data;
    g_free(disk->name);
    g_free(disk->source);
    g_free(disk->since);
    g_free(disk->full_reason);
    g_free(disk);
}

static void file_free(gpointer data) {
    VmsnapConfigFile *file = data;
    g_free(file->name);
    g_bytes_unref(file->content);
    g_free(file);
}

static void left_out_free(gpointer data) {
    VmsnapLeftOut *left_out = data;
    g_free(left_out->name);
    g_free(left_out->reason);
    g_free(left_out);
}

static void version_free(gpointer data) {
    VmsnapVersion *version = data;
    g_free(version->program);
    g_free(version->version);
    g_free(version);
}

void vmsnap_snapshot_init(VmsnapSnapshot *snapshot, const VmsnapBackend *backend) {
    snapshot->backend = backend;
    g_mutex_init(&snapshot->lock);
    snapshot->disks = g_ptr_array_new_with_free_func(disk_free);
    snapshot->files = g_ptr_array_new_with_free_func(file_free);
    snapshot->left_out = g_ptr_array_new_with_free_func(left_out_free);
    snapshot->versions = g_ptr_array_new_with_free_func(version_free);
}

void vmsnap_snapshot_clear(VmsnapSnapshot *snapshot) {
    g_clear_pointer(&snapshot->disks, g_ptr_array_unref);
    g_clear_pointer(&snapshot->files, g_ptr_array_unref);
    g_clear_pointer(&snapshot->left_out, g_ptr_array_unref);
    g_clear_pointer(&snapshot->versions, g_ptr_array_unref);
    g_clear_pointer(&snapshot->uuid, g_free);
    g_clear_pointer(&snapshot->machine, g_free);
    g_clear_pointer(&snapshot->machine_uuid, g_free);
    g_clear_pointer(&snapshot->quiesce_error, g_free);
    g_clear_pointer(&snapshot->checkpoint, g_free);
    g_clear_pointer(&snapshot->since, g_free);
    g_clear_pointer(&snapshot->break_reason, g_free);
    g_mutex_clear(&snapshot->lock);
}

void vmsnap_snapshot_add_file(VmsnapSnapshot *snapshot, const char *name, GBytes *content, VmsnapFileKind kind) {
    VmsnapConfigFile *file = g_new0(VmsnapConfigFile, 1);
    file->name = g_strdup(name);
    file->content = content;
    file->kind = kind;
    g_ptr_array_add(snapshot->files, file);
}

const VmsnapConfigFile *vmsnap_snapshot_find_file(const VmsnapSnapshot *snapshot, const char *name) {
    for (guint i = 0; i < snapshot->files->len; i++) {
        const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, i);
        if (g_str_equal(file->name, name))
            return file;
    }
    return NULL;
}

void vmsnap_snapshot_add_left_out(VmsnapSnapshot *snapshot, const char *name, const char *reason) {
    VmsnapLeftOut *left_out = g_new0(VmsnapLeftOut, 1);
    left_out->name = g_strdup(name);
    left_out->reason = g_strdup(reason);
    g_ptr_array_add(snapshot->left_out, left_out);
}

void vmsnap_snapshot_add_version(VmsnapSnapshot *snapshot, const char *program, char *version) {
    VmsnapVersion *entry = g_new0(VmsnapVersion, 1);
    entry->program = g_strdup(program);
    entry->version = version;
    g_ptr_array_add(snapshot->versions, entry);
}
