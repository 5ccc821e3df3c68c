/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A bitmap with a bit a block. The block grows with the disk so that the bitmap stays below 2 MiB. */
#include "progress.h"

#include <stdatomic.h>

#define MIN_BLOCK_BYTES 4096
#define MAX_BLOCKS (UINT64_C(1) << 24)
#define BITS_PER_WORD 64

struct VmsnapProgress {
    uint64_t size_bytes;
    uint64_t block_bytes;
    _Atomic uint64_t handed_out_bytes;
    _Atomic uint64_t words[];
};

VmsnapProgress *vmsnap_progress_new(uint64_t size_bytes) {
    uint64_t block_bytes = MIN_BLOCK_BYTES;
    while (size_bytes / block_bytes >= MAX_BLOCKS)
        block_bytes *= 2;
    uint64_t n_words = size_bytes / block_bytes / BITS_PER_WORD + 1;
    VmsnapProgress *progress = g_malloc0(sizeof *progress + n_words * sizeof progress->words[0]);
    progress->size_bytes = size_bytes;
    progress->block_bytes = block_bytes;
    return progress;
}

void vmsnap_progress_free(VmsnapProgress *progress) {
    g_free(progress);
}

void vmsnap_progress_add(VmsnapProgress *progress, uint64_t offset, uint64_t length_bytes) {
    uint64_t end = offset + length_bytes;
    for (uint64_t block = offset / progress->block_bytes; block * progress->block_bytes < end; block++) {
        uint64_t bit = UINT64_C(1) << (block % BITS_PER_WORD);
        uint64_t before = atomic_fetch_or_explicit(&progress->words[block / BITS_PER_WORD], bit, memory_order_relaxed);
        if (before & bit)
            continue;
        uint64_t left = progress->size_bytes - block * progress->block_bytes;
        atomic_fetch_add_explicit(&progress->handed_out_bytes, MIN(progress->block_bytes, left), memory_order_relaxed);
    }
}

uint64_t vmsnap_progress_get_bytes(const VmsnapProgress *progress) {
    return atomic_load_explicit(&progress->handed_out_bytes, memory_order_relaxed);
}
