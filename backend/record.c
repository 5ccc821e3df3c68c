/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Owner records as JSON files, UUID.json in the runtime directory. include/vmsnap/record.h says what they promise. */
#include "vmsnap/record.h"

#include "dirs.h"
#include "json_text.h"
#include "vmsnap/backend.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <json-glib/json-glib.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX ".json"
/* Of a file that nobody may read yet. */
#define UNFINISHED_SUFFIX ".json.new"
#define LOCK_TRIES 5
#define LOCK_PAUSE_US 2000
/* Far more than any record: what is larger is not one. */
#define MAX_RECORD_BYTES ((size_t)1 << 20)

/* The string fields, by their name in the file. */
static const struct {
    const char *name;
    size_t offset;
} fields[] = {
    {"uuid", offsetof(VmsnapRecord, uuid)},
    {"backend", offsetof(VmsnapRecord, backend)},
    {"machine", offsetof(VmsnapRecord, machine)},
    {"machine-uuid", offsetof(VmsnapRecord, machine_uuid)},
    {"source", offsetof(VmsnapRecord, source)},
    {"connect", offsetof(VmsnapRecord, connect_uri)},
    {"agent", offsetof(VmsnapRecord, agent)},
    {"graph", offsetof(VmsnapRecord, graph)},
    {"mount-point", offsetof(VmsnapRecord, mount_point)},
    {"socket", offsetof(VmsnapRecord, socket)},
    {"runtime-dir", offsetof(VmsnapRecord, runtime_dir)},
    {"scratch-dir", offsetof(VmsnapRecord, scratch_dir)},
    {"checkpoint", offsetof(VmsnapRecord, checkpoint)},
    {"commit", offsetof(VmsnapRecord, commit)},
    {"outcome", offsetof(VmsnapRecord, outcome)},
    {"reason", offsetof(VmsnapRecord, reason)},
};

static char **field_of(const VmsnapRecord *record, size_t i) {
    return (char **)((char *)record + fields[i].offset);
}

VmsnapRecord *vmsnap_record_new(void) {
    return g_new0(VmsnapRecord, 1);
}

void vmsnap_record_free(VmsnapRecord *record) {
    if (!record)
        return;
    for (size_t i = 0; i < G_N_ELEMENTS(fields); i++)
        g_free(*field_of(record, i));
    g_free(record);
}

/* A path is bytes, and JSON is UTF-8: what is not becomes %XX, and with it the percent sign itself. */
static char *bytes_to_text(const char *bytes) {
    return g_uri_escape_string(bytes, " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~\t\n\r", TRUE);
}

static char *record_to_text(const VmsnapRecord *record) {
    g_autoptr(JsonBuilder) json = json_builder_new();
    json_builder_begin_object(json);
    for (size_t i = 0; i < G_N_ELEMENTS(fields); i++) {
        if (!*field_of(record, i))
            continue;
        g_autofree char *value = bytes_to_text(*field_of(record, i));
        json_builder_set_member_name(json, fields[i].name);
        json_builder_add_string_value(json, value);
    }
    json_builder_set_member_name(json, "pid");
    json_builder_add_int_value(json, record->pid);
    json_builder_set_member_name(json, "timeout-ms");
    json_builder_add_int_value(json, record->timeout_ms);
    json_builder_set_member_name(json, "job");
    json_builder_add_boolean_value(json, record->job);
    json_builder_set_member_name(json, "frozen");
    json_builder_add_boolean_value(json, record->frozen);
    json_builder_set_member_name(json, "resume");
    json_builder_add_boolean_value(json, record->resume);
    json_builder_end_object(json);
    g_autoptr(JsonNode) root = json_builder_get_root(json);
    return json_to_string(root, TRUE);
}

static char *dup_string_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_STRING);
    return node ? g_uri_unescape_string(json_node_get_string(node), NULL) : NULL;
}

static gint64 int_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_INT64);
    return node ? json_node_get_int(node) : 0;
}

static gboolean boolean_member(JsonObject *object, const char *name) {
    JsonNode *node = vmsnap_json_find(object, name, G_TYPE_BOOLEAN);
    return node && json_node_get_boolean(node);
}

