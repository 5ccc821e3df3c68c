# SPDX-License-Identifier: LGPL-2.1-or-later

"""A hundred backups of a machine that writes leave nothing behind that grows: in no process, and in no directory."""

import json
import os
import re
import statistics
from pathlib import Path

import faults
import lib
from faults import Libvirtd
from lib import Disk, Mount, Vm

tearDownModule = faults.report_matrix

CYCLES = 100

# What processes need once, they have by then.
WARM_UP = 40

# Compared are this many cycles after that, and at the end.
SPAN = 20

# Directories in which a cycle makes files, or has others make them.
DIRECTORIES = ('/run', '/var/lib/vmsnap', '/var/lib/libvirt', '/var/cache/libvirt', '/etc/libvirt')


def look_at(pid):
    """What a process uses: numbers of descriptors and threads, and kilobytes."""
    process = Path(f'/proc/{pid}')
    # Not QEMU's pool for I/O, of which there are as many as there was to do in the last ten seconds.
    threads = [task for task in (process / 'task').iterdir() if (task / 'comm').read_text() != 'worker\n']
    kb = dict(re.findall(r'^(\w+):\s+(\d+)', (process / 'status').read_text() + (process / 'smaps_rollup').read_text(),
                         re.MULTILINE))
    return {'descriptors': len(os.listdir(process / 'fd')), 'threads': len(threads),
            'VmRSS': int(kb['VmRSS']), 'Private_Dirty': int(kb['Private_Dirty'])}


def files():
    """All files in DIRECTORIES, but for those of the sandbox itself."""
    found = set()
    for directory in DIRECTORIES:
        for path, directories, names in os.walk(directory):
            if path == '/run' and 'sandbox' in directories:
                directories.remove('sandbox')
            found |= {f'{path}/{name}' for name in directories + names}
    return found


class Cycles(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return Vm([Disk(driver='discard="unmap"'), Disk(format='raw')])

    def block_nodes(self):
        """The names of QEMU's own block nodes; libvirt numbers those that come with a job."""
        answer = self.vm.virsh('qemu-monitor-command', self.vm.name, '{"execute": "query-named-block-nodes"}')
        return sorted(node['node-name'] for node in json.loads(answer)['return'])

    def cycle(self, number):
        with Mount(self.vm) as mount:
            lib.read_all(mount / 'vda.raw')
            if number % 10 == 0:
                lib.check_instant(mount / 'vda.raw', mount / 'vdb.raw')
            daemon = look_at(mount.daemon())
        return {'daemon': daemon, 'libvirtd': look_at(Libvirtd.pid()), 'QEMU': look_at(self.vm.pid())}

    # Kilobytes by which the medians of two spans may differ. A process whose memory is in use is never quite still;
    # a page lost in each cycle would be 4 * (CYCLES - WARM_UP - SPAN) = 160.
    TOLERANCE_KB = {'daemon': 1024, 'libvirtd': 1024, 'QEMU': 4096}

    def test_nothing_grows(self):
        self.vm.start_writer()
        self.cycle(0)
        files_before, nodes_before = files(), self.block_nodes()
        looks = []
        for number in range(CYCLES):
            looks.append(self.cycle(number))
        if os.environ.get('VMSNAP_CYCLES'):
            Path(os.environ['VMSNAP_CYCLES']).write_text(json.dumps(looks))
        for process, tolerance_kb in self.TOLERANCE_KB.items():
            for what in looks[0][process]:
                values = [look[process][what] for look in looks]
                early, late = values[WARM_UP:WARM_UP + SPAN], values[-SPAN:]
                with self.subTest(process=process, what=what):
                    if what in ('descriptors', 'threads'):
                        # Some come and go, as libvirtd's workers do; what is lost is lost in each cycle.
                        self.assertLess(statistics.median(late) - statistics.median(early), SPAN, values)
                    else:
                        growth_kb = statistics.median(late) - statistics.median(early)
                        self.assertLess(growth_kb, tolerance_kb, values)
        self.assertEqual(files(), files_before)
        self.assertEqual(self.block_nodes(), nodes_before)
        self.vm.stop_writer()
        self.vm.check()
