# SPDX-License-Identifier: LGPL-2.1-or-later

"""What test_truth.py proves, of a QEMU without libvirt."""

import test_truth
from bare import BareVm


class Zoo(test_truth.Zoo):
    @classmethod
    def make_vm(cls):
        return BareVm(test_truth.make_zoo())
