#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Readers that compare each byte that they get with the truth:

    readers.py COUNT START LENGTH TRUTH-DIRECTORY MOUNT NAME...

COUNT threads read LENGTH bytes from START on of the files NAME, over and over, each in one of several ways. One that
gets an error tries on for a moment, since a snapshot that is lost must stay lost, and ends. What comes on stdin is a
word in a line, and answered by one line of JSON on stdout:

    progress    the bytes that each reader has got so far
    wait S      waits up to S seconds until all have ended by themselves, and tells the results
    stop        ends all that still read, and tells the results
"""

import contextlib
import errno
import itertools
import json
import mmap
import os
import random
import sys
import threading
import time
from pathlib import Path

MIB = 1024 * 1024
AFTER_ERROR_S = 0.5
# After each read: the guest, and who clears up, want the processor, too.
PACE_S = 0.003
STOP_S = 15


class Reader(threading.Thread):
    """One way to read: in sequence or at random, past the page cache or through it."""

    def __init__(self, number, files, start, length):
        super().__init__(daemon=True)
        self._files = files
        self._start, self._length = start, length
        self._direct = number % 2 == 0
        self._at_random = number // 2 % 2 == 1
        self._chance = random.Random(number)
        self._turn = number // 4
        self._buffer = mmap.mmap(-1, MIB)
        self._stopping = threading.Event()
        self.bytes = 0
        self.error = self.error_at = self.wrong = None

    def result(self):
        return {'bytes': self.bytes, 'error': self.error, 'error_at': self.error_at, 'wrong': self.wrong,
                'ended': not self.is_alive()}

    def stop(self):
        self._stopping.set()

    def run(self):
        end = None
        try:
            for name, fd, truth, offset, length in self._ranges():
                if self._stopping.is_set() or end and time.monotonic() > end or self.wrong:
                    return
                try:
                    self._read(name, fd, truth, offset, length)
                except OSError as error:
                    if not self.error:
                        self.error, self.error_at = errno.errorcode[error.errno], time.monotonic()
                        end = self.error_at + AFTER_ERROR_S
                    time.sleep(0.01)
        except Exception as error:  # what a thread does not tell, nobody learns
            self.wrong = repr(error)

    def _read(self, name, fd, truth, offset, length):
        # As read(2) has it, an error on the way can make a read a short one, and is told to the next.
        while length and not self.wrong:
            got = os.preadv(fd, [memoryview(self._buffer)[:length]], offset)
            if got == 0 or self._buffer[:got] != truth[offset:offset + got]:
                after = ', after an error' if self.error else ''
                self.wrong = f'{name}: {got} bytes at {offset} for {length}{after} are not the instant'
            offset, length = offset + got, length - got
            self.bytes += got
        time.sleep(PACE_S)

    def _ranges(self):
        unit, size = (4096, MIB) if self._direct else (1, 128 * 1024)
        for turn in itertools.count(self._turn):
            name, fd, direct_fd, truth = self._files[turn % len(self._files)]
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            ways = self._random(unit, size) if self._at_random else self._sequence(size)
            for offset, length in ways:
                yield name, direct_fd if self._direct else fd, truth, offset, length

    def _sequence(self, size):
        return [(offset, size) for offset in range(self._start, self._start + self._length, size)]

    def _random(self, unit, size):
        for _ in range(32):
            offset = self._chance.randrange(self._length // unit) * unit
            length = self._chance.randrange(1, size // 4 // unit + 1) * unit
            yield self._start + offset, min(length, self._length - offset)


def main(count, start, length, truths, mount, *names):
    files = []
    for name in names:
        with open(Path(truths) / name, 'rb') as file:
            truth = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        path = Path(mount) / name
        files.append((name, os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY | os.O_DIRECT), truth))
    readers = [Reader(number, files, int(start), int(length)) for number in range(int(count))]
    for reader in readers:
        reader.start()

    for line in sys.stdin:
        word, *arguments = line.split()
        if word == 'progress':
            answer = [reader.bytes for reader in readers]
        else:
            if word == 'stop':
                for reader in readers:
                    reader.stop()
            end = time.monotonic() + (float(arguments[0]) if arguments else STOP_S)
            for reader in readers:
                reader.join(max(end - time.monotonic(), 0))
            answer = [reader.result() for reader in readers]
        print(json.dumps(answer), flush=True)
    os._exit(0)  # without a wait for a thread that hangs


if __name__ == '__main__':
    main(*sys.argv[1:])
