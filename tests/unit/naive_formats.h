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

/** Checks the extent that @bytes, the middle of a file, begin with. */
void naive_check_vma_extent(const GByteArray *bytes, const VmsnapSnapshot *snapshot);

/** Checks each file of the fixture, and that its segments and its size on disk are those of its bytes. */
void naive_check_files(const NaiveFixture *fixture);

/** Checks that the segments of a layout join, and fit its bytes. */
void naive_check_segments(const VmsnapLayout *layout, const GByteArray *file);

/** Checks one read of a range, which lies inside the file, against its bytes. */
void naive_check_range(const VmsnapLayout *layout, const GByteArray *file, uint64_t offset, size_t length);
