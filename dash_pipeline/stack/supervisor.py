"""Running programs under supervisord.

Belongs here: its configuration, its start and end, and the calls to it.
Does not belong here: which programs there are (`servers/`).
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dash_pipeline.errors import Unavailable
from dash_pipeline.stack import processes
from dash_pipeline.stack.layout import REPOSITORY, Layout
from dash_pipeline.stack.secrets import write_private

# supervisord's fault codes (supervisor.xmlrpc.Faults)
_BAD_NAME, _ALREADY_STARTED, _NOT_RUNNING, _ALREADY_ADDED = 10, 60, 70, 90


@dataclass(frozen=True)
class Program:
    """What supervisord runs: a command, its environment beyond the stack's, and how it is stopped."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_wait_s: int = 30

    def ini(self, logs: Path) -> str:
        """The program's section. A killed server is started again, whatever its exit code was."""
        environment = ",".join(f'{name}="{_escaped(value)}"' for name, value in self.environment.items())
        return f"""\
[program:{self.name}]
command={" ".join(f'"{_escaped(part)}"' for part in self.command)}
directory={_escaped(str(REPOSITORY))}
environment={environment}
autostart=false
autorestart=true
startsecs=1
startretries=30
stopsignal={self.stop_signal}
stopwaitsecs={self.stop_wait_s}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={_escaped(str(logs / f"{self.name}.log"))}
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=1
"""


@dataclass(frozen=True)
class State:
    """What supervisord knows about a program: its word for the state, the process, and since when."""

    name: str
    state: str
    pid: int | None
    since: float
    detail: str


class Supervisor:
    """The supervisord of one stack; its calls may come from several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._socket = layout.sockets / "supervisor.sock"
        self._programs = layout.run / "programs"
        self._lock = threading.Lock()

    def running(self) -> bool:
        """Whether it answers."""
        try:
            self._call("getState")
        except OSError:
            return False
        return True

    def start(self, environment: Mapping[str, str], *, detached: bool = True) -> None:
        """Start it if it does not run; its programs inherit `environment`. Not `detached`, it stays in the caller's
        session, which some kernels give a share of the processors as one.

        Raises Unavailable with the end of its log when it does not answer.
        """
        if self.running():
            return
        self._programs.mkdir(exist_ok=True)
        for stale in self._programs.iterdir():
            stale.unlink()
        self._socket.unlink(missing_ok=True)
        config = self._layout.run / "supervisord.conf"
        write_private(config, self._ini())
        log = self._layout.logs / "supervisord.log"
        command = [str(Path(sys.executable).with_name("supervisord")), "--configuration", str(config)]
        process = subprocess.Popen(
            command if detached else [*command, "--nodaemon"],
            env={**os.environ, **environment, processes.MARKER: self._layout.id},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if detached:
            process.wait()
        deadline = time.monotonic() + 20
        while not self.running():
            if time.monotonic() > deadline:
                raise Unavailable(f"supervisord does not start; see {log}")
            time.sleep(0.05)

    def add(self, program: Program) -> None:
        """Make the program known, or take over its changed configuration if it is not running."""
        with self._lock:
            write_private(self._programs / f"{program.name}.ini", program.ini(self._layout.logs))
            _added, changed, _removed = self._call("reloadConfig")[0]
            if program.name in changed and self.state(program.name).pid is None:
                self._call("removeProcessGroup", program.name)
            self._tolerating(_ALREADY_ADDED, "addProcessGroup", program.name)

    def run(self, name: str) -> None:
        """Ask for the program to be started, if it is not; returns at once."""
        self._tolerating(_ALREADY_STARTED, "startProcess", name, False)

    def stop(self, *names: str) -> None:
        """Stop these programs at the same time, and wait until they have ended."""
        for name in names:
            self._tolerating(_NOT_RUNNING, "stopProcess", name, False)
        for name in names:
            while self.state(name).pid is not None:
                time.sleep(0.1)

    def states(self) -> list[State]:
        """Every program it knows."""
        return [_state(info) for info in self._call("getAllProcessInfo")]

    def state(self, name: str) -> State:
        """One program; STOPPED when it was never started."""
        try:
            return _state(self._call("getProcessInfo", name))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _BAD_NAME:
                raise
            return State(name, "STOPPED", None, 0, "never started")

    def shutdown(self) -> None:
        """Stop all programs and supervisord itself; returns when it no longer answers."""
        pid = self._call("getPID")
        self._call("shutdown")
        while processes.alive(pid):
            time.sleep(0.05)

    def _tolerating(self, code: int, method: str, *arguments: object) -> None:
        try:
            self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != code:
                raise

    def _call(self, method: str, *arguments: object) -> Any:
        # A connection for each call: ServerProxy's is not made for threads.
        with xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(self._socket)) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def _ini(self) -> str:
        run, log = _escaped(str(self._layout.run)), _escaped(str(self._layout.logs / "supervisord.log"))
        return f"""\
[supervisord]
logfile={log}
logfile_maxbytes=5MB
logfile_backups=1
pidfile={run}/supervisord.pid
childlogdir={run}
{"user=root" if os.getuid() == 0 else ""}

[unix_http_server]
file={_escaped(str(self._socket))}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[include]
files={self._programs.name}/*.ini
"""


def _escaped(text: str) -> str:
    """supervisord expands %(name)s."""
    return text.replace("%", "%%")


def _state(info: Mapping[str, Any]) -> State:
    return State(info["name"], info["statename"], info["pid"] or None, info["start"], info["description"])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)