static VmsnapRecord *record_from_text(const char *text, GError **error) {
    g_autoptr(JsonNode) root = vmsnap_json_parse(text, error);
    if (!root) {
        g_prefix_error(error, "failed to read a snapshot record: ");
        return NULL;
    }
    JsonObject *object = json_node_get_object(root);
    VmsnapRecord *record = vmsnap_record_new();
    for (size_t i = 0; i < G_N_ELEMENTS(fields); i++)
        *field_of(record, i) = dup_string_member(object, fields[i].name);
    record->pid = (pid_t)int_member(object, "pid");
    record->timeout_ms = (int)int_member(object, "timeout-ms");
    record->job = boolean_member(object, "job");
    record->frozen = boolean_member(object, "frozen");
    record->resume = boolean_member(object, "resume");
    return record;
}

VmsnapRecord *vmsnap_record_read(int fd, GError **error) {
    g_autofree char *text = g_malloc0(MAX_RECORD_BYTES + 1);
    ssize_t length = pread(fd, text, MAX_RECORD_BYTES, 0);
    if (length < 0) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM, "failed to read a snapshot record: %s",
                    g_strerror(errno));
        return NULL;
    }
    return record_from_text(text, error);
}

/* In one call, which no signal cuts in two; a shorter text is filled up with blanks, so that there is never a rest. */
static gboolean record_store(int fd, const VmsnapRecord *record) {
    g_autofree char *json = record_to_text(record);
    struct stat status;
    if (strlen(json) > MAX_RECORD_BYTES || fstat(fd, &status) != 0)
        return FALSE;
    g_autofree char *text = g_strdup_printf("%-*s", (int)MIN(status.st_size, (off_t)MAX_RECORD_BYTES), json);
    size_t length = strlen(text);
    return pwrite(fd, text, length, 0) == (ssize_t)length;
}

static char *record_path(const char *uuid, const char *suffix) {
    g_autofree char *runtime = vmsnap_dirs_get_runtime();
    g_autofree char *name = g_strconcat(uuid, suffix, NULL);
    return g_build_filename(runtime, name, NULL);
}

static gboolean set_write_error(const char *path, GError **error) {
    int code = errno;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to write the snapshot record '%s': %s", path,
                g_strerror(code));
    return FALSE;
}

/* Its lock makes one step of looking for records and changing them. Returns: what to close, or -1. */
static int directory_lock(void) {
    g_autofree char *runtime = vmsnap_dirs_get_runtime();
    int fd = open(runtime, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX) == 0)
        return fd;
    if (fd >= 0)
        (void)close(fd);
    return -1;
}

int vmsnap_record_open(const char *uuid, GError **error) {
    g_autofree char *path = record_path(uuid, UNFINISHED_SUFFIX);
    g_autofree char *runtime = g_path_get_dirname(path);
    if (!vmsnap_dirs_make_base(runtime, error))
        return -1;
    int directory_fd = directory_lock();
    int fd = directory_fd >= 0 ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
    gboolean locked = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (!locked) {
        g_autofree char *final_path = record_path(uuid, SUFFIX);
        set_write_error(final_path, error);
    }
    if (!locked && fd >= 0) {
        (void)unlink(path);
        (void)close(g_steal_fd(&fd));
    }
    if (directory_fd >= 0)
        (void)close(directory_fd);
    return fd;
}

/* The file gets its name only when it is complete, so that nobody ever sees half a record. */
gboolean vmsnap_record_publish(int fd, const VmsnapRecord *record, GError **error) {
    g_autofree char *path = record_path(record->uuid, SUFFIX);
    g_autofree char *unfinished = record_path(record->uuid, UNFINISHED_SUFFIX);
    int directory_fd = directory_lock();
    if (directory_fd < 0)
        return set_write_error(path, error);
    gboolean published = vmsnap_record_machine_is_free("mount", record->machine, record->machine_uuid, error) &&
                         ((record_store(fd, record) && rename(unfinished, path) == 0) || set_write_error(path, error));
    (void)close(directory_fd);
    return published;
}

gboolean vmsnap_record_update(int fd, const VmsnapRecord *record) {
    if (record_store(fd, record))
        return TRUE;
    g_warning("failed to note the state of snapshot %s: %s", record->uuid, g_strerror(errno));
    return FALSE;
}

