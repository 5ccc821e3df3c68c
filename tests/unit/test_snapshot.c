/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The promises that backend.c keeps for every backend: a lost snapshot stays lost, and nobody gets by that. */
#include "vmsnap/backend.h"

#include "config.h"
#include "extents.h"
#include "latch.h"
#include "memory_backend.h"
#include "vmsnap/error.h"

#include <errno.h>
#include <string.h>

typedef struct {
    Latch called;
    int error;
    size_t n_extents;
} Answer;

static void read_done(int error, gpointer user_data) {
    Answer *answer = user_data;
    answer->error = error;
    latch_count(&answer->called);
}

static void extents_done(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data) {
    Answer *answer = user_data;
    g_assert_true((extents == NULL) == (error != 0));
    answer->error = error;
    answer->n_extents = n_extents;
    latch_count(&answer->called);
}

static int read_error(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset) {
    Answer answer = {0};
    latch_init(&answer.called);
    vmsnap_disk_read(disk, buffer, length, offset, read_done, &answer);
    latch_wait(&answer.called, 1);
    latch_clear(&answer.called);
    return answer.error;
}

static int extents_error(VmsnapDisk *disk, uint64_t offset, uint64_t length) {
    Answer answer = {0};
    latch_init(&answer.called);
    vmsnap_disk_extents(disk, VMSNAP_EXTENTS_OF_CONTENT, offset, length, extents_done, &answer);
    latch_wait(&answer.called, 1);
    latch_clear(&answer.called);
    g_assert_true((answer.error == 0) == (answer.n_extents > 0));
    return answer.error;
}

static VmsnapSnapshot *snapshot_new(void) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    (void)memory_snapshot_add_disk(snapshot, "vda", extents_random(100000, 4096));
    (void)memory_snapshot_add_disk(snapshot, "vdb", extents_random(100000, 4096));
    return snapshot;
}

static void snapshot_clear(VmsnapSnapshot *snapshot) {
    memory_snapshot_end(snapshot);
    vmsnap_snapshot_free(snapshot);
}

static void test_a_whole_snapshot_reads_the_disk(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, 1);
    uint8_t buffer[1000], expected[1000];
    memory_disk_expand(disk, expected, sizeof expected, 99000);
    g_assert_cmpint(read_error(disk, buffer, sizeof buffer, 99000), ==, 0);
    g_assert_cmpmem(buffer, sizeof buffer, expected, sizeof expected);
    g_assert_cmpint(extents_error(disk, 0, 100000), ==, 0);
    g_assert_null(vmsnap_snapshot_dup_break_reason(snapshot));
    snapshot_clear(snapshot);
}

static void test_after_a_break_no_disk_is_read(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    vmsnap_snapshot_break(snapshot, "the guest was stopped");
    for (guint i = 0; i < snapshot->disks->len; i++) {
        VmsnapDisk *disk = g_ptr_array_index(snapshot->disks, i);
        uint8_t byte;
        g_assert_cmpint(read_error(disk, &byte, 1, 0), ==, -EIO);
        g_assert_cmpint(extents_error(disk, 0, 100000), ==, -EIO);
    }
    MemoryCounts counts = memory_snapshot_count(snapshot);
    g_assert_cmpuint(counts.reads + counts.questions, ==, 0);
    snapshot_clear(snapshot);
}

static void test_the_first_reason_stays(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    vmsnap_snapshot_break(snapshot, "%s after %d reads", "lost", 42);
    vmsnap_snapshot_break(snapshot, "something else");
    for (int i = 0; i < 2; i++) {
        g_autofree char *reason = vmsnap_snapshot_dup_break_reason(snapshot);
        g_assert_cmpstr(reason, ==, "lost after 42 reads");
    }
    snapshot_clear(snapshot);
}

static gpointer break_it(gpointer snapshot) {
    vmsnap_snapshot_break(snapshot, "thread %p", (void *)g_thread_self());
    return vmsnap_snapshot_dup_break_reason(snapshot);
}

static void test_threads_agree_on_the_reason(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    GThread *threads[8];
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("breaker", break_it, snapshot);
    g_autofree char *reason = g_thread_join(threads[0]);
    g_assert_true(g_str_has_prefix(reason, "thread "));
    for (size_t i = 1; i < G_N_ELEMENTS(threads); i++) {
        g_autofree char *other = g_thread_join(threads[i]);
        g_assert_cmpstr(other, ==, reason);
    }
    snapshot_clear(snapshot);
}

