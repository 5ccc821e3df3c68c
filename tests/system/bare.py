# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Virtual machines without libvirt: a QEMU with monitors, as Proxmox VE, Incus or somebody's own script starts it. They are
used like those of lib.py, so that tests can be of both.
"""

import array
import contextlib
import itertools
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import threading
import time

import lib
from lib import PATIENCE, Disk, Vm


class Refused(AssertionError):
    """QEMU's monitor refuses a command."""


class Monitor:
    """A client of QEMU's monitor."""

    def __init__(self, path, timeout=PATIENCE):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile('rb')
        self._numbers = itertools.count(1)
        assert 'QMP' in json.loads(self._lines.readline())
        self.call('qmp_capabilities')

    def call(self, command, fd=None, **arguments):
        """
        Runs a command and returns what it returns. Underscores in the names of arguments stand for hyphens, but for one
        at the end, which only keeps Python content.
        """
        number = next(self._numbers)
        arguments = {name.rstrip('_').replace('_', '-'): value for name, value in arguments.items()}
        message = json.dumps({'execute': command, 'arguments': arguments, 'id': number}).encode()
        control = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))]
        self._socket.sendmsg([message], control)
        while True:
            answer = json.loads(self._lines.readline())
            if answer.get('id') != number:
                continue
            if 'error' in answer:
                raise Refused(f'{command} {arguments}: {answer["error"]["desc"]}')
            return answer['return']

    def close(self):
        self._lines.close()
        self._socket.close()


