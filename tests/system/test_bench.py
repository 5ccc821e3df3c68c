# SPDX-License-Identifier: LGPL-2.1-or-later

"""tests/bench works: every row is measured for every contestant, and table, figures and chart are written."""

import json
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import lib
from lib import run

BENCH = Path(__file__).resolve().parent.parent / 'bench/bench.py'

BRIDGES = {'nbdfuse', 'QEMU FUSE'}
FILES = {'nbdcopy', *BRIDGES}
BACKUPS = {'nbdcopy', 'nbdcopy and its job', 'virtnbdbackup'}
# Who is measured besides vmsnap.
ROWS = {
    'dd-1M': FILES, 'dd-128k': FILES, 'cat': FILES, 'cp': FILES, 'dd-10k': BRIDGES, 'dd-4k': BRIDGES,
    '8-readers': FILES, '4-disks': FILES, 'random-1': BRIDGES, 'random-16': BRIDGES, 'cpu': FILES, 'cpu-qemu': FILES,
    'memory': set(), 'backup-cp': BACKUPS, 'backup-tar': BACKUPS, 'zero': set(), 'zero-read': set(),
    'mount': {'virsh backup-begin'}, 'sparse-walk': set(),
    'growth-8M': {'nbdcopy'}, 'growth-16M': {'nbdcopy'},
    'growth-10-extents': {'nbdcopy'}, 'growth-100-extents': {'nbdcopy'},
}
WRITING = ('dd-1M', 'dd-128k', 'cat', 'cp')


class Bench(unittest.TestCase):
    """One run, with hardly any data, of all there is. How fast anything is does not matter here."""

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'results'
        cls.printed = run(BENCH, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.figures = json.loads((cls.output / 'bench.json').read_text())

    def test_figures(self):
        found = {(row['name'], row['guest']): row for row in self.figures['rows']}
        expected = {(name, 'idle') for name in ROWS} | {(name, 'writing') for name in WRITING}
        self.assertEqual(set(found), expected)
        for (name, guest), row in found.items():
            with self.subTest(row=name, guest=guest):
                self.assertEqual(set(row['contestants']), {'vmsnap'} | ROWS[name])
                for contestant, figures in row['contestants'].items():
                    self.assertEqual(len(figures['rounds']), 1)
                    if name == 'zero-read':
                        self.assertEqual(figures['median'], 0)
                    else:
                        self.assertGreater(figures['median'], 0, contestant)
                for target in row['targets']:
                    self.assertIn('vmsnap', target['reached'])

    def test_circumstances(self):
        self.assertEqual(set(self.figures['versions']),
                         {'vmsnap', 'QEMU', 'libvirt', 'libnbd', 'virtnbdbackup', 'fio', 'kernel'})
        self.assertTrue(self.figures['cpu'])

    def test_table(self):
        table = (self.output / 'bench.md').read_text()
        self.assertEqual(self.printed.rstrip('\n'), table.rstrip('\n'))
        lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines() if line[:1] == '|']
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual([line[0] for line in lines[2:]], [row['name'] for row in self.figures['rows']])

    def test_chart(self):
        chart = ElementTree.parse(self.output / 'bench.svg').getroot()
        text = ' '.join(chart.itertext())
        for name in ('vmsnap', *FILES, 'GB/s'):
            self.assertIn(name, text)
