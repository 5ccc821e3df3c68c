/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bytes that tell of a format, disks, what has changed of them, and reads: the files must be what parsers of their own
 * expect, and each read a part of the whole. For libFuzzer, or for driver.c.
 */
#include "fuzz.h"

#include "tests/unit/extents.h"
#include "tests/unit/memory_backend.h"
#include "tests/unit/naive_formats.h"

#define MAX_DISK_BYTES (UINT64_C(512) << 10)
#define MAX_EXTENTS 32
#define MAX_READS 16
#define SECTOR_BYTES 512

const char fuzz_name[] = "fuzz-layout";

typedef struct {
    const uint8_t *data;
    size_t length;
} Input;

/* Returns: a number of so many bytes; zeroes follow the end. */
static uint64_t take(Input *input, size_t n_bytes) {
    uint64_t number = 0;
    for (; n_bytes > 0; n_bytes--) {
        number = number << 8 | (input->length > 0 ? *input->data : 0);
        if (input->length > 0) {
            input->data++;
            input->length--;
        }
    }
    return number;
}

static VmsnapFormatOptions take_format(Input *input) {
    static const VmsnapFormat *const formats[] = {&vmsnap_format_qcow2, &vmsnap_format_vma, &vmsnap_format_raw};
    const VmsnapFormat *format = formats[take(input, 1) % G_N_ELEMENTS(formats)];
    return (VmsnapFormatOptions){.format = format, .cluster_bytes = UINT32_C(512) << take(input, 1) % 9};
}

/* Single bytes, sectors, blocks and clusters, and what is a little off. */
static GArray *take_extents(Input *input) {
    static const unsigned shifts[] = {0, 3, 9, 9, 10, 11, 12, 12};
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    uint64_t size = 0;
    for (uint64_t n = take(input, 1) % MAX_EXTENTS; n > 0 && size < MAX_DISK_BYTES; n--) {
        uint64_t how = take(input, 1), length = (take(input, 1) + 1) << shifts[how / 2 % G_N_ELEMENTS(shifts)];
        length = MIN(length, MAX_DISK_BYTES - size);
        extents_append(extents, how % 2 ? VMSNAP_EXTENT_ZERO : VMSNAP_EXTENT_DATA, length);
        size += length;
    }
    return extents;
}

static void extents_pad_to_sector(GArray *extents) {
    uint64_t size = 0;
    for (guint i = 0; i < extents->len; i++)
        size += g_array_index(extents, VmsnapExtent, i).length_bytes;
    if (size % SECTOR_BYTES != 0)
        extents_append(extents, VMSNAP_EXTENT_ZERO, SECTOR_BYTES - size % SECTOR_BYTES);
}

/* As long as the disk. */
static GArray *take_changes(Input *input, uint64_t size_bytes) {
    g_autoptr(GArray) taken = take_extents(input);
    GArray *changes = g_array_new(FALSE, FALSE, sizeof(VmsnapExtent));
    for (guint i = 0; i < taken->len && size_bytes > 0; i++) {
        VmsnapExtent extent = g_array_index(taken, VmsnapExtent, i);
        uint64_t length = MIN(extent.length_bytes, size_bytes);
        extents_append(changes, extent.kind, length);
        size_bytes -= length;
    }
    if (size_bytes > 0)
        extents_append(changes, VMSNAP_EXTENT_CLEAN, size_bytes);
    return changes;
}

static VmsnapSnapshot *take_snapshot(Input *input, const VmsnapFormatOptions *format) {
    static const char *const names[] = {"vda", "vdb", "vdc"};
    VmsnapSnapshot *snapshot = memory_snapshot_new(NULL);
    uint64_t n_disks = 1 + take(input, 1) % G_N_ELEMENTS(names);
    for (uint64_t i = 0; i < n_disks; i++) {
        GArray *extents = take_extents(input);
        if (format->format == &vmsnap_format_qcow2)
            extents_pad_to_sector(extents);
        VmsnapDisk *disk = memory_snapshot_add_disk(snapshot, names[i], extents);
        if (format->format->shows_changes && take(input, 1) % 2)
            memory_disk_set_changes(disk, "c1", take_changes(input, disk->size_bytes));
    }
    return snapshot;
}

static void check_reads(Input *input, const NaiveFixture *fixture, const VmsnapLayout *layout) {
    g_autoptr(GByteArray) file = naive_read_all(layout);
    VmsnapReader *reader = vmsnap_reader_new(layout, &fixture->view->resources);
    for (int n = 0; n < MAX_READS && input->length > 0 && file->len > 0; n++) {
        uint64_t offset = take(input, 3) % file->len, length = 1 + take(input, 2) % (file->len - offset);
        naive_check_range(layout, file, offset, length);
        g_autoptr(GByteArray) data = naive_reader_read(reader, offset, length);
        g_assert_cmpmem(data->data, data->len, file->data + offset, length);
    }
    vmsnap_reader_close(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    Input input = {data, length};
    VmsnapFormatOptions format = take_format(&input);
    NaiveFixture fixture;
    naive_fixture_init(&fixture, take_snapshot(&input, &format), &format);
    naive_check_files(&fixture);
    for (guint i = 0; i < fixture.layouts->len; i++)
        check_reads(&input, &fixture, g_ptr_array_index(fixture.layouts, i));
    naive_fixture_clear(&fixture);
    return 0;
}

/* The memory backend takes its random numbers from GLib's harness. */
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static char name[] = "fuzz_layout", seed_option[] = "--seed=R02S00000001000000010000000100000001";
    static char *arguments[] = {name, seed_option, NULL};
    int n_arguments = 2;
    char **fixed = arguments;
    (void)argc;
    (void)argv;
    g_test_init(&n_arguments, &fixed, NULL);
    return 0;
}