class BareVm(Vm):
    """
    A machine whose monitor vmsnap uses is at self.qmp. Its devices have the names of the disks for ids. QEMU runs as
    OWNER, an account, or as USER where the mounts are an ordinary user's. EXTRA are more words for its command line.
    """

    def __init__(self, disks=(Disk(), Disk()), user=None, owner='libvirt-qemu', agent=False, memory=192, extra=()):
        self._owner = user or owner
        self._process = None
        self._monitor = None
        super().__init__(disks, user=user, agent=agent)
        self._own(self.directory)
        self.qmp = self.directory / 'qmp'
        self.mount_options = ''
        self._words = [
            '-name', self.name, '-uuid', self.uuid, '-machine', 'pc', '-cpu', 'qemu64,+rdrand', '-m', str(memory),
            '-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none',
            '-kernel', self.directory / 'vmlinuz', '-initrd', self.directory / 'initrd',
            '-append', 'console=ttyS0 quiet panic=-1 mitigations=off nokaslr cryptomgr.notests',
            '-serial', f'file:{self.console}', '-serial', f'unix:{self.directory}/commands,server=on,wait=off',
            '-qmp', f'unix:{self.qmp},server=on,wait=off', '-qmp', f'unix:{self.directory}/test.qmp,server=on,wait=off']
        for disk, (name, image) in zip(disks, self.images.items()):
            more = ''.join(f',{key.replace("_", "-")}={value}' for key, value in re.findall(r'(\w+)="(\w+)"', disk.driver))
            self._words += ['-drive', f'file={image},if=none,id=drive-{name},format={disk.format}{more}',
                            '-device', f'virtio-blk-pci,drive=drive-{name},id={name}']
        if agent:
            self._words += ['-device', 'virtio-serial', '-chardev',
                            f'socket,id=agent,path={self.directory}/agent,server=on,wait=off',
                            '-device', 'virtserialport,chardev=agent,name=org.qemu.guest_agent.0']
        self._words += extra

    @property
    def source(self):
        return f'qmp:{self.qmp}'

    def _own(self, path):
        account = pwd.getpwnam(self._owner)
        os.chown(path, account.pw_uid, account.pw_gid)

    def virsh(self, *arguments, **_):
        raise AssertionError(f'{self.name} is no domain of libvirt: virsh {" ".join(map(str, arguments))}')

    def define(self):
        return self

    def _launch(self, *more):
        for path in (self.console, self.qmp, self.directory / 'test.qmp', self.directory / 'commands'):
            path.unlink(missing_ok=True)
        account = pwd.getpwnam(self._owner)
        with open(self.directory / 'qemu.log', 'a') as log:
            self._process = subprocess.Popen(
                list(map(str, ['qemu-system-x86_64', *self._words, *more])), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, user=account.pw_uid, group=account.pw_gid, extra_groups=[], start_new_session=True,
                cwd=self.directory)

        def connects():
            assert self._process.poll() is None, (self.directory / 'qemu.log').read_text()
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Monitor(self.directory / 'test.qmp')

        self._monitor = lib.wait_until(connects, f'the monitor of {self.name} answers')

    def start_paused(self):
        self._launch('-S')
        self.note_graph()
        return self

    def start(self):
        self._launch()
        self._wait_booted()
        self.note_graph()
        return self

    def call(self, command, **arguments):
        """A command to QEMU's monitor, over a socket of its own."""
        return self._monitor.call(command, **arguments)

    def pid(self):
        return self._process.pid

    def is_alive(self):
        return self._process is not None and self._process.poll() is None

    def state(self):
        """In libvirt's words."""
        if not self.is_alive():
            return 'shut off'
        try:
            return {'running': 'running'}.get(self.call('query-status')['status'], 'paused')
        except (OSError, ValueError):
            self._process.wait(timeout=PATIENCE)
            return 'shut off'

    def pause(self):
        self.call('stop')

    def resume(self):
        self.call('cont')

    def kill(self, number=signal.SIGKILL):
        self._process.send_signal(number)
        self._process.wait(timeout=PATIENCE)

    def destroy(self):
        self._hang_up()
        self.kill()

    def close(self):
        if self.is_alive():
            self.kill()
        if self._monitor:
            self._monitor.close()
        super()._hang_up()
        self._remove()

    def qemu_io(self, disk, *commands):
        device = f'/machine/peripheral/{disk}/virtio-backend'
        for command in (*commands, 'flush'):
            said = self.call('human-monitor-command', command_line=f'qemu-io -d {device} "{command}"').strip()
            assert not said, said

    def ask_agent(self, command):
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(5)
            try:
                agent.connect(str(self.directory / 'agent'))
                number = time.monotonic_ns() % 2**31
                lines = agent.makefile('rb')
                for each, arguments in (('guest-sync', {'id': number}), (command, {})):
                    agent.sendall(json.dumps({'execute': each, 'arguments': arguments}).encode() + b'\n')
                    answer = json.loads(lines.readline().lstrip(b'\xff'))
                    while each == 'guest-sync' and answer.get('return') != number:
                        answer = json.loads(lines.readline().lstrip(b'\xff'))
                return answer['return']
            except (OSError, KeyError, ValueError) as error:
                raise lib.CommandFailed(f'the agent of {self.name} does not answer {command}: {error!r}') from None

    def graph(self):
        """The block graph, as a set of lines: nodes with what does not change by itself, and who has whom for a child."""
        graph = self.call('x-debug-query-block-graph')
        names = {node['id']: f'{node["type"]} {node["name"]}' for node in graph['nodes']}
        lines = {f'{names[edge["parent"]]} has {names[edge["child"]]} for {edge["name"]}, '
                 f'{sorted(edge["perm"])}, shares {sorted(edge["shared-perm"])}' for edge in graph['edges']}
        keys = ('node-name', 'drv', 'file', 'ro', 'cache', 'detect_zeroes', 'write_threshold')
        lines |= {json.dumps({key: node[key] for key in keys}) for node in self.call('query-named-block-nodes', flat=True)}
        return lines | {f'{block["device"]} of {block.get("qdev")} has {block.get("inserted", {}).get("node-name")}'
                        for block in self.call('query-block')}

    def note_graph(self):
        """From now on, the block graph is to be as it is."""
        self._graph = self.graph()

    def traces(self):
        state = self.state()
        if state == 'shut off':
            return set()
        found = {f'block graph of {self.name}: {line}' for line in self.graph() ^ self._graph}
        found |= {f'export of {self.name}: {export}' for export in self.call('query-block-exports')}
        if state == 'running':  # otherwise QEMU (7.2) keeps what it has been told to close, until a monitor is left again
            found |= {f'descriptors in {self.name}: {fdset}' for fdset in self.call('query-fdsets')}
        if self.has_nbd_server():
            found.add(f'NBD server in {self.name}')
        if self.agent and self.frozen():
            found.add(f'frozen filesystem in {self.name}')
        return found

    def has_nbd_server(self):
        path = self.directory / 'trial.sock'
        try:
            self.call('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
        except Refused:
            return True
        self.call('nbd-server-stop')
        return False

    def has_snapshot(self):
        return self.is_alive() and any(node['node-name'].startswith('vmsnap-')
                                       for node in self.call('query-named-block-nodes', flat=True))

    def end_snapshot(self):
        """What is left of a test that failed is not worth to be taken apart."""
        self.kill()


class Proxy:
    """
    A monitor's socket beside the real one, on which commands can be made to hang: a mock, since no command of a real
    monitor hangs when a test wants it.
    """

    def __init__(self, vm):
        self._vm = vm
        self.path = vm.directory / 'proxy.qmp'
        self.source = f'qmp:{self.path}'
        self.held = threading.Event()  # a command is held
        self._hold = None
        self._released = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def hold(self, command):
        """From now on, this command goes to QEMU when release() is called."""
        self.held.clear()
        self._released.clear()
        self._hold = command

    def release(self):
        self._hold = None
        self._released.set()

    def close(self):
        self.release()
        self._listener.close()
        self.path.unlink()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._vm.qmp))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source, target):
        with contextlib.suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(source, 1 << 20, 4)
                if not data:
                    break
                if self._hold and f'"execute":"{self._hold}"' in data.decode(errors='replace').replace(' ', ''):
                    self.held.set()
                    self._released.wait()
                socket.send_fds(target, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
            target.shutdown(socket.SHUT_RDWR)


class Bare:
    """What tests of lib.py's machines need to be tests of these: to be inherited before them."""

    owner = 'libvirt-qemu'

    @classmethod
    def make_vm(cls):
        return BareVm([Disk(driver='discard="unmap"'), Disk(format='raw')], owner=cls.owner)

    def mend_stack(self):
        pass

    def mend_machine(self):
        pass

    def end_lost_job(self):
        raise AssertionError('only libvirt loses jobs')
