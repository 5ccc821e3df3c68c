#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The demo that tests/demo runs in the sandbox: a backup of a virtual machine that goes on writing, and its restore.

Every step that can fail is checked; the first that does ends the demo with its error.
"""

import re
import sys
import time

import lib
from bare import BareVm
from lib import MIB, Disk, Mount, Vm, run

_start = time.monotonic()


def step(title):
    print(f'\n\033[1m{title}\033[0m', flush=True)


def say(text):
    """What was found, and at what time."""
    print(f'   {time.monotonic() - _start:5.1f} s  {text}', flush=True)


class User:
    """Types commands. The paths and names that are shown are shorter than the real ones: SHOWN is {real: shown}."""

    def __init__(self, shown):
        self._shown = shown

    def types(self, command):
        real_command = command
        for real, shown in self._shown.items():
            real_command = re.sub(rf'(?<![\w/]){re.escape(shown)}\b', real, real_command)
        print(f'   $ {command}', flush=True)
        begin = time.monotonic()
        output = run('sh', '-c', real_command).stdout
        seconds = time.monotonic() - begin
        for real, shown in self._shown.items():
            output = output.replace(real, shown)
        for line in output.splitlines():
            print(f'     {line}')
        print(f'     ({seconds:.2f} s)', flush=True)


def back_up_with_libvirt():
    step('2. Boot it: two disks, and a writer that puts the same numbered records on both, one after the other')
    vm = Vm([Disk(filesystem=64 * MIB), Disk()]).start()
    vm.run('mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/photos bs=1M count=32 status=none')
    photos = vm.run('sync; sha256sum /mnt/photos')
    vm.start_writer()
    say(f'{vm.name} runs under libvirt, and has written record {vm.alive()}')

    step('3. Mount its present state')
    copy = lib.make_directory('copy')
    mount = Mount(vm)
    user = User({vm.name: 'vm1', str(mount.point): '/mnt/snap', str(copy): '/backup'})
    user.types('mount.vmsnap vm1 /mnt/snap')
    at_mount = vm.alive()
    user.types('ls -ls /mnt/snap')

    step('4. Back it up with what everybody has, while the guest goes on writing')
    user.types('tar -cSf /backup/vm1.tar -C /mnt/snap .')
    user.types('ls -ls /backup/vm1.tar')
    vm.wait_written()
    at_end = vm.alive()

    step('5. Unmount: the backup job ends')
    user.types('umount /mnt/snap')
    mount.assert_nothing_left()
    vm.wait_written()
    say('no job, no scratch, no process is left, and the guest runs on')

    step('6. Is the copy one instant?')
    user.types('tar -xSf /backup/vm1.tar -C /backup')
    newest = lib.check_instant(copy / 'vda.raw', copy / 'vdb.raw')
    say(f'yes: both disks end with record {newest}, whole and without a gap')
    say(f'(the guest was at about {at_mount} when mount returned, at {at_end} after tar, and is at {vm.alive()} now)')
    if newest > at_end:
        sys.exit('demo: the copy is newer than the guest: this cannot be')

    step('7. From day to day: only what has changed, in images that rest on one another')
    chain = lib.make_directory('chain')
    mount = Mount(vm)
    user = User({vm.name: 'vm1', str(mount.point): '/mnt/snap', str(chain): '/chain'})
    for _ in range(2):
        vm.wait_written()
        user.types('mount.vmsnap vm1 /mnt/snap -o incremental,format=qcow2')
        user.types('rsync -a /mnt/snap/ /chain/')
        user.types('umount /mnt/snap')
    mount.assert_nothing_left()
    user.types('cd /chain; ls -s vda.*.qcow2 vdb.*.qcow2')
    for disk in ('vda', 'vdb'):
        image = max(chain.glob(f'{disk}.*.qcow2'))
        run('qemu-img', 'convert', '-O', 'raw', image, chain / f'{disk}.raw')
    chained = lib.check_instant(chain / 'vda.raw', chain / 'vdb.raw')
    say(f'the newest of them, with what they rest on, are one instant, too: both end with record {chained}')
    if chained <= newest:
        sys.exit('demo: an incremental backup is older than the full one before it: this cannot be')

    step('8. Restore the first one: boot the copy')
    vm.destroy()
    say('by its domain.xml, in which only name, UUID and paths are changed')
    restored = Vm.restore(copy).start()
    found = restored.check()
    if found != newest:
        sys.exit(f'demo: the restored guest finds record {found}, the copy had {newest}')
    say(f'{restored.name} has booted from the copy, and finds record {found} on its disks')
    if restored.run('mount -t ext4 /dev/vda /mnt && sha256sum /mnt/photos') != photos:
        sys.exit('demo: the restored guest has another file than the first one wrote')
    restored.start_writer()
    say(f'its file has the right SHA-256, and its writer goes on: record {restored.alive()}')

    restored.close()
    vm.close()


def back_up_without_libvirt():
    step('9. The same without libvirt: a QEMU that somebody has started with -qmp unix:/run/vm2.qmp,server=on,wait=off')
    vm = BareVm().start()
    vm.start_writer()
    nodes = vm.graph()
    copy = lib.make_directory('copy2')
    mount = Mount(vm)
    user = User({str(vm.qmp): '/run/vm2.qmp', str(mount.point): '/mnt/snap', str(copy): '/backup2'})
    user.types('mount.vmsnap qmp:/run/vm2.qmp /mnt/snap -o release')
    user.types('ls -s /mnt/snap')
    user.types('cp --sparse=always /mnt/snap/* /backup2/')
    user.types('cat /mnt/snap/.vmsnap/status')
    vm.wait_written()
    at_end = vm.alive()
    user.types('umount /mnt/snap')
    mount.assert_nothing_left()
    vm.wait_written()
    say('its block nodes are as they were' if vm.graph() == nodes else sys.exit('demo: the block nodes have changed'))
    newest = lib.check_instant(copy / 'vda.raw', copy / 'vdb.raw')
    say(f'both disks of the copy end with record {newest}; the guest was at {at_end}, and is at {vm.alive()} now')
    if newest > at_end:
        sys.exit('demo: the copy is newer than the guest: this cannot be')


def main():
    back_up_with_libvirt()
    back_up_without_libvirt()
    step(f'Done in {time.monotonic() - _start:.0f} s.')


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'\ndemo: FAILED: {error}')
