# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A reader of Proxmox VE's archives, written from the facts of the format alone, so that what it accepts is more than what
vmsnap's writer believes. It reads a stream from its beginning to its end, as a restore does, and takes nothing on trust.
"""

import hashlib
import struct
import uuid

HEADER = struct.Struct('>4sI16sq16sIII')
HEADER_SIZE = 12288
TABLE = struct.Struct('>256I')
DEVICE = struct.Struct('>IIQQQ')
EXTENT = struct.Struct('>4sHH16s16s')
EXTENT_SIZE = 512
INFO = struct.Struct('>59Q')
BLOCK = 4096
CLUSTER = 16 * BLOCK


class Invalid(Exception):
    """No archive."""


def demand(condition, what):
    if not condition:
        raise Invalid(what)


def read_exactly(stream, length):
    parts = []
    while length > 0 and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    demand(length == 0, 'the archive is cut short')
    return b''.join(parts)


def check_md5(data, offset, expected, what):
    zeroed = data[:offset] + bytes(16) + data[offset + 16:]
    demand(hashlib.md5(zeroed).digest() == expected, f'the checksum of {what} is wrong')


class Archive:
    """What the header says: uuid, ctime, configs (name to bytes), devices (number to name and size)."""

    def __init__(self, stream):
        self.stream = stream
        start = read_exactly(stream, HEADER_SIZE)
        magic, version, raw_uuid, self.ctime, md5, blob_offset, blob_size, size = HEADER.unpack_from(start)
        demand(magic == b'VMA\0' and version == 1, 'this is no archive')
        demand(size >= HEADER_SIZE and blob_offset >= HEADER_SIZE and blob_offset + blob_size <= size,
               'the header does not fit together')
        header = start + read_exactly(stream, size - HEADER_SIZE)
        check_md5(header, 32, md5, 'the header')
        demand(not any(header[60:60 + 1984]), 'something reserved is used')
        self.uuid = uuid.UUID(bytes=raw_uuid)
        self.blobs = header[blob_offset:blob_offset + blob_size]
        demand(self.blobs[0] == 0, 'the blobs do not begin with a zero')
        names, data = TABLE.unpack_from(header, 2044), TABLE.unpack_from(header, 3068)
        self.configs = {self._text(name): self._blob(content) for name, content in zip(names, data) if name and content}
        self.devices = {}
        for number in range(256):
            name, zero, size, *zeroes = DEVICE.unpack_from(header, 4096 + number * DEVICE.size)
            demand(not zero and not any(zeroes), 'something reserved of a device is used')
            if name:
                demand(1 <= number <= 254, f'there is a device {number}')
                self.devices[number] = (self._text(name), size)

    def _blob(self, offset):
        length, = struct.unpack_from('<H', self.blobs, offset)
        blob = self.blobs[offset + 2:offset + 2 + length]
        demand(len(blob) == length, 'a blob is cut short')
        return blob

    def _text(self, offset):
        text = self._blob(offset)
        demand(text[-1:] == b'\0' and b'\0' not in text[:-1], 'a name does not end')
        return text[:-1].decode()

    def extract(self, directory):
        """Writes each device into a file of its name, with holes, and returns how many blocks were stored."""
        files = {}
        for number, (name, size) in self.devices.items():
            files[number] = open(directory / f'{name}.raw', 'wb')
            files[number].truncate(size)
        seen = {number: set() for number in self.devices}
        stored = 0
        while header := self.stream.read(EXTENT_SIZE):
            header += read_exactly(self.stream, EXTENT_SIZE - len(header))
            stored += self._extract_extent(header, files, seen)
        for number, (name, size) in self.devices.items():
            files[number].close()
            demand(seen[number] == set(range(-(-size // CLUSTER))), f'clusters of {name} are missing')
        return stored

    def _extract_extent(self, header, files, seen):
        magic, reserved, n_blocks, raw_uuid, md5 = EXTENT.unpack_from(header)
        demand(magic == b'VMAE' and not reserved and raw_uuid == self.uuid.bytes, 'an extent is none')
        check_md5(header, 24, md5, 'an extent')
        found = 0
        for info in INFO.unpack_from(header, EXTENT.size):
            mask, device, cluster = info >> 48, info >> 32 & 0xff, info & 0xffffffff
            if not device:
                demand(info == 0, 'what is no cluster says something')
                continue
            demand(device in files and cluster not in seen[device], f'cluster {cluster} of {device} comes twice')
            seen[device].add(cluster)
            for bit in range(16):
                if mask >> bit & 1:
                    self._extract_block(files[device], self.devices[device][1], cluster * CLUSTER + bit * BLOCK)
                    found += 1
        demand(found == n_blocks, 'an extent has another number of blocks than it says')
        return found

    def _extract_block(self, file, size, offset):
        block = read_exactly(self.stream, BLOCK)
        demand(offset < size, 'a block lies behind the end')
        demand(not any(block[size - offset:]), 'what pads a disk is not zero')
        file.seek(offset)
        file.write(block[:size - offset])
