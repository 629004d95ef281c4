"""One local stack: its servers brought up in the right order, and down without a trace.

Belongs here: the order of things, who waits for whom.
Does not belong here: what one server needs (`servers/`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import SecretStr

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import PREFIX, Settings
from dash_pipeline.stack import processes
from dash_pipeline.stack.install import last_line
from dash_pipeline.stack.layout import Layout, Ports
from dash_pipeline.stack.progress import Progress, Silent
from dash_pipeline.stack.secrets import Secrets, environment, kept_secrets, read_env, write_env
from dash_pipeline.stack.servers import DAGSTER, SERVERS, STORES, NotReadyError, Place, Server
from dash_pipeline.stack.servers.dagster import CODE_LOCATIONS, code_locations
from dash_pipeline.stack.servers.timescale import drop_database, make_database, programs, superuser
from dash_pipeline.stack.supervisor import Supervisor

#: What one word on the command line stands for.
GROUPS = {
    "stores": tuple(server.name for server in STORES),
    "dagster": tuple(server.name for server in DAGSTER),
}
_CONTENT = "content"
# A server whose process ends so often is crashing; one that was killed may need two or three tries.
_STARTS = 5
_CODE_PATIENCE_S = 60


@dataclass(frozen=True)
class Stack:
    """A stack in a folder; `Stack.at()` makes one. Nothing happens until a method is called."""

    layout: Layout
    ports: Ports

    @classmethod
    def at(cls, home: Path | None = None, port_offset: int | None = None, opt: Path | None = None) -> Stack:
        """The stack in `home` (else $DASH_STACK_DIR, else `.stack`).

        The offset is, in this order: the argument, $DASH_PORT_OFFSET, what the stack used before, 0. The address that
        servers listen at: $DASH_STACK_HOST, what the stack used before, 127.0.0.1.
        Raises DashError for an offset that is no number.
        """
        layout = Layout.at(home, opt)
        before = read_env(layout)
        host = os.environ.get("DASH_STACK_HOST") or before.get("DASH_STACK_HOST") or Ports.host
        chosen: int | str = (
            port_offset
            if port_offset is not None
            else os.environ.get("DASH_PORT_OFFSET") or before.get("DASH_PORT_OFFSET") or 0
        )
        try:
            return cls(layout, Ports(int(chosen), host))
        except ValueError:
            raise DashError(f"DASH_PORT_OFFSET={chosen} is not a number") from None

    def up(
        self,
        only: Collection[str] = (),
        progress: Progress | None = None,
        *,
        content: bool = True,
        detached: bool = True,
    ) -> None:
        """Bring up these servers (all by default) and what they need, and wait until each is ready.

        `content` also makes what the platform keeps in them: schema, topics, index templates. Servers that are up
        are left as they are, but code that did not load is loaded again. What is not `detached` stays in the caller's
        session. Raises DashError when a port is taken, an
        installation fails, or a server or code location does not come up; the others are up then.
        """
        names = self.resolve(only)
        with self._alone():
            self._end_leftovers()
            self._check_offset()
            self._check_ports(names)
            write_env(self.layout, self._environment)
            self.supervisor.start(self._program_environment, detached=detached)
            self._stop_broken_code()
            self._bring_up(names, progress or Silent(), content)
        if {"webserver", *(f"code-{name}" for name in CODE_LOCATIONS)} <= set(names):
            self._check_code()

    def down(self, progress: Progress | None = None) -> None:
        """Stop every process of this stack, and no other."""
        progress = progress or Silent()
        if self.supervisor.running():
            progress.say("dagster", "stopping")
            # Runs end while they can still say so in the database.
            self.supervisor.stop(*self._known([*DAGSTER, SERVERS["api"]]))
            progress.say("stores", "stopping")
            # The database archives the end of its log as it stops, for which S3 must be there.
            self.supervisor.stop(*self._known([SERVERS["timescale"]]))
            self.supervisor.stop(*self._known(STORES))
            self.supervisor.shutdown()
        self._end_leftovers()
        progress.done("stack", "down")

    def reset(self, *, everything: bool = False) -> None:
        """Stop and delete the data; with `everything` passwords and settings too. Installed servers stay."""
        self.down()
        for folder in (self.layout.data, self.layout.run, self.layout.dagster, self.layout.logs):
            shutil.rmtree(folder, ignore_errors=True)
        if everything:
            self.layout.secrets.unlink(missing_ok=True)
            self.layout.env.unlink(missing_ok=True)

    def start(self, name: str) -> None:
        """Start one server that `up` has prepared, and wait until it is ready."""
        self.supervisor.run(name)
        self.wait_ready(name)

    def stop(self, name: str) -> None:
        """Stop one server in good order."""
        self.supervisor.stop(name)

    def kill(self, name: str) -> int:
        """SIGKILL to the server's process, which supervisord starts again. Returns the process that ended."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        while processes.alive(pid):
            time.sleep(0.01)
        return pid

    def pid(self, name: str) -> int:
        """The server's process. Raises Unavailable when there is none."""
        pid = self.supervisor.state(name).pid
        if pid is None:
            raise Unavailable(f"{name} is not running")
        return pid

    def wait_ready(self, name: str, patience_s: float | None = None) -> None:
        """Return when the server answers.

        Raises Unavailable with the last line of its log when it does not in time, or keeps crashing.
        """
        server = SERVERS[name]
        deadline = time.monotonic() + (patience_s or server.patience_s)
        started: set[int] = set()
        while True:
            state = self.supervisor.state(name)
            try:
                if state.pid is not None:
                    started.add(state.pid)
                    server.probe(self.place, state.since)
                    return
                problem = f"it is {state.state}"
            except NotReadyError as error:
                problem = str(error)
            if time.monotonic() > deadline or len(started) > _STARTS or state.state == "FATAL":
                log = self.layout.logs / f"{name}.log"
                raise Unavailable(f"{name} is not ready: {problem}; its last words: {last_line(log)} (log: {log})")
            time.sleep(0.1)

    def settings(self) -> Settings:
        """How to reach this stack, whatever the environment says; other settings come from there."""
        own = read_env(self.layout) | self._environment
        values = {name.removeprefix(PREFIX).lower(): value for name, value in own.items() if name.startswith(PREFIX)}
        return Settings(**values)  # type: ignore[arg-type]

    @contextmanager
    def scratch_database(self) -> Iterator[Settings]:
        """A new, empty database with the extension, dropped at the end; yields settings that point to it."""
        name = f"scratch_{secrets.token_hex(4)}"
        with superuser(self.place) as connection:
            make_database(connection, name, owner="dash")
        with superuser(self.place, name) as connection:
            connection.execute("CREATE EXTENSION timescaledb")
        settings = self.settings()
        server = settings.timescale_dsn.get_secret_value().rpartition("/")[0]
        try:
            yield settings.model_copy(update={"timescale_dsn": SecretStr(f"{server}/{name}")})
        finally:
            # A connection of its own: the server may have been killed in between.
            with superuser(self.place) as connection:
                drop_database(connection, name)

    @cached_property
    def supervisor(self) -> Supervisor:
        """The supervisord of this stack."""
        return Supervisor(self.layout)

    @cached_property
    def place(self) -> Place:
        """What the servers are told about this stack; makes its folders and passwords if need be."""
        return Place(self.layout, self.ports, self._secrets, self.settings())

    @staticmethod
    def resolve(only: Collection[str]) -> list[str]:
        """Server and group names -> the servers to start, what they need included.

        Raises DashError for a name that is neither.
        """
        wanted: set[str] = set()
        todo = [name for word in only or SERVERS for name in GROUPS.get(word, (word,))]
        while todo:
            name = todo.pop()
            if name not in SERVERS:
                raise DashError(f"there is no server {name}; there are: {', '.join([*GROUPS, *SERVERS])}")
            if name not in wanted:
                wanted.add(name)
                todo += SERVERS[name].needs
        return [name for name in SERVERS if name in wanted]

    @cached_property
    def _secrets(self) -> Secrets:
        self.layout.make()
        return kept_secrets(self.layout)

    @cached_property
    def _environment(self) -> dict[str, str]:
        return environment(self.layout, self.ports, self._secrets) | {"DASH_PG_BIN": str(programs(self.layout))}

    @property
    def _program_environment(self) -> dict[str, str]:
        folders = {"DASH_STACK_DIR": str(self.layout.home), "DASH_OPT_DIR": str(self.layout.opt)}
        return read_env(self.layout) | self._environment | folders

    def _bring_up(self, names: list[str], progress: Progress, content: bool) -> None:
        """A thread for each server, waiting for what it needs; every failure is told, the first is raised."""
        steps: dict[str, Future[None]] = {}

        def wait_for(needs: Collection[str]) -> None:
            for need in needs:
                steps[need].result()

        def one(server: Server) -> None:
            wait_for(server.needs)
            if content and server.name in ("daemon", "api"):
                wait_for([_CONTENT])
            self._bring_up_one(server, progress)

        def fill() -> None:
            wait_for(stores)
            # Imported late: it brings the whole data plane, which `down` and `status` do without.
            from dash_pipeline.stack.content import make_content

            make_content(self.settings(), stores, progress)

        stores = [name for name in names if name in GROUPS["stores"]]
        with ThreadPoolExecutor(len(names) + 1) as threads:
            # Whatever is waited for is submitted before who waits.
            for name in stores:
                steps[name] = threads.submit(one, SERVERS[name])
            if content:
                steps[_CONTENT] = threads.submit(fill)
            for name in (name for name in names if name not in stores):
                steps[name] = threads.submit(one, SERVERS[name])
        for step in steps.values():
            step.result()

    def _bring_up_one(self, server: Server, progress: Progress) -> None:
        def say(text: str) -> None:
            progress.say(server.name, text)

        try:
            say("preparing")
            self.supervisor.add(server.prepare(self.place, say))
            say("starting")
            began = time.monotonic()
            self.start(server.name)
            server.set_up(self.place)
        except Exception as error:
            progress.done(server.name, f"failed: {error}")
            raise
        progress.done(server.name, f"ready after {time.monotonic() - began:.1f} s  {server.address(self.place)}")

    def _stop_broken_code(self) -> None:
        """A code server keeps the error it started with; it must start again to see that the code was mended."""
        try:
            broken = {f"code-{one.name}" for one in code_locations(self.place) if not one.loaded}
        except NotReadyError:
            return
        self.supervisor.stop(*(state.name for state in self.supervisor.states() if state.name in broken))

    def _check_code(self) -> None:
        """Wait until the webserver has made up its mind about each code location; all must have loaded."""
        deadline = time.monotonic() + _CODE_PATIENCE_S
        while True:
            found = code_locations(self.place)
            if all(one.settled for one in found) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if broken := [one for one in found if not one.loaded]:
            lines = [f"code location {one.name} does not load: {one.problem or 'no answer'}" for one in broken]
            raise DashError("\n".join([*lines, f"the rest is up; {self.place.settings.dagster_url} says more"]))

    def _known(self, servers: Collection[Server]) -> list[str]:
        names = {server.name for server in servers}
        return [state.name for state in self.supervisor.states() if state.name in names]

    def _end_leftovers(self) -> None:
        """End what a killed supervisord, or a run worker that ignored its end, left behind."""
        if self.supervisor.running():
            return
        processes.end(processes.of_stack(self.layout), patience_s=20)

    def _check_offset(self) -> None:
        before = read_env(self.layout).get("DASH_PORT_OFFSET", self.ports.offset)
        if self.supervisor.running() and int(before) != self.ports.offset:
            raise DashError(
                f"the stack runs with DASH_PORT_OFFSET={before}, not {self.ports.offset}: `dash-pipeline down` first"
            )

    def _check_ports(self, names: Collection[str]) -> None:
        running = (
            {state.name for state in self.supervisor.states() if state.pid} if self.supervisor.running() else set()
        )
        for name in names:
            for port in SERVERS[name].ports if name not in running else ():
                if _taken(self.ports.host, self.ports[port]):
                    raise DashError(
                        f"port {self.ports[port]} (for {port}) is taken by another program: end it, or set "
                        f"DASH_PORT_OFFSET (now {self.ports.offset}), which is added to every port"
                    )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` at a time for one stack."""
        self.layout.make()
        with (self.layout.home / ".up.lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unavailable(f"another `dash-pipeline up` is at work on {self.layout.home}") from None
            yield


def _taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT after the last stop is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
