# SPDX-License-Identifier: LGPL-2.1-or-later

"""The fault matrix of test_faults.py, of a QEMU without libvirt."""

import faults
import lib
import test_faults
from bare import Bare
from lib import Mount, complaint, run

tearDownModule = faults.report_matrix


class Processes(Bare, test_faults.Processes):
    def test_cleanup_leaves_a_foreign_job_alone(self):
        """What vmsnap has not begun is not its own to end; nor does a mount take its place."""
        self.vm.call('blockdev-add', driver='null-co', size=256 * lib.MIB, node_name='target')
        job = {'job_id': 'theirs', 'device': 'drive-vdb', 'target': 'target', 'sync': 'full', 'speed': 1}
        mount = Mount(self.vm)
        with self.row('--cleanup, mount', 'while a foreign job runs') as row:
            self.vm.call('blockdev-backup', **job)
            try:
                run('mount.vmsnap', '--cleanup')
                run('mount.vmsnap', '--cleanup', self.vm.source)
                said = complaint('mount.vmsnap', self.vm.source, mount.point, status=32)
                self.assertIn("its block job 'theirs' (backup) runs", said)
                jobs = self.vm.call('query-block-jobs')
                self.assertEqual([each['device'] for each in jobs], ['theirs'])
            finally:
                self.vm.call('block-job-cancel', device='theirs', force=True)
                lib.wait_until(lambda: not self.vm.call('query-block-jobs'), 'their job ends')
                self.vm.call('blockdev-del', node_name='target')
            self.check_after(row, mount, 'its owner', within=3)