static gpointer read_until_broken(gpointer disk) {
    uint8_t byte;
    while (read_error(disk, &byte, 1, 0) == 0)
        ;
    g_autofree char *reason = vmsnap_snapshot_dup_break_reason(((VmsnapDisk *)disk)->snapshot);
    g_assert_cmpstr(reason, ==, "the guest was stopped");
    return NULL;
}

static void test_who_sees_the_break_sees_the_reason(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    GThread *reader = g_thread_new("reader", read_until_broken, g_ptr_array_index(snapshot->disks, 0));
    g_usleep(1000);
    vmsnap_snapshot_break(snapshot, "the guest was stopped");
    (void)g_thread_join(reader);
    snapshot_clear(snapshot);
}

static void test_after_the_end_reads_fail(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    uint8_t byte;
    memory_snapshot_end(snapshot);
    g_assert_cmpint(read_error(g_ptr_array_index(snapshot->disks, 0), &byte, 1, 0), ==, -EIO);
    vmsnap_snapshot_free(snapshot);
}

static void test_what_is_added_is_kept(void) {
    VmsnapSnapshot *snapshot = snapshot_new();
    vmsnap_snapshot_add_file(snapshot, "domain.xml", g_bytes_new("<domain/>", 9), VMSNAP_FILE_CONFIG);
    vmsnap_snapshot_add_file(snapshot, "backup.xml", g_bytes_new("", 0), VMSNAP_FILE_HIDDEN);
    vmsnap_snapshot_add_left_out(snapshot, "sda", "is a CD-ROM");
    vmsnap_snapshot_add_version(snapshot, "qemu", g_strdup("7.2.0"));
    const VmsnapConfigFile *file = g_ptr_array_index(snapshot->files, 0);
    g_assert_cmpstr(file->name, ==, "domain.xml");
    g_assert_cmpuint(g_bytes_get_size(file->content), ==, 9);
    g_assert_cmpint(file->kind, ==, VMSNAP_FILE_CONFIG);
    g_assert_cmpint(((const VmsnapConfigFile *)g_ptr_array_index(snapshot->files, 1))->kind, ==, VMSNAP_FILE_HIDDEN);
    const VmsnapLeftOut *left_out = g_ptr_array_index(snapshot->left_out, 0);
    g_assert_cmpstr(left_out->name, ==, "sda");
    g_assert_cmpstr(left_out->reason, ==, "is a CD-ROM");
    const VmsnapVersion *version = g_ptr_array_index(snapshot->versions, 0);
    g_assert_cmpstr(version->program, ==, "qemu");
    g_assert_cmpstr(version->version, ==, "7.2.0");
    snapshot_clear(snapshot);
}

static void test_a_source_of_no_known_kind_is_a_usage_error(void) {
    g_autoptr(GError) error = NULL;
    VmsnapBeginOptions options = {.source = "gopher://localhost/vm1", .connections = 1};
    g_assert_null(vmsnap_snapshot_begin(&options, &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE);
    g_assert_nonnull(strstr(error->message, "'gopher://localhost/vm1'"));
}

static int release_error(VmsnapDisk *disk, uint64_t offset, uint64_t length) {
    Answer answer = {0};
    latch_init(&answer.called);
    vmsnap_disk_release(disk, offset, length, read_done, &answer);
    latch_wait(&answer.called, 1);
    latch_clear(&answer.called);
    return answer.error;
}

static VmsnapDisk *disk_new_to_release(uint64_t size_bytes) {
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, "vda", extents_alternate(size_bytes, size_bytes));
    memory_disk_allow_release(disk);
    return disk;
}

static void test_what_was_released_is_read_no_more(void) {
    VmsnapDisk *disk = disk_new_to_release(4 * VMSNAP_RELEASE_UNIT_BYTES);
    uint8_t byte;
    g_assert_cmpint(release_error(disk, VMSNAP_RELEASE_UNIT_BYTES, 2 * VMSNAP_RELEASE_UNIT_BYTES), ==, 0);
    g_assert_cmpint(read_error(disk, &byte, 1, VMSNAP_RELEASE_UNIT_BYTES - 1), ==, 0);
    g_assert_cmpint(read_error(disk, &byte, 1, VMSNAP_RELEASE_UNIT_BYTES), ==, -EIO);
    g_assert_cmpint(read_error(disk, &byte, 1, 3 * VMSNAP_RELEASE_UNIT_BYTES), ==, 0);
    g_assert_false(vmsnap_snapshot_is_broken(disk->snapshot));
    snapshot_clear(disk->snapshot);
}

