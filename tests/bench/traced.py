# SPDX-License-Identifier: LGPL-2.1-or-later

"""A machine that tells what becomes of its guest's requests, and when: by QEMU's log, in the clock of this computer."""

import re
from dataclasses import dataclass

from bare import BareVm

# Events of QEMU.
WRITE, DONE, COPY = 'virtio_blk_handle_write', 'virtio_blk_req_complete', 'block_copy_process'
LINE = re.compile(rf'^\d+@(\d+\.\d+):({WRITE}|{DONE}|{COPY}) (.*)$', re.MULTILINE)


@dataclass
class Write:
    """A write that was done, in seconds of the real-time clock."""
    begin: float
    end: float
    copied: bool  # whether what it overwrote had to be copied first


class TracedVm(BareVm):
    """A machine with a log of its guest's writes, and of copies before them."""

    def __init__(self, disks):
        super().__init__(disks, extra=('-msg', 'timestamp=on'))
        self._log = self.directory / 'qemu.log'

    def start(self):
        super().start()
        for event in (WRITE, DONE, COPY):
            self.call('trace-event-set-state', name=event, enable=True)
        return self

    def log_size(self):
        return self._log.stat().st_size

    def _events(self, since):
        """What the log says from there on: (when, which, the words that follow)."""
        with open(self._log) as log:
            log.seek(since)
            return [(float(at), event, words.split()) for at, event, words in LINE.findall(log.read())]

    def requests_done(self, since):
        """When each one was."""
        return [at for at, event, _ in self._events(since) if event == DONE]

    def writes(self, since):
        """All Writes of a guest that does one after the other."""
        found, begun, copied = [], {}, False
        for at, event, words in self._events(since):
            if event == COPY:
                copied = True
                continue
            request = words[words.index('req') + 1]
            if event == WRITE:
                begun[request], copied = at, False
            elif request in begun:
                found.append(Write(begun.pop(request), at, copied))
        return found
