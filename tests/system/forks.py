# SPDX-License-Identifier: LGPL-2.1-or-later

"""
libvirtd (9.0) changes the owners of files in a child that it forks while it has threads, and the child tells what went
wrong through g_strerror(), which takes a lock. Had another thread that lock at the fork, the child waits for ever, and
with it the thread of libvirtd that waits for the child, which is often the one that handles all events of a guest. At
the end of a backup job that is not vmsnap's, something goes wrong there, since libvirt removes the last scratch file
first. That is a matter of chance: so such children are ended here, and libvirtd goes on.
"""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

INTERVAL_S = 2
# They live for milliseconds.
HUNG_AFTER_LOOKS = 5


def _libvirtd():
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(Path('/run/libvirtd.pid').read_text())


def _children(parent):
    """Its children that have not become another program."""
    found = set()
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            stat = (directory / 'stat').read_text().rpartition(')')[2].split()
            if int(stat[1]) == parent and Path(os.readlink(directory / 'exe')).name == 'libvirtd':
                found.add(int(directory.name))
    return found


def _watch():
    looks = {}
    while True:
        time.sleep(INTERVAL_S)
        parent = _libvirtd()
        looks = {pid: looks.get(pid, 0) + 1 for pid in (_children(parent) if parent else ())}
        for pid, number in looks.items():
            if number == HUNG_AFTER_LOOKS:
                print(f'# libvirtd had forked a child that hung: process {pid} is ended', flush=True)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def watch():
    """Begins to look for such children, for as long as this process lives."""
    threading.Thread(target=_watch, daemon=True).start()