static void test_after_a_break_or_the_end_nothing_is_released(void) {
    for (int ends = 0; ends < 2; ends++) {
        VmsnapDisk *disk = disk_new_to_release(2 * VMSNAP_RELEASE_UNIT_BYTES);
        if (ends)
            memory_snapshot_end(disk->snapshot);
        else
            vmsnap_snapshot_break(disk->snapshot, "the guest was stopped");
        g_assert_cmpint(release_error(disk, 0, VMSNAP_RELEASE_UNIT_BYTES), ==, -EIO);
        if (!ends)
            memory_snapshot_end(disk->snapshot);
        vmsnap_snapshot_free(disk->snapshot);
    }
}

/* The last unit is never released, be it a whole one or not. */
static const struct {
    uint64_t size_bytes;
    uint64_t offset;
    uint64_t length;
} no_ranges[] = {
    {4 << 20, 3 << 20, 1 << 20}, {4 << 20, 0, 4 << 20}, {(4 << 20) + 1, 3 << 20, (1 << 20) + 1},
    {4 << 20, 1 << 19, 1 << 20}, {4 << 20, 0, 3 << 19}, {4 << 20, 0, 0},
    {4 << 20, 4 << 20, 1 << 20}, {1 << 20, 0, 1 << 20}, {UINT64_C(3) << 30, 0, (1 << 30) + (1 << 20)},
};

static void release_no_range(gconstpointer data) {
    size_t i = GPOINTER_TO_SIZE(data);
    VmsnapDisk *disk = disk_new_to_release(no_ranges[i].size_bytes);
    (void)release_error(disk, no_ranges[i].offset, no_ranges[i].length);
}

static char *name_no_range(size_t i) {
    return g_strdup_printf("/snapshot/subprocess/release-no-range-%zu", i);
}

static void test_only_whole_units_are_released(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(no_ranges); i++) {
        g_autofree char *name = name_no_range(i);
        g_test_trap_subprocess(name, 0, 0);
        g_test_trap_assert_failed();
        g_test_trap_assert_stderr("*backend.c*assertion failed*");
    }
}

static void add_no_ranges(void) {
    for (size_t i = 0; i < G_N_ELEMENTS(no_ranges); i++) {
        g_autofree char *name = name_no_range(i);
        g_test_add_data_func(name, GSIZE_TO_POINTER(i), release_no_range);
    }
}

static void test_who_cannot_release_refuses(void) {
    g_autoptr(GError) error = NULL;
    g_assert_true(vmsnap_source_check_option("qmp:/run/vm1.qmp", "release", &error));
    g_assert_no_error(error);
    g_assert_false(vmsnap_source_check_option("nbd://h/vda", "release", &error));
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE);
#ifdef HAVE_LIBVIRT
    g_clear_error(&error);
    g_assert_false(vmsnap_source_check_option("vm1", "release", &error));
    g_assert_true(g_str_has_prefix(error->message, "failed to use option 'release' with 'vm1': "));
#endif
}

static void test_free_takes_null(void) {
    vmsnap_snapshot_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/snapshot/a-whole-snapshot-reads-the-disk", test_a_whole_snapshot_reads_the_disk);
    g_test_add_func("/snapshot/after-a-break-no-disk-is-read", test_after_a_break_no_disk_is_read);
    g_test_add_func("/snapshot/the-first-reason-stays", test_the_first_reason_stays);
    g_test_add_func("/snapshot/threads-agree-on-the-reason", test_threads_agree_on_the_reason);
    g_test_add_func("/snapshot/who-sees-the-break-sees-the-reason", test_who_sees_the_break_sees_the_reason);
    g_test_add_func("/snapshot/after-the-end-reads-fail", test_after_the_end_reads_fail);
    g_test_add_func("/snapshot/what-is-added-is-kept", test_what_is_added_is_kept);
    g_test_add_func("/snapshot/a-source-of-no-known-kind-is-a-usage-error",
                    test_a_source_of_no_known_kind_is_a_usage_error);
    g_test_add_func("/snapshot/what-was-released-is-read-no-more", test_what_was_released_is_read_no_more);
    g_test_add_func("/snapshot/after-a-break-or-the-end-nothing-is-released",
                    test_after_a_break_or_the_end_nothing_is_released);
    g_test_add_func("/snapshot/only-whole-units-are-released", test_only_whole_units_are_released);
    add_no_ranges();
    g_test_add_func("/snapshot/who-cannot-release-refuses", test_who_cannot_release_refuses);
    g_test_add_func("/snapshot/free-takes-null", test_free_takes_null);
    return g_test_run();
}