void vmsnap_record_remove(const char *uuid) {
    g_autofree char *path = record_path(uuid, SUFFIX);
    g_autofree char *unfinished = record_path(uuid, UNFINISHED_SUFFIX);
    (void)unlink(path);
    (void)unlink(unfinished);
}

/* In this order, since publishing gives the one name for the other. */
gboolean vmsnap_record_is_known(const char *uuid) {
    g_autofree char *unfinished = record_path(uuid, UNFINISHED_SUFFIX);
    g_autofree char *path = record_path(uuid, SUFFIX);
    return access(unfinished, F_OK) == 0 || access(path, F_OK) == 0;
}

gboolean vmsnap_record_is_published(int fd) {
    struct stat status;
    return fstat(fd, &status) != 0 || status.st_size > 0;
}

gboolean vmsnap_record_exists(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && status.st_nlink > 0;
}

/* One that was never published belongs to nobody who has begun anything. Called with the directory locked. */
static void unfinished_remove(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return;
    if (!vmsnap_record_is_held(fd))
        (void)unlink(path);
    (void)close(fd);
}

/* Returns: (transfer full): the paths of all published records. */
static GPtrArray *records_list(void) {
    GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *runtime = vmsnap_dirs_get_runtime();
    int directory_fd = directory_lock();
    g_autoptr(GDir) directory = directory_fd >= 0 ? g_dir_open(runtime, 0, NULL) : NULL;
    const char *name;
    while (directory && (name = g_dir_read_name(directory))) {
        g_autofree char *path = g_build_filename(runtime, name, NULL);
        if (g_str_has_suffix(name, SUFFIX))
            g_ptr_array_add(paths, g_steal_pointer(&path));
        else if (g_str_has_suffix(name, UNFINISHED_SUFFIX))
            unfinished_remove(path);
    }
    if (directory_fd >= 0)
        (void)close(directory_fd);
    return paths;
}

typedef gboolean (*RecordMatchFunc)(const VmsnapRecord *record, int fd, const char *value);

static VmsnapRecord *record_load(const char *path, int *ret_fd) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    VmsnapRecord *record = fd >= 0 ? vmsnap_record_read(fd, NULL) : NULL;
    if (!record && fd >= 0)
        (void)close(fd);
    if (record)
        *ret_fd = fd;
    return record;
}

static VmsnapRecord *record_find(RecordMatchFunc matches, const char *value, int *ret_fd) {
    g_autofree char *runtime = vmsnap_dirs_get_runtime();
    g_autoptr(GDir) directory = g_dir_open(runtime, 0, NULL);
    const char *name;
    while (directory && (name = g_dir_read_name(directory))) {
        if (!g_str_has_suffix(name, SUFFIX))
            continue;
        g_autofree char *path = g_build_filename(runtime, name, NULL);
        int fd = -1;
        g_autoptr(VmsnapRecord) record = record_load(path, &fd);
        if (record && matches(record, fd, value)) {
            *ret_fd = fd;
            return g_steal_pointer(&record);
        }
        if (fd >= 0)
            (void)close(fd);
    }
    return NULL;
}

gboolean vmsnap_record_is_held(int fd) {
    if (flock(fd, LOCK_SH | LOCK_NB) != 0)
        return TRUE;
    (void)flock(fd, LOCK_UN);
    return FALSE;
}

static gboolean matches_mount_point(const VmsnapRecord *record, int fd, const char *mount_point) {
    (void)fd;
    return g_strcmp0(record->mount_point, mount_point) == 0;
}

static gboolean matches_living_mount_point(const VmsnapRecord *record, int fd, const char *mount_point) {
    return matches_mount_point(record, fd, mount_point) && vmsnap_record_is_held(fd);
}

static gboolean matches_uuid(const VmsnapRecord *record, int fd, const char *uuid) {
    (void)fd;
    return g_strcmp0(record->uuid, uuid) == 0;
}

static gboolean matches_socket(const VmsnapRecord *record, int fd, const char *socket) {
    (void)fd;
    return g_strcmp0(record->socket, socket) == 0;
}

static gboolean is_of_machine(const VmsnapRecord *record, const char *machine) {
    return g_strcmp0(record->machine, machine) == 0 || g_strcmp0(record->machine_uuid, machine) == 0 ||
           g_strcmp0(record->source, machine) == 0;
}

