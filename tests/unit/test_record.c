/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Owner records: who holds one, who finds it, and what becomes of it when its holders are gone. */
#include "vmsnap/record.h"

#include "ordinary_user.h"
#include "vmsnap/error.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define UUID_A "aaaaaaaa-0000-4000-8000-000000000000"
#define UUID_B "bbbbbbbb-0000-4000-8000-000000000000"
#define MACHINE "6f1c2d3e-0000-4000-8000-00000000000a"

static char *runtime_dir; /* what is XDG_RUNTIME_DIR; immutable after main() has begun */

static char *path_of(const char *name) {
    return g_build_filename(runtime_dir, "vmsnap", name, NULL);
}

static void remove_records(void) {
    g_autofree char *path = path_of("");
    remove_tree(path);
}

static VmsnapRecord *record_of(const char *uuid, const char *mount_point) {
    VmsnapRecord *record = vmsnap_record_new();
    record->uuid = g_strdup(uuid);
    record->mount_point = g_strdup(mount_point);
    record->socket = g_strdup_printf("/run/%s/nbd.sock", uuid);
    record->pid = getpid();
    return record;
}

static int record_try_write(const VmsnapRecord *record, GError **error) {
    int fd = vmsnap_record_open(record->uuid, error);
    if (fd < 0 || vmsnap_record_publish(fd, record, error))
        return fd;
    vmsnap_record_remove(record->uuid);
    (void)close(fd);
    return -1;
}

static void record_end(int fd, const VmsnapRecord *record, gboolean keep) {
    vmsnap_record_update(fd, record);
    if (!keep)
        vmsnap_record_remove(record->uuid);
    (void)close(fd);
}

