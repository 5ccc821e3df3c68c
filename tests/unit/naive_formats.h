/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a format, taken apart from their bytes alone: what a disk of the memory backend must have become. Nothing of
 * fs/ is used for that but to read.
 */
#pragma once

#include "fs/view.h"

/** A started view of a snapshot of the memory backend. */
typedef struct {
    VmsnapSnapshot *snapshot;
    VmsnapView *view;
    VmsnapFormatOptions format;
    GPtrArray *layouts; /* of VmsnapLayout, not owned: one a file, in the order of the disks */
} NaiveFixture;

/** @snapshot: (transfer full): with its disks and files; must be what the format can hold */
void naive_fixture_init(NaiveFixture *fixture, VmsnapSnapshot *snapshot, const VmsnapFormatOptions *format);
void naive_fixture_clear(NaiveFixture *fixture);

/** Reads a range of a file, which lies inside it. */
void naive_read(const VmsnapLayout *layout, uint64_t offset, size_t length, uint8_t *buffer);

/** Reads a range as somebody does who has the file open; the range may reach beyond its end. */
GByteArray *naive_reader_read(VmsnapReader *reader, uint64_t offset, size_t length);

/** Reads a file from its beginning to its end. */
GByteArray *naive_read_all(const VmsnapLayout *layout);

/** Checks that a whole file is what the format asks for, and shows what the disks hold and no more. */
void naive_check_qcow2(const GByteArray *file, const VmsnapDisk *disk, uint32_t cluster_bytes);
void naive_check_vma(const GByteArray *file, const VmsnapSnapshot *snapshot);

/**
 * naive_qcow2_dup_backing:
 * @ret_format: (transfer full): what the header says of its format, or NULL
 *
 * Returns: (transfer full): the name of the backing file, or NULL if there is none.
 */
char *naive_qcow2_dup_backing(const GByteArray *file, char **ret_format);

/**
 * naive_qcow2_expand:
 * @disk: has the bytes of the backing file, and gets those of the image
 */
void naive_qcow2_expand(const GByteArray *file, GByteArray *disk);

/** Checks the extent that @bytes, the middle of a file, begin with. */
void naive_check_vma_extent(const GByteArray *bytes, const VmsnapSnapshot *snapshot);

/** Checks each file of the fixture, and that its segments and its size on disk are those of its bytes. */
void naive_check_files(const NaiveFixture *fixture);

/** Checks that the segments of a layout join, and fit its bytes. */
void naive_check_segments(const VmsnapLayout *layout, const GByteArray *file);

/** Checks one read of a range, which lies inside the file, against its bytes. */
void naive_check_range(const VmsnapLayout *layout, const GByteArray *file, uint64_t offset, size_t length);

/** Reads any @n ranges, also as somebody does who has the file open. */
void naive_check_reads(const NaiveFixture *fixture, const VmsnapLayout *layout, const GByteArray *file, int n);

/** Asks COMPUTED segments, if any, for any @n of their ranges. */
void naive_check_computed(const VmsnapLayout *layout, const GByteArray *file, int n);

/** Returns: the offset that SEEK_DATA or SEEK_HOLE gives, or -errno. */
int64_t layout_seek(const VmsnapLayout *layout, uint64_t offset, int whence);

/** The same, from the segments one by one. */
int64_t naive_seek(const VmsnapLayout *layout, uint64_t offset, int whence);

/** Compares the two from any @n offsets. */
void naive_check_seeks(const VmsnapLayout *layout, int n);
