/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Each byte that is handed out counts once. */
#include "fs/progress.h"

#include "extents.h"

#define BLOCK_BYTES 4096

/* Returns: bytes of the blocks that are marked; the last block may be short. */
static uint64_t naive_count(const GByteArray *blocks, uint64_t size) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < blocks->len; i++)
        bytes += blocks->data[i] ? MIN(BLOCK_BYTES, size - i * BLOCK_BYTES) : 0;
    return bytes;
}

static void test_random_ranges_equal_naive(void) {
    for (int run = 0; run < 20; run++) {
        uint64_t size = 1 + random_below(64 << 20);
        VmsnapProgress *progress = vmsnap_progress_new(size);
        g_autoptr(GByteArray) blocks = g_byte_array_new();
        g_byte_array_set_size(blocks, (guint)((size + BLOCK_BYTES - 1) / BLOCK_BYTES));
        for (guint i = 0; i < blocks->len; i++)
            blocks->data[i] = 0;
        for (int i = 0; i < 50; i++) {
            uint64_t offset = random_below(size);
            uint64_t length = 1 + random_below(MIN(size - offset, 1 << 20));
            vmsnap_progress_add(progress, offset, length);
            for (uint64_t block = offset / BLOCK_BYTES; block <= (offset + length - 1) / BLOCK_BYTES; block++)
                blocks->data[block] = 1;
            g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, naive_count(blocks, size));
        }
        vmsnap_progress_free(progress);
    }
}

static void test_a_whole_disk_counts_its_size(void) {
    static const uint64_t sizes[] = {
        1, 4095, 4096, 4097, UINT64_C(64) << 30, (UINT64_C(64) << 30) + 1, UINT64_C(1) << 40};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        VmsnapProgress *progress = vmsnap_progress_new(sizes[i]);
        g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, 0);
        vmsnap_progress_add(progress, sizes[i] - 1, 1);
        vmsnap_progress_add(progress, 0, sizes[i]);
        vmsnap_progress_add(progress, 0, sizes[i]);
        g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, sizes[i]);
        vmsnap_progress_free(progress);
    }
}

static void test_no_bytes_are_no_progress(void) {
    VmsnapProgress *progress = vmsnap_progress_new(1 << 20);
    vmsnap_progress_add(progress, 0, 0);
    vmsnap_progress_add(progress, 4096, 0);
    g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, 0);
    vmsnap_progress_free(progress);
}

static void test_blocks_of_a_16_tib_disk_are_coarse_but_whole(void) {
    uint64_t size = UINT64_C(16) << 40;
    VmsnapProgress *progress = vmsnap_progress_new(size);
    vmsnap_progress_add(progress, size / 2, 1);
    uint64_t block_bytes = vmsnap_progress_get_bytes(progress);
    g_assert_cmpuint(block_bytes, >, 0);
    g_assert_cmpuint(block_bytes, <=, 2 << 20);
    vmsnap_progress_add(progress, size - 1, 1);
    g_assert_cmpuint(vmsnap_progress_get_bytes(progress), ==, 2 * block_bytes);
    vmsnap_progress_free(progress);
}

#define N_THREADS 2
#define N_RUNS 4000
#define CONTENDED_BYTES (64 * BLOCK_BYTES)

typedef struct {
    int arrived; /* atomic; in all runs together */
    VmsnapProgress *runs[N_RUNS];
} Contention;

static gpointer add_all(gpointer data) {
    Contention *contention = data;
    for (int i = 0; i < N_RUNS; i++) {
        g_atomic_int_inc(&contention->arrived);
        while (g_atomic_int_get(&contention->arrived) < (i + 1) * N_THREADS)
            g_thread_yield();
        for (uint64_t offset = 0; offset < CONTENDED_BYTES; offset += BLOCK_BYTES)
            vmsnap_progress_add(contention->runs[i], offset, BLOCK_BYTES);
    }
    return NULL;
}

static void test_threads_count_no_byte_twice(void) {
    g_autofree Contention *contention = g_new0(Contention, 1);
    GThread *threads[N_THREADS];
    for (int i = 0; i < N_RUNS; i++)
        contention->runs[i] = vmsnap_progress_new(CONTENDED_BYTES);
    for (int i = 0; i < N_THREADS; i++)
        threads[i] = g_thread_new("adder", add_all, contention);
    for (int i = 0; i < N_THREADS; i++)
        (void)g_thread_join(threads[i]);
    for (int i = 0; i < N_RUNS; i++) {
        g_assert_cmpuint(vmsnap_progress_get_bytes(contention->runs[i]), ==, CONTENDED_BYTES);
        vmsnap_progress_free(contention->runs[i]);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/progress/random-ranges-equal-naive", test_random_ranges_equal_naive);
    g_test_add_func("/progress/a-whole-disk-counts-its-size", test_a_whole_disk_counts_its_size);
    g_test_add_func("/progress/no-bytes-are-no-progress", test_no_bytes_are_no_progress);
    g_test_add_func("/progress/blocks-of-a-16-tib-disk-are-coarse-but-whole",
                    test_blocks_of_a_16_tib_disk_are_coarse_but_whole);
    g_test_add_func("/progress/threads-count-no-byte-twice", test_threads_count_no_byte_twice);
    return g_test_run();
}