static int record_write(const VmsnapRecord *record) {
    g_autoptr(GError) error = NULL;
    int fd = record_try_write(record, &error);
    g_assert_no_error(error);
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static gboolean is_found(const char *mount_point) {
    int fd = -1;
    g_autoptr(VmsnapRecord) record = vmsnap_record_find_by_mount_point(mount_point, NULL, &fd);
    g_assert_cmpint(record != NULL, ==, fd >= 0);
    gboolean alive = fd >= 0 && vmsnap_record_is_held(fd);
    if (fd >= 0)
        (void)close(fd);
    return alive;
}

static guint count_files(void) {
    g_autofree char *path = path_of("");
    g_autoptr(GDir) directory = g_dir_open(path, 0, NULL);
    guint count = 0;
    while (directory && g_dir_read_name(directory))
        count++;
    return count;
}

/* A holder that writes its record and then dies without another word. */
static void leave_a_dead_record(const char *uuid, const char *mount_point) {
    pid_t pid = fork();
    if (pid == 0) {
        VmsnapRecord *record = record_of(uuid, mount_point);
        record->machine_uuid = g_strdup(MACHINE);
        _exit(record_try_write(record, NULL) >= 0 ? 0 : 1);
    }
    int status;
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
}

static void check_equal(const VmsnapRecord *one, const VmsnapRecord *other) {
    g_assert_cmpstr(one->uuid, ==, other->uuid);
    g_assert_cmpstr(one->machine, ==, other->machine);
    g_assert_cmpstr(one->machine_uuid, ==, other->machine_uuid);
    g_assert_cmpstr(one->connect_uri, ==, other->connect_uri);
    g_assert_cmpstr(one->mount_point, ==, other->mount_point);
    g_assert_cmpstr(one->socket, ==, other->socket);
    g_assert_cmpstr(one->runtime_dir, ==, other->runtime_dir);
    g_assert_cmpstr(one->scratch_dir, ==, other->scratch_dir);
    g_assert_cmpstr(one->outcome, ==, other->outcome);
    g_assert_cmpstr(one->reason, ==, other->reason);
    g_assert_cmpint(one->pid, ==, other->pid);
    g_assert_cmpint(one->timeout_ms, ==, other->timeout_ms);
    g_assert_cmpstr(one->backend, ==, other->backend);
    g_assert_cmpint(one->job, ==, other->job);
    g_assert_cmpint(one->frozen, ==, other->frozen);
    g_assert_cmpint(one->resume, ==, other->resume);
    g_assert_cmpstr(one->checkpoint, ==, other->checkpoint);
    g_assert_cmpstr(one->commit, ==, other->commit);
}

static gboolean last_found_is_alive;

static VmsnapRecord *find_by_socket(const char *socket) {
    return vmsnap_record_find_by_socket(socket, &last_found_is_alive);
}

static VmsnapRecord *full_record(void) {
    VmsnapRecord *record = record_of(UUID_A, "/mnt/a \"b\"\\\n\tü€%41%");
    record->machine = g_strdup("vm \"1\"");
    record->machine_uuid = g_strdup(MACHINE);
    record->connect_uri = g_strdup("qemu:///system");
    record->timeout_ms = 12345;
    record->runtime_dir = g_strdup("/run/vmsnap/a");
    record->scratch_dir = g_strdup("/var/lib/vmsnap/a");
    return record;
}

static void test_what_is_written_is_found(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_write(record), found_fd = -1;
    g_autoptr(VmsnapRecord) by_mount = vmsnap_record_find_by_mount_point(record->mount_point, NULL, &found_fd);
    g_autoptr(VmsnapRecord) by_socket = find_by_socket(record->socket);
    g_assert_nonnull(by_mount);
    g_assert_nonnull(by_socket);
    g_assert_true(last_found_is_alive);
    check_equal(by_mount, record);
    check_equal(by_socket, record);
    (void)close(found_fd);
    record_end(fd, record, FALSE);
    remove_records();
}

static void test_nothing_else_is_found(void) {
    int fd = -1;
    g_assert_null(vmsnap_record_find_by_mount_point("/mnt", NULL, &fd));
    g_assert_cmpint(fd, ==, -1);
    g_assert_null(find_by_socket("/run/nbd.sock"));
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt/a");
    int held_fd = record_write(record);
    g_assert_false(is_found("/mnt"));
    g_assert_false(is_found("/mnt/a/"));
    g_assert_false(is_found(""));
    g_assert_null(find_by_socket("/run/nbd.sock"));
    record_end(held_fd, record, FALSE);
    remove_records();
}

static void test_each_of_several_is_found(void) {
    g_autoptr(VmsnapRecord) a = record_of(UUID_A, "/mnt/a"), b = record_of(UUID_B, "/mnt/b");
    int fd_a = record_write(a), fd_b = record_write(b), found_fd = -1;
    g_autoptr(VmsnapRecord) found = vmsnap_record_find_by_mount_point("/mnt/b", NULL, &found_fd);
    g_assert_cmpstr(found->uuid, ==, UUID_B);
    (void)close(found_fd);
    record_end(fd_b, b, FALSE);
    g_assert_true(is_found("/mnt/a"));
    g_assert_false(is_found("/mnt/b"));
    record_end(fd_a, a, FALSE);
    remove_records();
}

static void test_records_are_for_their_owner_alone(void) {
    static const mode_t masks[] = {0, 022, 077};
    for (size_t i = 0; i < G_N_ELEMENTS(masks); i++) {
        g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
        mode_t before = umask(masks[i]);
        int fd = record_write(record);
        (void)umask(before);
        g_autofree char *directory = path_of(""), *file = path_of(UUID_A ".json");
        struct stat status;
        g_assert_cmpint(stat(directory, &status), ==, 0);
        g_assert_cmpuint(status.st_mode & 07777, ==, 0711);
        g_assert_cmpint(stat(file, &status), ==, 0);
        g_assert_cmpuint(status.st_mode & 07777, ==, 0600);
        g_assert_cmpuint(count_files(), ==, 1);
        g_assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        record_end(fd, record, FALSE);
        remove_records();
    }
}

static void test_an_ended_record_is_gone(void) {
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    record_end(record_write(record), record, FALSE);
    g_assert_false(is_found("/mnt"));
    g_assert_null(find_by_socket(record->socket));
    g_assert_cmpuint(count_files(), ==, 0);
    remove_records();
}

static void test_a_record_that_is_kept_tells_its_outcome(void) {
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    int fd = record_write(record);
    record->outcome = g_strdup("broken");
    record->reason = g_strdup("the job could not be ended");
    record_end(fd, record, TRUE);
    g_assert_false(is_found("/mnt"));
    g_autoptr(VmsnapRecord) found = find_by_socket(record->socket);
    g_assert_nonnull(found);
    check_equal(found, record);
    remove_records();
}

typedef struct {
    int fd;
    int waiting; /* atomic */
} Waiter;

static gpointer wait_for_end(gpointer data) {
    Waiter *waiter = data;
    g_autoptr(GError) error = NULL;
    while (vmsnap_record_is_held(waiter->fd))
        g_usleep(1000);
    VmsnapRecord *record = vmsnap_record_read(waiter->fd, &error);
    g_assert_no_error(error);
    g_atomic_int_set(&waiter->waiting, FALSE);
    return record;
}

static void test_who_waits_learns_the_outcome(void) {
    static const char *const outcomes[] = {"complete", "aborted", "broken"};
    for (size_t i = 0; i < G_N_ELEMENTS(outcomes); i++) {
        g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
        int fd = record_write(record);
        Waiter waiter = {.waiting = TRUE};
        vmsnap_record_free(vmsnap_record_find_by_mount_point("/mnt", NULL, &waiter.fd));
        GThread *thread = g_thread_new("waiter", wait_for_end, &waiter);
        g_usleep(20000);
        g_assert_true(g_atomic_int_get(&waiter.waiting));
        record->outcome = g_strdup(outcomes[i]);
        record->reason = i == 2 ? g_strdup("the guest was stopped") : NULL;
        record_end(fd, record, FALSE);
        g_autoptr(VmsnapRecord) seen = g_thread_join(thread);
        check_equal(seen, record);
        (void)close(waiter.fd);
    }
    remove_records();
}

static void test_several_may_wait(void) {
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    int fd = record_write(record);
    Waiter waiters[4];
    GThread *threads[4];
    for (size_t i = 0; i < G_N_ELEMENTS(waiters); i++) {
        waiters[i].waiting = TRUE;
        vmsnap_record_free(vmsnap_record_find_by_mount_point("/mnt", NULL, &waiters[i].fd));
        threads[i] = g_thread_new("waiter", wait_for_end, &waiters[i]);
    }
    record->outcome = g_strdup("complete");
    record_end(fd, record, FALSE);
    for (size_t i = 0; i < G_N_ELEMENTS(waiters); i++) {
        g_autoptr(VmsnapRecord) seen = g_thread_join(threads[i]);
        g_assert_cmpstr(seen->outcome, ==, "complete");
        (void)close(waiters[i].fd);
    }
    remove_records();
}

/* Who holds the record is killed while somebody waits. */
static void test_a_holder_that_dies_has_no_outcome(void) {
    int ready[2];
    g_assert_cmpint(pipe2(ready, O_CLOEXEC), ==, 0);
    pid_t pid = fork();
    if (pid == 0) {
        VmsnapRecord *record = record_of(UUID_A, "/mnt");
        if (record_try_write(record, NULL) >= 0 && write(ready[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    char byte;
    g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
    Waiter waiter = {.waiting = TRUE};
    g_autoptr(VmsnapRecord) found = vmsnap_record_find_by_mount_point("/mnt", NULL, &waiter.fd);
    g_assert_nonnull(found);
    g_assert_cmpint(found->pid, ==, pid);
    GThread *thread = g_thread_new("waiter", wait_for_end, &waiter);
    g_assert_cmpint(kill(pid, SIGKILL), ==, 0);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    g_autoptr(VmsnapRecord) seen = g_thread_join(thread);
    g_assert_cmpstr(seen->uuid, ==, UUID_A);
    g_assert_null(seen->outcome);
    (void)close(waiter.fd);
    (void)close(ready[0]);
    (void)close(ready[1]);
    remove_records();
}

static void test_a_dead_holder_is_found_by_its_socket_alone(void) {
    leave_a_dead_record(UUID_A, "/mnt");
    g_assert_false(is_found("/mnt"));
    g_autoptr(VmsnapRecord) found = find_by_socket("/run/" UUID_A "/nbd.sock");
    g_assert_nonnull(found);
    g_assert_false(last_found_is_alive);
    g_assert_cmpstr(found->mount_point, ==, "/mnt");
    remove_records();
}

static void test_the_living_one_is_found_beside_dead_ones(void) {
    leave_a_dead_record("00000000-0000-4000-8000-000000000000", "/mnt");
    leave_a_dead_record("ffffffff-0000-4000-8000-000000000000", "/mnt");
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    int fd = record_write(record), found_fd = -1;
    g_autoptr(VmsnapRecord) found = vmsnap_record_find_by_mount_point("/mnt", NULL, &found_fd);
    g_assert_cmpstr(found->uuid, ==, UUID_A);
    (void)close(found_fd);
    record_end(fd, record, FALSE);
    remove_records();
}

static void test_a_machine_has_one_living_record(void) {
    g_autoptr(VmsnapRecord) first = full_record(), second = record_of(UUID_B, "/mnt/b");
    g_autoptr(GError) error = NULL;
    second->machine = g_strdup("vm1");
    second->machine_uuid = g_strdup(MACHINE);
    int fd = record_write(first);
    g_assert_cmpint(record_try_write(second, &error), ==, -1);
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "'vm1'"));
    g_assert_nonnull(strstr(error->message, first->mount_point));
    g_assert_cmpuint(count_files(), ==, 1);
    record_end(fd, first, FALSE);
    record_end(record_write(second), second, FALSE);
    remove_records();
}

static void test_a_dead_record_keeps_no_machine_busy(void) {
    leave_a_dead_record(UUID_A, "/mnt/a");
    g_autoptr(VmsnapRecord) record = record_of(UUID_B, "/mnt/b");
    record->machine_uuid = g_strdup(MACHINE);
    record_end(record_write(record), record, FALSE);
    remove_records();
}

#define N_BEGINNERS 6

typedef struct {
    pthread_barrier_t start;
    int n_winners; /* atomic */
} Race;

static gpointer try_to_write(gpointer data) {
    Race *race = data;
    g_autofree char *uuid = g_uuid_string_random();
    g_autoptr(VmsnapRecord) record = record_of(uuid, "/mnt");
    record->machine_uuid = g_strdup(MACHINE);
    record->machine = g_strdup("vm1");
    (void)pthread_barrier_wait(&race->start);
    int fd = record_try_write(record, NULL);
    if (fd >= 0)
        g_atomic_int_inc(&race->n_winners);
    return GINT_TO_POINTER(fd);
}

static void test_of_many_who_begin_at_once_one_comes_further(void) {
    for (int run = 0; run < 30; run++) {
        Race race = {.n_winners = 0};
        GThread *threads[N_BEGINNERS];
        int fds[N_BEGINNERS];
        g_assert_cmpint(pthread_barrier_init(&race.start, NULL, N_BEGINNERS), ==, 0);
        for (int i = 0; i < N_BEGINNERS; i++)
            threads[i] = g_thread_new("beginner", try_to_write, &race);
        for (int i = 0; i < N_BEGINNERS; i++)
            fds[i] = GPOINTER_TO_INT(g_thread_join(threads[i]));
        g_assert_cmpint(race.n_winners, ==, 1);
        g_assert_cmpuint(count_files(), ==, 1);
        for (int i = 0; i < N_BEGINNERS; i++)
            if (fds[i] >= 0)
                (void)close(fds[i]);
        (void)pthread_barrier_destroy(&race.start);
        remove_records();
    }
}

static void write_file(const char *name, const char *content, gssize length) {
    g_autofree char *path = path_of(name);
    g_assert_true(g_file_set_contents(path, content, length, NULL));
}

static char *repeat(const char *text, unsigned times) {
    GString *result = g_string_new(NULL);
    for (unsigned i = 0; i < times; i++)
        g_string_append(result, text);
    return g_string_free(result, FALSE);
}

static void test_what_is_no_record_is_passed_over(void) {
    static const char *const contents[] = {
        "",
        " ",
        "garbage",
        "{",
        "{\"uuid\": \"x\", \"mount-point\": \"/mn",
        "{\"uuid\": \"x\", \"mount-point\": \"/mnt\"} and more",
        "[]",
        "null",
        "42",
        "\"/mnt\"",
        "{}",
        "{\"mount-point\": 42, \"socket\": {}, \"pid\": \"x\"}",
        "{\"mount-point\": [\"/mnt\"], \"uuid\": null, \"pid\": [1]}",
        "{\"mount-point\": {\"a\": \"/mnt\"}, \"pid\": 1e400}",
        "{\"mount-point\": \"\xff\xfe\"}",
        "\x7f"
        "ELF",
    };
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    int fd = record_write(record);
    for (size_t i = 0; i < G_N_ELEMENTS(contents); i++) {
        g_autofree char *name = g_strdup_printf("%02zu.json", i);
        write_file(name, contents[i], -1);
    }
    g_autofree char *huge = g_strnfill(5 << 20, ' ');
    memcpy(huge, "{\"mount-point\":\"/huge\"", 22);
    huge[(5 << 20) - 1] = '}';
    write_file("huge.json", huge, 5 << 20);
    g_autofree char *deep = repeat("[", 200000), *deep_objects = repeat("{\"a\":", 40000);
    write_file("deep.json", deep, -1);
    write_file("deep-objects.json", deep_objects, -1);
    write_file("nul.json", "{\0}", 3);

    g_assert_true(is_found("/mnt"));
    g_assert_false(is_found("/huge"));
    g_assert_false(is_found("/elsewhere"));
    g_assert_null(find_by_socket("/elsewhere"));
    record_end(fd, record, FALSE);
    g_assert_false(is_found("/mnt"));
    remove_records();
}

static void test_other_files_are_passed_over(void) {
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    int fd = record_write(record);
    g_autofree char *real = path_of(UUID_A ".json"), *elsewhere = g_build_filename(runtime_dir, "elsewhere", NULL);
    g_autofree char *link = path_of("link.json"), *directory = path_of("directory.json"), *fifo = path_of("fifo.json");
    g_autofree char *locked_away = path_of("locked.json");
    record_end(fd, record, TRUE);
    g_assert_cmpint(rename(real, elsewhere), ==, 0);
    g_assert_cmpint(symlink(elsewhere, link), ==, 0);
    g_assert_cmpint(mkdir(directory, 0700), ==, 0);
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    write_file("locked.json", "{}", 2);
    g_assert_cmpint(chmod(locked_away, 0), ==, 0);
    write_file(UUID_B ".json.new", "{\"socket\": \"/run/" UUID_A "/nbd.sock\"}", -1);
    write_file(UUID_B, "{\"socket\": \"/run/" UUID_A "/nbd.sock\"}", -1);
    g_assert_null(find_by_socket(record->socket));
    (void)unlink(elsewhere);
    remove_records();
}

static void test_a_record_that_cannot_be_written_is_an_error(void) {
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    g_autofree char *directory = path_of("");
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(mkdir(directory, 0500), ==, 0);
    g_assert_cmpint(record_try_write(record, &error), ==, -1);
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, UUID_A));
    g_assert_cmpuint(count_files(), ==, 0);
    remove_records();
}

/* A name of the kernel's is bytes, and what is not UTF-8 is not JSON. */
static void test_a_mount_point_may_be_any_bytes(void) {
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt/\xfc\xff x");
    int fd = record_write(record);
    g_assert_true(is_found("/mnt/\xfc\xff x"));
    g_assert_false(is_found("/mnt/%FC%FF x"));
    g_assert_false(is_found("/mnt/\xfc\xfe x"));
    record_end(fd, record, FALSE);
    remove_records();
}

static void read_text(const char *name, char **ret_text) {
    g_autofree char *path = path_of(name);
    g_autoptr(GError) error = NULL;
    g_assert_true(g_file_get_contents(path, ret_text, NULL, &error));
    g_assert_no_error(error);
}

static gboolean file_is_there(const char *name) {
    g_autofree char *path = path_of(name);
    struct stat status;
    return lstat(path, &status) == 0;
}

/* Whether somebody else could take the record's lock. */
static gboolean is_locked(const char *name) {
    g_autofree char *path = path_of(name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    gboolean locked = vmsnap_record_is_held(fd);
    (void)close(fd);
    return locked;
}

static int record_open(const char *uuid) {
    g_autoptr(GError) error = NULL;
    int fd = vmsnap_record_open(uuid, &error);
    g_assert_no_error(error);
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static void check_published(int fd, const VmsnapRecord *record) {
    g_autoptr(GError) error = NULL;
    gboolean published = vmsnap_record_publish(fd, record, &error);
    g_assert_no_error(error);
    g_assert_true(published);
}

/* A record that nobody holds any more. */
static void leave_record(const char *uuid, const char *machine, const char *machine_uuid, const char *mount_point) {
    g_autoptr(VmsnapRecord) record = record_of(uuid, mount_point);
    record->machine = g_strdup(machine);
    record->machine_uuid = g_strdup(machine_uuid);
    (void)close(record_write(record));
}

/* What a visitor has seen, and what it is to do. */
typedef struct {
    GMutex lock;
    GPtrArray *uuids; /* owned; in the order of the visits; guarded by lock */
    gboolean fail;
    gboolean keep; /* leaves the records where they are */
    const char *remove_other;
    guint pause_us;
} Visitor;

static void visitor_init(Visitor *visitor) {
    *visitor = (Visitor){.uuids = g_ptr_array_new_with_free_func(g_free)};
    g_mutex_init(&visitor->lock);
}

static void visitor_clear(Visitor *visitor) {
    g_ptr_array_unref(visitor->uuids);
    g_mutex_clear(&visitor->lock);
}

static gboolean visit(int fd, VmsnapRecord *record, gpointer user_data, GError **error) {
    Visitor *visitor = user_data;
    g_autofree char *name = g_strconcat(record->uuid, ".json", NULL);
    g_autoptr(VmsnapRecord) read = vmsnap_record_read(fd, NULL);
    g_assert_nonnull(read);
    g_assert_cmpstr(read->uuid, ==, record->uuid);
    g_assert_true(vmsnap_record_exists(fd));
    g_assert_true(is_locked(name));
    g_mutex_lock(&visitor->lock);
    g_ptr_array_add(visitor->uuids, g_strdup(record->uuid));
    g_mutex_unlock(&visitor->lock);
    g_usleep(visitor->pause_us);
    if (visitor->remove_other && !g_str_equal(record->uuid, visitor->remove_other))
        vmsnap_record_remove(visitor->remove_other);
    if (visitor->fail) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to clear '%s'", record->uuid);
        return FALSE;
    }
    if (!visitor->keep)
        vmsnap_record_remove(record->uuid);
    return TRUE;
}

static int compare_strings(gconstpointer a, gconstpointer b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Visits, and returns the UUIDs of those that were, sorted and with a blank between each. */
static char *visited(Visitor *visitor, const char *machine, const char *mount_point) {
    g_autoptr(GError) error = NULL;
    g_ptr_array_set_size(visitor->uuids, 0);
    gboolean all = vmsnap_record_visit_dead(machine, mount_point, visit, visitor, &error);
    g_assert_no_error(error);
    g_assert_true(all);
    g_ptr_array_sort(visitor->uuids, compare_strings);
    g_autoptr(GString) text = g_string_new(NULL);
    for (guint i = 0; i < visitor->uuids->len; i++)
        g_string_append_printf(text, "%s%s", i > 0 ? " " : "", (char *)g_ptr_array_index(visitor->uuids, i));
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void check_visited(Visitor *visitor, const char *machine, const char *mount_point, const char *expected) {
    g_autofree char *uuids = visited(visitor, machine, mount_point);
    g_assert_cmpstr(uuids, ==, expected);
}

static void test_an_opened_record_is_locked_and_nobody_finds_it(void) {
    int fd = record_open(UUID_A);
    struct stat status;
    Visitor visitor;
    visitor_init(&visitor);
    g_assert_cmpuint(count_files(), ==, 1);
    g_assert_true(file_is_there(UUID_A ".json.new"));
    g_assert_true(is_locked(UUID_A ".json.new"));
    g_assert_cmpint(fstat(fd, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 07777, ==, 0600);
    g_assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    g_assert_true(vmsnap_record_exists(fd));
    g_assert_false(is_found(""));
    check_visited(&visitor, NULL, NULL, "");
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", MACHINE, NULL));
    /* Nothing has been written yet. */
    g_assert_null(vmsnap_record_read(fd, NULL));
    vmsnap_record_remove(UUID_A);
    g_assert_cmpuint(count_files(), ==, 0);
    g_assert_false(vmsnap_record_exists(fd));
    (void)close(fd);
    visitor_clear(&visitor);
    remove_records();
}

static void test_an_opened_record_cannot_be_opened_again(void) {
    g_autoptr(GError) error = NULL;
    int fd = record_open(UUID_A);
    g_assert_cmpint(vmsnap_record_open(UUID_A, &error), ==, -1);
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, UUID_A ".json'"));
    /* The first is none the worse for it. */
    g_assert_true(vmsnap_record_exists(fd));
    g_assert_true(is_locked(UUID_A ".json.new"));
    vmsnap_record_remove(UUID_A);
    (void)close(fd);
    remove_records();
}

static void test_nothing_is_followed_where_a_record_is_opened(void) {
    g_autofree char *directory = path_of(""), *link = path_of(UUID_A ".json.new");
    g_autofree char *elsewhere = g_build_filename(runtime_dir, "elsewhere", NULL);
    g_assert_cmpint(mkdir(directory, 0711), ==, 0);
    g_assert_cmpint(symlink(elsewhere, link), ==, 0);
    g_assert_cmpint(vmsnap_record_open(UUID_A, NULL), ==, -1);
    g_assert_false(g_file_test(elsewhere, G_FILE_TEST_EXISTS));
    remove_records();
}

static void test_publishing_moves_the_same_file(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_open(UUID_A);
    check_published(fd, record);
    g_assert_cmpuint(count_files(), ==, 1);
    g_assert_true(file_is_there(UUID_A ".json"));
    g_assert_true(is_locked(UUID_A ".json"));
    g_assert_true(vmsnap_record_exists(fd));
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapRecord) read = vmsnap_record_read(fd, &error);
    g_assert_no_error(error);
    check_equal(read, record);
    vmsnap_record_remove(UUID_A);
    g_assert_cmpuint(count_files(), ==, 0);
    g_assert_false(vmsnap_record_exists(fd));
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", MACHINE, &error));
    /* Who opened it before the end reads it afterwards. */
    g_autoptr(VmsnapRecord) after = vmsnap_record_read(fd, &error);
    g_assert_no_error(error);
    check_equal(after, record);
    (void)close(fd);
    remove_records();
}

static void test_a_record_that_was_removed_cannot_be_published(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    g_autoptr(GError) error = NULL;
    int fd = record_open(UUID_A);
    vmsnap_record_remove(UUID_A);
    g_assert_false(vmsnap_record_publish(fd, record, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, UUID_A ".json'"));
    g_assert_cmpuint(count_files(), ==, 0);
    (void)close(fd);
    remove_records();
}

/* What is refused is not published, and still its holder's. */
static void test_a_refused_record_stays_unpublished(void) {
    g_autoptr(VmsnapRecord) first = full_record(), second = record_of(UUID_B, "/mnt/b");
    g_autoptr(GError) error = NULL;
    second->machine_uuid = g_strdup(MACHINE);
    second->machine = g_strdup("vm1");
    int fd = record_write(first), second_fd = record_open(UUID_B);
    g_assert_false(vmsnap_record_publish(second_fd, second, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_false(file_is_there(UUID_B ".json"));
    g_assert_true(is_locked(UUID_B ".json.new"));
    vmsnap_record_remove(UUID_A);
    (void)close(fd);
    check_published(second_fd, second);
    vmsnap_record_remove(UUID_B);
    (void)close(second_fd);
    remove_records();
}

static void test_all_that_a_record_says_comes_back(void) {
    for (unsigned bits = 0; bits < 32; bits++) {
        g_autoptr(VmsnapRecord) record = full_record();
        g_autoptr(GError) error = NULL;
        record->backend = g_strdup("libvirt");
        record->resume = (bits & 4) != 0;
        record->checkpoint = bits & 8 ? g_strdup("cp \"1\" 100% \xc3\xbc") : NULL;
        record->commit = bits & 16 ? g_strdup("made by vmsnap: {\"snapshot\":\"%41\",\"disks\":[]}") : NULL;
        record->job = (bits & 1) != 0;
        record->frozen = (bits & 2) != 0;
        record->outcome = g_strdup(VMSNAP_OUTCOME_LEFTOVER);
        record->reason = g_strdup("two\nlines, 100% \xff and \"quotes\"");
        record->timeout_ms = G_MAXINT;
        int fd = record_write(record);
        g_autoptr(VmsnapRecord) read = vmsnap_record_read(fd, &error);
        g_assert_no_error(error);
        check_equal(read, record);
        record_end(fd, record, FALSE);
    }
    remove_records();
}

/* First it is to be deleted, then to be committed, then it is settled: whoever reads meanwhile sees one of these. */
static void test_a_checkpoint_is_settled_step_by_step(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    record->job = FALSE;
    g_assert_false(vmsnap_record_has_left(record));
    record->checkpoint = g_strdup("cp1");
    g_assert_true(vmsnap_record_has_left(record));
    int fd = record_write(record);
    for (int step = 0; step < 3; step++) {
        g_autoptr(VmsnapRecord) read = vmsnap_record_read(fd, NULL);
        check_equal(read, record);
        g_assert_cmpint(vmsnap_record_has_left(read), ==, step < 2);
        if (step == 0) {
            record->commit = g_strdup("made by vmsnap: {\"snapshot\":\"" UUID_A "\",\"committed\":true}");
        } else {
            g_clear_pointer(&record->checkpoint, g_free);
            g_clear_pointer(&record->commit, g_free);
        }
        g_assert_true(vmsnap_record_update(fd, record));
    }
    record_end(fd, record, FALSE);
    remove_records();
}

/* It tells of each disk. */
static void test_the_description_of_many_disks_fits(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    GString *commit = g_string_new("made by vmsnap: {\"snapshot\":\"" UUID_A "\",\"committed\":true,\"disks\":[");
    for (int i = 0; i < 500; i++)
        g_string_append_printf(commit, "%s{\"name\":\"vd%d\",\"size\":17592186044416,\"modified\":1700000000123456789}",
                               i ? "," : "", i);
    (void)g_string_append(commit, "]}");
    record->checkpoint = g_strdup("cp1");
    int fd = record_write(record);
    record->commit = g_string_free(commit, FALSE);
    g_assert_true(vmsnap_record_update(fd, record));
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapRecord) read = vmsnap_record_read(fd, &error);
    g_assert_no_error(error);
    check_equal(read, record);
    record_end(fd, record, FALSE);
    remove_records();
}

/* Who still has a checkpoint to settle would delete what the next one rests on, or commit it too late. */
static void test_who_has_a_checkpoint_to_settle_is_in_the_way(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    record->outcome = g_strdup(VMSNAP_OUTCOME_COMPLETE);
    record->checkpoint = g_strdup("cp1");
    int fd = record_write(record);
    g_assert_false(vmsnap_record_machine_is_free("mount", "vm1", MACHINE, NULL));
    g_clear_pointer(&record->checkpoint, g_free);
    g_assert_true(vmsnap_record_update(fd, record));
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", MACHINE, NULL));
    record_end(fd, record, FALSE);
    remove_records();
}

/* What an older or newer vmsnap has written may lack fields, or have others. */
static void test_what_a_record_does_not_say_is_unknown(void) {
    g_autofree char *directory = path_of("");
    g_assert_cmpint(mkdir(directory, 0711), ==, 0);
    write_file(UUID_A ".json", "{\"uuid\":\"" UUID_A "\",\"mount-point\":\"/mnt\",\"colour\":[1,{}],\"job\":\"yes\"}",
               -1);
    int fd = -1;
    g_autoptr(VmsnapRecord) record = vmsnap_record_find_by_mount_point("/mnt", NULL, &fd);
    g_assert_nonnull(record);
    g_assert_cmpstr(record->uuid, ==, UUID_A);
    g_assert_null(record->backend);
    g_assert_null(record->outcome);
    g_assert_false(record->job);
    g_assert_false(record->frozen);
    g_assert_null(record->checkpoint);
    g_assert_null(record->commit);
    g_assert_cmpint(record->pid, ==, 0);
    (void)close(fd);
    remove_records();
}

/* However long what was there before is. */
static void test_an_update_leaves_no_rest(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_write(record);
    for (size_t length = 20000; length > 0; length /= 3) {
        g_autoptr(GError) error = NULL;
        g_autofree char *text = NULL;
        g_free(record->reason);
        record->reason = g_strnfill(length, 'x');
        record->job = length % 2;
        vmsnap_record_update(fd, record);
        g_autoptr(VmsnapRecord) read = vmsnap_record_read(fd, &error);
        g_assert_no_error(error);
        check_equal(read, record);
        /* For people, and for other programs. */
        read_text(UUID_A ".json", &text);
        g_assert_true(g_str_has_suffix(g_strchomp(text), "}"));
        g_assert_true(is_found(record->mount_point));
    }
    record_end(fd, record, FALSE);
    remove_records();
}

static void test_an_update_that_fails_warns(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    g_autofree char *path = path_of(UUID_A ".json");
    int fd = record_write(record);
    int read_only_fd = open(path, O_RDONLY | O_CLOEXEC);
    g_test_expect_message("vmsnap", G_LOG_LEVEL_WARNING, "failed to note the state of snapshot " UUID_A ": *");
    vmsnap_record_update(read_only_fd, record);
    g_test_assert_expected_messages();
    g_test_expect_message("vmsnap", G_LOG_LEVEL_WARNING, "failed to note the state of snapshot " UUID_A ": *");
    vmsnap_record_update(-1, record);
    g_test_assert_expected_messages();
    (void)close(read_only_fd);
    record_end(fd, record, FALSE);
    remove_records();
}

static void test_what_cannot_be_read_is_an_error(void) {
    g_autoptr(GError) no_file = NULL, directory_error = NULL, no_json = NULL;
    g_autofree char *directory = path_of("");
    g_assert_null(vmsnap_record_read(-1, &no_file));
    g_assert_error(no_file, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM);
    g_assert_cmpint(mkdir(directory, 0711), ==, 0);
    int fd = open(directory, O_RDONLY | O_CLOEXEC);
    g_assert_null(vmsnap_record_read(fd, &directory_error));
    g_assert_error(directory_error, VMSNAP_ERROR, VMSNAP_ERROR_SYSTEM);
    (void)close(fd);
    write_file("list.json", "[]", 2);
    g_autofree char *path = path_of("list.json");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    g_assert_null(vmsnap_record_read(fd, &no_json));
    g_assert_error(no_json, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    (void)close(fd);
    remove_records();
}

static void test_to_remove_what_is_not_there_does_nothing(void) {
    vmsnap_record_remove(UUID_A);
    g_autoptr(VmsnapRecord) record = record_of(UUID_A, "/mnt");
    int fd = record_write(record);
    vmsnap_record_remove(UUID_B);
    g_assert_true(vmsnap_record_exists(fd));
    record_end(fd, record, FALSE);
    vmsnap_record_remove(UUID_A);
    g_assert_false(vmsnap_record_exists(-1));
    remove_records();
}

/* As the guardian does: it has the descriptor from the daemon, and lives longer. */
static void test_a_copy_in_another_process_holds_the_record(void) {
    int end[2];
    g_assert_cmpint(pipe2(end, O_CLOEXEC), ==, 0);
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_write(record);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        (void)close(end[1]);
        (void)!read(end[0], &byte, 1);
        _exit(0);
    }
    (void)close(end[0]);
    (void)close(fd);
    g_assert_true(is_locked(UUID_A ".json"));
    g_assert_true(is_found(record->mount_point));
    g_assert_false(vmsnap_record_machine_is_free("mount", "vm1", MACHINE, NULL));
    Visitor visitor;
    visitor_init(&visitor);
    check_visited(&visitor, NULL, NULL, "");

    (void)close(end[1]);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    g_assert_false(is_locked(UUID_A ".json"));
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", MACHINE, NULL));
    check_visited(&visitor, NULL, NULL, UUID_A);
    g_assert_cmpuint(count_files(), ==, 0);
    visitor_clear(&visitor);
    remove_records();
}

static void test_the_last_of_several_descriptors_lets_go(void) {
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_write(record), copy = fcntl(fd, F_DUPFD_CLOEXEC, 0), another = fcntl(copy, F_DUPFD_CLOEXEC, 0);
    (void)close(fd);
    g_assert_true(is_locked(UUID_A ".json"));
    (void)close(another);
    g_assert_true(is_locked(UUID_A ".json"));
    vmsnap_record_update(copy, record);
    (void)close(copy);
    g_assert_false(is_locked(UUID_A ".json"));
    remove_records();
}

static void test_asking_who_holds_it_takes_nothing(void) {
    leave_record(UUID_A, "vm1", MACHINE, "/mnt");
    g_autofree char *path = path_of(UUID_A ".json");
    int one = open(path, O_RDWR | O_CLOEXEC), other = open(path, O_RDWR | O_CLOEXEC);
    g_assert_false(vmsnap_record_is_held(one));
    g_assert_false(vmsnap_record_is_held(other));
    g_assert_cmpint(flock(one, LOCK_EX | LOCK_NB), ==, 0);
    g_assert_true(vmsnap_record_is_held(other));
    (void)close(one);
    g_assert_false(vmsnap_record_is_held(other));
    (void)close(other);
    remove_records();
}

#define OTHER_MACHINE "6f1c2d3e-0000-4000-8000-00000000000b"
#define UUID_C "cccccccc-0000-4000-8000-000000000000"
#define UUID_D "dddddddd-0000-4000-8000-000000000000"

static void leave_four(void) {
    leave_record(UUID_A, "vm1", MACHINE, "/mnt/a");
    leave_record(UUID_B, "vm1", MACHINE, "/mnt/b");
    leave_record(UUID_C, "vm2", OTHER_MACHINE, "/mnt/a");
    leave_record(UUID_D, NULL, NULL, "/mnt/d");
}

static void test_dead_records_are_visited_by_machine_or_mount_point(void) {
    static const struct {
        const char *machine;
        const char *mount_point;
        const char *expected;
    } cases[] = {
        {NULL, NULL, UUID_A " " UUID_B " " UUID_C " " UUID_D},
        {"vm1", NULL, UUID_A " " UUID_B},
        {MACHINE, NULL, UUID_A " " UUID_B},
        {"vm2", NULL, UUID_C},
        {OTHER_MACHINE, NULL, UUID_C},
        {NULL, "/mnt/a", UUID_A " " UUID_C},
        {NULL, "/mnt/d", UUID_D},
        {"vm1", "/mnt/a", UUID_A " " UUID_B " " UUID_C},
        {"vm2", "/mnt/d", UUID_C " " UUID_D},
        {"vm1", "/mnt", UUID_A " " UUID_B},
        {"vm", NULL, ""},
        {"VM1", NULL, ""},
        {"", NULL, ""},
        {"", "", ""},
        {NULL, "/mnt/", ""},
        {"/mnt/a", NULL, ""},
        {"vm3", "/mnt/c", ""},
    };
    Visitor visitor;
    visitor_init(&visitor);
    visitor.keep = TRUE;
    leave_four();
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_visited(&visitor, cases[i].machine, cases[i].mount_point, cases[i].expected);
    g_assert_cmpuint(count_files(), ==, 4);
    visitor.keep = FALSE;
    check_visited(&visitor, "vm1", NULL, UUID_A " " UUID_B);
    check_visited(&visitor, NULL, NULL, UUID_C " " UUID_D);
    check_visited(&visitor, NULL, NULL, "");
    g_assert_cmpuint(count_files(), ==, 0);
    visitor_clear(&visitor);
    remove_records();
}

static void test_the_living_are_left_alone(void) {
    Visitor visitor;
    visitor_init(&visitor);
    leave_record(UUID_A, "vm1", MACHINE, "/mnt");
    g_autoptr(VmsnapRecord) record = record_of(UUID_B, "/mnt");
    record->machine = g_strdup("vm1");
    record->machine_uuid = g_strdup(MACHINE);
    int fd = record_write(record);
    check_visited(&visitor, "vm1", "/mnt", UUID_A);
    check_visited(&visitor, NULL, NULL, "");
    g_assert_true(vmsnap_record_exists(fd));
    g_assert_true(is_found("/mnt"));
    record_end(fd, record, FALSE);
    visitor_clear(&visitor);
    remove_records();
}

static gboolean visit_again(int fd, VmsnapRecord *record, gpointer user_data, GError **error) {
    (void)fd;
    (void)record;
    (void)error;
    check_visited(user_data, NULL, NULL, "");
    return TRUE;
}

static void test_a_record_is_held_while_it_is_visited(void) {
    Visitor inner;
    g_autoptr(GError) error = NULL;
    visitor_init(&inner);
    leave_record(UUID_A, "vm1", MACHINE, "/mnt");
    g_assert_true(vmsnap_record_visit_dead(NULL, NULL, visit_again, &inner, &error));
    g_assert_no_error(error);
    check_visited(&inner, NULL, NULL, UUID_A);
    visitor_clear(&inner);
    remove_records();
}

/* Whoever took it away meanwhile had the lock. */
static void test_what_goes_in_between_is_passed_over(void) {
    static const char *const pairs[][2] = {{UUID_A, UUID_B}, {UUID_B, UUID_A}};
    guint visits = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(pairs); i++) {
        Visitor visitor;
        visitor_init(&visitor);
        leave_record(pairs[i][0], "vm1", MACHINE, "/mnt/a");
        leave_record(pairs[i][1], "vm1", MACHINE, "/mnt/b");
        visitor.remove_other = UUID_A;
        g_assert_true(vmsnap_record_visit_dead(NULL, NULL, visit, &visitor, NULL));
        visits += visitor.uuids->len;
        visitor.remove_other = UUID_B;
        g_ptr_array_set_size(visitor.uuids, 0);
        g_assert_cmpuint(count_files(), ==, 0);
        leave_record(pairs[i][0], "vm1", MACHINE, "/mnt/a");
        leave_record(pairs[i][1], "vm1", MACHINE, "/mnt/b");
        g_assert_true(vmsnap_record_visit_dead(NULL, NULL, visit, &visitor, NULL));
        visits += visitor.uuids->len;
        g_assert_cmpuint(count_files(), ==, 0);
        visitor_clear(&visitor);
    }
    /* The one comes before the other, or after it. */
    g_assert_cmpuint(visits, ==, 6);
    remove_records();
}

static void test_a_visitor_that_fails_goes_on(void) {
    Visitor visitor;
    g_autoptr(GError) error = NULL;
    visitor_init(&visitor);
    visitor.fail = TRUE;
    leave_four();
    g_assert_false(vmsnap_record_visit_dead(NULL, NULL, visit, &visitor, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_cmpuint(visitor.uuids->len, ==, 4);
    g_autofree char *first = g_strdup_printf("failed to clear '%s'", (char *)g_ptr_array_index(visitor.uuids, 0));
    g_assert_cmpstr(error->message, ==, first);
    g_assert_false(vmsnap_record_visit_dead(NULL, NULL, visit, &visitor, NULL));
    g_assert_cmpuint(count_files(), ==, 4);
    g_assert_false(is_locked(UUID_A ".json"));
    visitor_clear(&visitor);
    remove_records();
}

static void test_without_a_directory_there_is_nothing_to_visit(void) {
    Visitor visitor;
    visitor_init(&visitor);
    check_visited(&visitor, NULL, NULL, "");
    g_assert_cmpuint(count_files(), ==, 0);
    visitor_clear(&visitor);
}

static void test_an_unpublished_record_goes_when_nobody_holds_it(void) {
    Visitor visitor;
    visitor_init(&visitor);
    int stale = record_open(UUID_A), held = record_open(UUID_B);
    (void)close(stale);
    g_assert_cmpuint(count_files(), ==, 2);
    check_visited(&visitor, "no such machine", NULL, "");
    g_assert_false(file_is_there(UUID_A ".json.new"));
    g_assert_true(file_is_there(UUID_B ".json.new"));
    g_assert_true(vmsnap_record_exists(held));
    vmsnap_record_remove(UUID_B);
    (void)close(held);
    visitor_clear(&visitor);
    remove_records();
}

static void test_visitors_pass_over_what_is_no_record(void) {
    static const char *const contents[] = {
        "",
        "garbage",
        "{",
        "[]",
        "42",
        "{}",
        "{\"uuid\": 42, \"mount-point\": \"/mnt\"}",
        "{\"mount-point\": \"/mnt\", \"machine\": \"vm1\", \"job\": true}",
        "{\"uuid\": null, \"mount-point\": \"/mnt\", \"machine\": \"vm1\"}",
        "{\"uuid\": [\"x\"]}",
        "\x7f"
        "ELF",
    };
    Visitor visitor;
    visitor_init(&visitor);
    leave_record(UUID_A, "vm1", MACHINE, "/mnt");
    for (size_t i = 0; i < G_N_ELEMENTS(contents); i++) {
        g_autofree char *name = g_strdup_printf("%02zu.json", i);
        write_file(name, contents[i], -1);
    }
    g_autofree char *link = path_of("link.json"), *directory = path_of("directory.json"), *fifo = path_of("fifo.json");
    g_autofree char *locked_away = path_of("locked.json"), *target = path_of(UUID_A ".json");
    g_autofree char *new_directory = path_of("directory.json.new");
    g_assert_cmpint(symlink(target, link), ==, 0);
    g_assert_cmpint(mkdir(directory, 0700), ==, 0);
    g_assert_cmpint(mkdir(new_directory, 0700), ==, 0);
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    write_file("locked.json", "{\"uuid\": \"x\"}", -1);
    g_assert_cmpint(chmod(locked_away, 0), ==, 0);
    guint before = count_files();
    check_visited(&visitor, NULL, NULL, UUID_A);
    g_assert_cmpuint(count_files(), ==, before - 1);
    visitor_clear(&visitor);
    remove_records();
}

#define N_RECORDS 200

/* Without the UUID of a machine, for which all others would be looked through each time. */
static void leave_many(void) {
    for (unsigned i = 0; i < N_RECORDS; i++) {
        g_autofree char *uuid = g_strdup_printf("%08x-0000-4000-8000-000000000000", i);
        leave_record(uuid, i % 2 ? "vm1" : "vm2", NULL, "/mnt");
    }
}

static void test_many_dead_records_are_visited(void) {
    Visitor visitor;
    visitor_init(&visitor);
    leave_many();
    g_assert_cmpuint(count_files(), ==, N_RECORDS);
    g_assert_true(vmsnap_record_visit_dead("vm1", NULL, visit, &visitor, NULL));
    g_assert_cmpuint(visitor.uuids->len, ==, N_RECORDS / 2);
    g_assert_true(vmsnap_record_visit_dead(NULL, "/mnt", visit, &visitor, NULL));
    g_assert_cmpuint(visitor.uuids->len, ==, N_RECORDS);
    g_assert_cmpuint(count_files(), ==, 0);
    visitor_clear(&visitor);
    remove_records();
}

static gpointer visit_all(gpointer visitor) {
    g_assert_true(vmsnap_record_visit_dead(NULL, NULL, visit, visitor, NULL));
    return NULL;
}

static void test_of_visitors_at_once_each_record_has_one(void) {
    Visitor visitor;
    GThread *threads[2];
    visitor_init(&visitor);
    visitor.pause_us = 100;
    leave_many();
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("visitor", visit_all, &visitor);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        (void)g_thread_join(threads[i]);
    g_assert_cmpuint(visitor.uuids->len, ==, N_RECORDS);
    g_ptr_array_sort(visitor.uuids, compare_strings);
    for (guint i = 1; i < visitor.uuids->len; i++)
        g_assert_cmpstr(g_ptr_array_index(visitor.uuids, i - 1), <, g_ptr_array_index(visitor.uuids, i));
    g_assert_cmpuint(count_files(), ==, 0);
    visitor_clear(&visitor);
    remove_records();
}

static void test_a_record_is_known_until_it_is_removed(void) {
    g_assert_false(vmsnap_record_is_known(UUID_A));
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_open(UUID_A);
    g_assert_true(vmsnap_record_is_known(UUID_A));
    g_assert_false(vmsnap_record_is_known(UUID_B));
    check_published(fd, record);
    g_assert_true(vmsnap_record_is_known(UUID_A));
    g_assert_false(vmsnap_record_is_known(UUID_B));
    /* Dead or alive. */
    (void)close(fd);
    g_assert_true(vmsnap_record_is_known(UUID_A));
    vmsnap_record_remove(UUID_A);
    g_assert_false(vmsnap_record_is_known(UUID_A));
    remove_records();
}

static void test_a_living_machine_is_known_by_name_and_uuid(void) {
    static const char *const names[] = {"vm \"1\"", MACHINE};
    g_autoptr(VmsnapRecord) record = full_record();
    int fd = record_write(record);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_false(vmsnap_record_machine_is_free("mount", "vm1", names[i], &error));
        g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
        g_assert_nonnull(strstr(error->message, "'vm1'"));
    }
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", "vm", NULL));
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", "", NULL));
    g_assert_true(vmsnap_record_machine_is_free("mount", "vm1", NULL, NULL));
    record_end(fd, record, FALSE);
    remove_records();
}

typedef struct {
    Visitor *visitor;
    const char *machine;
} Errand;

static gpointer visit_machine(gpointer data) {
    const Errand *errand = data;
    g_assert_true(vmsnap_record_visit_dead(errand->machine, NULL, visit, errand->visitor, NULL));
    return NULL;
}

/* Who only looks at a record to see that it is another machine's does not hide it from whoever wants it. */
static void test_visitors_of_two_machines_do_not_meet(void) {
    Visitor visitor;
    visitor_init(&visitor);
    for (unsigned run = 0; run < 10; run++) {
        Errand errands[2] = {{&visitor, "vm1"}, {&visitor, "vm2"}};
        GThread *threads[2];
        leave_many();
        g_ptr_array_set_size(visitor.uuids, 0);
        for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
            threads[i] = g_thread_new("visitor", visit_machine, &errands[i]);
        for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
            (void)g_thread_join(threads[i]);
        g_assert_cmpuint(visitor.uuids->len, ==, N_RECORDS);
        g_assert_cmpuint(count_files(), ==, 0);
    }
    visitor_clear(&visitor);
    remove_records();
}

static void test_free_takes_null(void) {
    vmsnap_record_free(NULL);
}

int main(int argc, char **argv) {
    become_ordinary_user();
    runtime_dir = g_dir_make_tmp("vmsnap-XXXXXX", NULL);
    g_assert_true(g_setenv("XDG_RUNTIME_DIR", runtime_dir, TRUE));
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/record/what-is-written-is-found", test_what_is_written_is_found);
    g_test_add_func("/record/nothing-else-is-found", test_nothing_else_is_found);
    g_test_add_func("/record/each-of-several-is-found", test_each_of_several_is_found);
    g_test_add_func("/record/records-are-for-their-owner-alone", test_records_are_for_their_owner_alone);
    g_test_add_func("/record/an-ended-record-is-gone", test_an_ended_record_is_gone);
    g_test_add_func("/record/a-record-that-is-kept-tells-its-outcome", test_a_record_that_is_kept_tells_its_outcome);
    g_test_add_func("/record/who-waits-learns-the-outcome", test_who_waits_learns_the_outcome);
    g_test_add_func("/record/several-may-wait", test_several_may_wait);
    g_test_add_func("/record/a-holder-that-dies-has-no-outcome", test_a_holder_that_dies_has_no_outcome);
    g_test_add_func("/record/a-dead-holder-is-found-by-its-socket-alone",
                    test_a_dead_holder_is_found_by_its_socket_alone);
    g_test_add_func("/record/the-living-one-is-found-beside-dead-ones", test_the_living_one_is_found_beside_dead_ones);
    g_test_add_func("/record/a-machine-has-one-living-record", test_a_machine_has_one_living_record);
    g_test_add_func("/record/a-dead-record-keeps-no-machine-busy", test_a_dead_record_keeps_no_machine_busy);
    g_test_add_func("/record/of-many-who-begin-at-once-one-comes-further",
                    test_of_many_who_begin_at_once_one_comes_further);
    g_test_add_func("/record/what-is-no-record-is-passed-over", test_what_is_no_record_is_passed_over);
    g_test_add_func("/record/other-files-are-passed-over", test_other_files_are_passed_over);
    g_test_add_func("/record/a-record-that-cannot-be-written-is-an-error",
                    test_a_record_that_cannot_be_written_is_an_error);
    g_test_add_func("/record/a-mount-point-may-be-any-bytes", test_a_mount_point_may_be_any_bytes);
    g_test_add_func("/record/an-opened-record-is-locked-and-nobody-finds-it",
                    test_an_opened_record_is_locked_and_nobody_finds_it);
    g_test_add_func("/record/an-opened-record-cannot-be-opened-again", test_an_opened_record_cannot_be_opened_again);
    g_test_add_func("/record/nothing-is-followed-where-a-record-is-opened",
                    test_nothing_is_followed_where_a_record_is_opened);
    g_test_add_func("/record/publishing-moves-the-same-file", test_publishing_moves_the_same_file);
    g_test_add_func("/record/a-record-that-was-removed-cannot-be-published",
                    test_a_record_that_was_removed_cannot_be_published);
    g_test_add_func("/record/a-refused-record-stays-unpublished", test_a_refused_record_stays_unpublished);
    g_test_add_func("/record/all-that-a-record-says-comes-back", test_all_that_a_record_says_comes_back);
    g_test_add_func("/record/a-checkpoint-is-settled-step-by-step", test_a_checkpoint_is_settled_step_by_step);
    g_test_add_func("/record/the-description-of-many-disks-fits", test_the_description_of_many_disks_fits);
    g_test_add_func("/record/who-has-a-checkpoint-to-settle-is-in-the-way",
                    test_who_has_a_checkpoint_to_settle_is_in_the_way);
    g_test_add_func("/record/what-a-record-does-not-say-is-unknown", test_what_a_record_does_not_say_is_unknown);
    g_test_add_func("/record/an-update-leaves-no-rest", test_an_update_leaves_no_rest);
    g_test_add_func("/record/an-update-that-fails-warns", test_an_update_that_fails_warns);
    g_test_add_func("/record/what-cannot-be-read-is-an-error", test_what_cannot_be_read_is_an_error);
    g_test_add_func("/record/to-remove-what-is-not-there-does-nothing", test_to_remove_what_is_not_there_does_nothing);
    g_test_add_func("/record/a-copy-in-another-process-holds-the-record",
                    test_a_copy_in_another_process_holds_the_record);
    g_test_add_func("/record/the-last-of-several-descriptors-lets-go", test_the_last_of_several_descriptors_lets_go);
    g_test_add_func("/record/asking-who-holds-it-takes-nothing", test_asking_who_holds_it_takes_nothing);
    g_test_add_func("/record/dead-records-are-visited-by-machine-or-mount-point",
                    test_dead_records_are_visited_by_machine_or_mount_point);
    g_test_add_func("/record/the-living-are-left-alone", test_the_living_are_left_alone);
    g_test_add_func("/record/a-record-is-held-while-it-is-visited", test_a_record_is_held_while_it_is_visited);
    g_test_add_func("/record/what-goes-in-between-is-passed-over", test_what_goes_in_between_is_passed_over);
    g_test_add_func("/record/a-visitor-that-fails-goes-on", test_a_visitor_that_fails_goes_on);
    g_test_add_func("/record/without-a-directory-there-is-nothing-to-visit",
                    test_without_a_directory_there_is_nothing_to_visit);
    g_test_add_func("/record/an-unpublished-record-goes-when-nobody-holds-it",
                    test_an_unpublished_record_goes_when_nobody_holds_it);
    g_test_add_func("/record/visitors-pass-over-what-is-no-record", test_visitors_pass_over_what_is_no_record);
    g_test_add_func("/record/many-dead-records-are-visited", test_many_dead_records_are_visited);
    g_test_add_func("/record/of-visitors-at-once-each-record-has-one", test_of_visitors_at_once_each_record_has_one);
    g_test_add_func("/record/a-record-is-known-until-it-is-removed", test_a_record_is_known_until_it_is_removed);
    g_test_add_func("/record/a-living-machine-is-known-by-name-and-uuid",
                    test_a_living_machine_is_known_by_name_and_uuid);
    g_test_add_func("/record/visitors-of-two-machines-do-not-meet", test_visitors_of_two_machines_do_not_meet);
    g_test_add_func("/record/free-takes-null", test_free_takes_null);
    int result = g_test_run();
    (void)g_rmdir(runtime_dir);
    g_free(runtime_dir);
    return result;
}