/* Who only waits for an agent to thaw is in nobody's way. */
static gboolean matches_living_machine(const VmsnapRecord *record, int fd, const char *machine) {
    return is_of_machine(record, machine) && (!record->outcome || record->job || record->checkpoint) &&
           vmsnap_record_is_held(fd);
}

gboolean vmsnap_record_machine_is_free(const char *verb, const char *machine, const char *machine_uuid,
                                       GError **error) {
    int fd = -1;
    g_autoptr(VmsnapRecord) other = machine_uuid ? record_find(matches_living_machine, machine_uuid, &fd) : NULL;
    if (!other)
        return TRUE;
    (void)close(fd);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to %s %s '%s': it is mounted on '%s' already, or just being mounted or unmounted there "
                "(process %d); unmount that first, or try again",
                verb, vmsnap_backend_get_words(other->backend)->noun, machine, other->mount_point, (int)other->pid);
    return FALSE;
}

VmsnapRecord *vmsnap_record_find_by_mount_point(const char *mount_point, const char *uuid, int *ret_fd) {
    *ret_fd = -1;
    if (uuid)
        return record_find(matches_uuid, uuid, ret_fd);
    VmsnapRecord *living = record_find(matches_living_mount_point, mount_point, ret_fd);
    return living ? living : record_find(matches_mount_point, mount_point, ret_fd);
}

guint vmsnap_record_count_by_mount_point(const char *mount_point) {
    guint count = 0;
    g_autoptr(GPtrArray) paths = records_list();
    for (guint i = 0; i < paths->len; i++) {
        int fd = -1;
        g_autoptr(VmsnapRecord) record = record_load(g_ptr_array_index(paths, i), &fd);
        if (record && matches_living_mount_point(record, fd, mount_point))
            count++;
        if (fd >= 0)
            (void)close(fd);
    }
    return count;
}

VmsnapRecord *vmsnap_record_find_by_socket(const char *socket, gboolean *ret_alive) {
    int fd = -1;
    VmsnapRecord *record = record_find(matches_socket, socket, &fd);
    *ret_alive = record && vmsnap_record_is_held(fd);
    if (fd >= 0)
        (void)close(fd);
    return record;
}

typedef struct {
    const char *machine;
    const char *mount_point;
} DeadFilter;

static gboolean dead_filter_matches(const DeadFilter *filter, const VmsnapRecord *record) {
    if (!filter->machine && !filter->mount_point)
        return TRUE;
    return (filter->machine && is_of_machine(record, filter->machine)) ||
           (filter->mount_point && g_strcmp0(record->mount_point, filter->mount_point) == 0);
}

/* Somebody may just be asking whether it is held, which he does with a lock. */
static gboolean record_lock(int fd) {
    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return vmsnap_record_exists(fd);
        g_usleep(LOCK_PAUSE_US);
    }
    return FALSE;
}

/*
 * Who only looks at a record must not lock it, or hide it from others who want it.
 * Returns: what holds the record at @path, or -1 if somebody else does, or it is not one of those, or gone.
 */
static int record_take_dead(const char *path, const DeadFilter *filter, VmsnapRecord **ret_record) {
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    g_autoptr(VmsnapRecord) record = fd >= 0 ? vmsnap_record_read(fd, NULL) : NULL;
    if (record && record->uuid && dead_filter_matches(filter, record) && record_lock(fd)) {
        *ret_record = g_steal_pointer(&record);
        return fd;
    }
    if (fd >= 0)
        (void)close(fd);
    return -1;
}

gboolean vmsnap_record_visit_dead(const char *machine, const char *mount_point, VmsnapRecordFunc visit,
                                  gpointer user_data, GError **error) {
    const DeadFilter filter = {.machine = machine, .mount_point = mount_point};
    g_autoptr(GError) first_error = NULL;
    g_autoptr(GPtrArray) paths = records_list();
    for (guint i = 0; i < paths->len; i++) {
        g_autoptr(VmsnapRecord) record = NULL;
        int fd = record_take_dead(g_ptr_array_index(paths, i), &filter, &record);
        if (fd < 0)
            continue;
        (void)visit(fd, record, user_data, first_error ? NULL : &first_error);
        (void)close(fd);
    }
    gboolean visited = !first_error;
    if (first_error)
        g_propagate_error(error, g_steal_pointer(&first_error));
    return visited;
}
