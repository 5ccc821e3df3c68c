# SPDX-License-Identifier: LGPL-2.1-or-later

"""
NBD servers that tests mount. To lib.Mount and lib.TestCase they are what a lib.Vm is: something with a name to mount
by, which must be as it was at the end.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import urllib.parse
import uuid
from pathlib import Path

import lib
from lib import run

KEY = '0123456789abcdef0123456789abcdef'


class Server:
    """
    A server that runs COMMAND in the foreground, with {socket} and {port} in it. It listens on a unix socket, unless it
    has a PORT of 127.0.0.1. NAME is a URI that names no export; with TLS, it has a key.
    """

    agent = False
    mount_options = ''

    def __init__(self, *command, port=None, tls=False, user=None):
        self.user = user
        self.directory = lib.make_directory(f'server-{uuid.uuid4().hex[:8]}')
        self.socket = self.directory / 'nbd.sock'
        self.port = port
        self.tls = tls
        self.keys = self.directory / 'keys'
        self.keys.write_text(f'alice:{KEY}\n')
        self.keys.chmod(0o600)
        self._command = command
        self._process = None

    def uri(self, export='', socket_path=None):
        scheme, user = ('nbds', 'alice@') if self.tls else ('nbd', '')
        query = [f'tls-psk-file={self.keys}'] if self.tls else []
        if not self.port:
            scheme += '+unix'
            query.insert(0, f'socket={socket_path or self.socket}')
        host = f'{user}127.0.0.1:{self.port}' if self.port else user
        return f'{scheme}://{host}/{urllib.parse.quote(export, safe="")}{"?" if query else ""}{"&".join(query)}'

    @property
    def name(self):
        return self.uri()

    @property
    def source(self):
        return self.name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _listens(self):
        if self._process.poll() is not None:
            raise AssertionError(f'{self._process.args} has ended')
        with socket.socket(socket.AF_INET if self.port else socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(('127.0.0.1', self.port) if self.port else str(self.socket))
            return True

    def start(self):
        """Returns the server when it listens."""
        words = [str(word).format(socket=self.socket, port=self.port, keys=self.keys) for word in self._command]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        lib.wait_until(self._listens, f'{words[0]} listens')
        return self

    def pid(self):
        return self._process.pid

    def signal(self, number):
        os.kill(self.pid(), number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self._process.wait()

    def close(self):
        if self._process and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.directory)

    # What lib.Mount asks of a machine

    def state(self):
        return 'running' if self._process and self._process.poll() is None else 'shut off'

    def traces(self):
        return set()

    def touch(self):
        """Proves that it serves."""
        run('nbdinfo', '--list', self.name)


class QemuNbd(Server):
    """
    A qcow2 image, exported by the real qemu-nbd, as the export NAMED or one without a name. IO are commands of qemu-io(1)
    that make its content.
    """

    def __init__(self, size, io=(), named='', **how):
        super().__init__('qemu-nbd', '--read-only', '--persistent', '--shared=0', '--format=qcow2',
                         *(('--bind=127.0.0.1', '--port={port}') if how.get('port') else ('--socket={socket}',)),
                         f'--export-name={named}', '{image}', **how)
        image = self.directory / 'image.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', image, size)
        if io:
            run('qemu-io', '-f', 'qcow2', *(word for command in io for word in ('-c', command)), image)
        self._command = [str(word).replace('{image}', str(image)) for word in self._command]
        self.images = {named or 'disk': image}

    def disk_raw(self, disk, path):
        """The truth."""
        run('qemu-img', 'convert', '-U', '-O', 'raw', self.images[disk], path)
        return path


class Nbdkit(Server):
    """nbdkit with WORDS: filters, plugin and what these take."""

    def __init__(self, *words, port=None, tls=False, **how):
        where = ('--ipaddr', '127.0.0.1', '--port', '{port}') if port else ('--unix', '{socket}')
        keys = ('--tls=require', '--tls-psk={keys}') if tls else ()
        super().__init__('nbdkit', '--foreground', '--log=null', *where, *keys, *words, port=port, tls=tls, **how)


class Exports(Nbdkit):
    """nbdkit with an export for each of FILES, a dict of names and contents."""

    def __init__(self, files, **how):
        self.files = Path(lib.make_directory(f'exports-{uuid.uuid4().hex[:8]}'))
        for name, content in files.items():
            (self.files / name).write_bytes(content)
        super().__init__('file', f'dir={self.files}', **how)

    def close(self):
        super().close()
        shutil.rmtree(self.files)
