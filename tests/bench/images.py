# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The disks that are read: qcow2 images with data in given places, written as fast as the real disk takes them.

qemu-img could make them, too, but only out of a raw file of the same size first, and not with clusters that stand for
several places of the disk: which keeps large disks in the page cache, as everything here should be.
"""

import array
import functools
import os
import random
import struct
import sys

MIB = 1024 * 1024
GIB = 1024 * MIB
TIB = 1024 * GIB
COPIED = 1 << 63  # qcow2: nobody else refers to this cluster


def _be(kind, numbers):
    """Big-endian integers; KIND is one of the module array's."""
    values = array.array(kind, numbers)
    if sys.byteorder == 'little':
        values.byteswap()
    return values.tobytes()


@functools.cache
def noise():
    """64 MiB that cannot be compressed."""
    return os.urandom(64 * MIB)


def write_noise(file, size):
    while size:
        size -= file.write(memoryview(noise())[:size])


def write(path, size, extents, distinct=0, cluster=64 * 1024):
    """
    Makes a qcow2 image of SIZE bytes with noise in EXTENTS, a list of (start, end) at clusters' borders. If DISTINCT is
    not 0, at most so many bytes are stored, and stand for all extents in turn. The image may be written to.
    """
    def clusters_for(count):
        return -(-count // cluster)

    entries = cluster // 8
    used = [number for start, end in extents for number in range(start // cluster, end // cluster)]
    data = min(len(used), distinct // cluster) if distinct else len(used)
    tables = sorted({number // entries for number in used})
    l1_entries = -(-size // (entries * cluster))

    # In this order: header, refcount table, L1 table, refcounts, L2 tables, data.
    l1 = 2
    refcounts = l1 + clusters_for(8 * l1_entries)
    rest = refcounts + len(tables) + data
    blocks = -(-rest // (cluster // 2 - 1))
    l2 = refcounts + blocks
    first = l2 + len(tables)

    l1_table = [0] * l1_entries
    l2_table = [0] * (len(tables) * entries)
    place = {table: i for i, table in enumerate(tables)}
    for table, i in place.items():
        l1_table[table] = (l2 + i) * cluster | COPIED
    uses = [(len(used) - i + data - 1) // data for i in range(data)]
    for i, number in enumerate(used):
        host = (first + i % data) * cluster
        l2_table[place[number // entries] * entries + number % entries] = host | (COPIED if uses[i % data] == 1 else 0)

    header = struct.pack('>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, 0, 0, cluster.bit_length() - 1, size, 0, l1_entries,
                         l1 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104) + bytes(8)
    with open(path, 'wb') as file:
        for at, content in ((0, header),
                            (1, _be('Q', [(refcounts + i) * cluster for i in range(blocks)])),
                            (l1, _be('Q', l1_table)),
                            (refcounts, _be('H', [1] * first + uses)),
                            (l2, _be('Q', l2_table))):
            file.seek(at * cluster)
            file.write(content)
        file.truncate(first * cluster)
        file.seek(first * cluster)
        write_noise(file, data * cluster)


def dense(size):
    return [(0, size)]


def scattered(size, share, run=MIB):
    """Runs of data in random places, that make up SHARE of a disk."""
    runs = size // run
    return [(at * run, (at + 1) * run) for at in sorted(random.Random(1).sample(range(runs), int(share * runs)))]


def alternating(data, count):
    """DATA bytes in COUNT extents, with a hole as long as the extent behind each."""
    length = data // count
    return [(2 * i * length, (2 * i + 1) * length) for i in range(count)]
