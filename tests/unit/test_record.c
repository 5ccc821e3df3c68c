/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Owner records in a directory of the test's own. Root's records are in /run/vmsnap, where others may be mounted at
 * this moment: so the program becomes an ordinary user first.
 */
#include "vmsnap/record.h"

#include "vmsnap/error.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534
#define UUID_A "aaaaaaaa-0000-4000-8000-000000000000"
#define UUID_B "bbbbbbbb-0000-4000-8000-000000000000"
#define MACHINE "6f1c2d3e-0000-4000-8000-00000000000a"

static char *runtime_dir; /* what is XDG_RUNTIME_DIR; immutable after main() has begun */

static char *path_of(const char *name) {
    return g_build_filename(runtime_dir, "vmsnap", name, NULL);
}

static void remove_records(void) {
    g_autofree char *path = path_of("");
    const char *const arguments[] = {"rm", "-rf", path, NULL};
    g_assert_true(
        g_spawn_sync(NULL, (char **)arguments, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL));
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
    g_autoptr(VmsnapRecord) record = vmsnap_record_find_by_mount_point(mount_point, &fd);
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
    g_autoptr(VmsnapRecord) by_mount = vmsnap_record_find_by_mount_point(record->mount_point, &found_fd);
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
    g_assert_null(vmsnap_record_find_by_mount_point("/mnt", &fd));
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
    g_autoptr(VmsnapRecord) found = vmsnap_record_find_by_mount_point("/mnt/b", &found_fd);
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
        vmsnap_record_free(vmsnap_record_find_by_mount_point("/mnt", &waiter.fd));
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
        vmsnap_record_free(vmsnap_record_find_by_mount_point("/mnt", &waiters[i].fd));
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
    g_autoptr(VmsnapRecord) found = vmsnap_record_find_by_mount_point("/mnt", &waiter.fd);
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
    g_autoptr(VmsnapRecord) found = vmsnap_record_find_by_mount_point("/mnt", &found_fd);
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

static void test_free_takes_null(void) {
    vmsnap_record_free(NULL);
}

/* The leak checker traces its own process, which the kernel forbids after a change of the user. */
static void become_ordinary_user(void) {
    if (geteuid() != 0)
        return;
    g_assert_cmpint(setgroups(0, NULL), ==, 0);
    g_assert_cmpint(setresgid(NOBODY, NOBODY, NOBODY), ==, 0);
    g_assert_cmpint(setresuid(NOBODY, NOBODY, NOBODY), ==, 0);
    g_assert_cmpint(prctl(PR_SET_DUMPABLE, 1), ==, 0);
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
    g_test_add_func("/record/free-takes-null", test_free_takes_null);
    int result = g_test_run();
    (void)g_rmdir(runtime_dir);
    g_free(runtime_dir);
    return result;
}
