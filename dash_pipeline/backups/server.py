"""A second, private PostgreSQL on a restored folder: its configuration, start, stop, and why it did not start.

Belongs here: the server. Does not belong here: what is in its data folder (`restore.py`), what is looked for in it
(`drill.py`).

    <folder>/data       the cluster; holds no settings of ours, so it can be moved to where it belongs
    <folder>/conf       postgresql.conf and pg_hba.conf
    <folder>/sockets    where it listens beside 127.0.0.1; who can open it is the superuser. In the folder for temporary
                        files when the path is too long for a socket
    <folder>/ahead      segments of the log that were fetched before they were asked for
    <folder>/server.log

It archives nothing: the real server may be alive, and a timeline of ours in its archive would be what the next restore
follows. Of a server that is to take its place (`keep_log`), segments wait in its own folder until it has done so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from dash_pipeline import children
from dash_pipeline.backups.content import Connection, connect
from dash_pipeline.backups.database import Backup, program
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import PREFIX, Settings
from dash_pipeline.unprivileged import User, unprivileged

_HBA = """\
# Who can open the socket's folder is who restored; everybody else gives the password that he has at the real server.
local all all trust
host  all all 127.0.0.1/32 scram-sha-256
"""
# A standby refuses to serve with less than the server that wrote its log had.
_AS_IT_WAS = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
_WAL_SETTINGS = (
    "kafka_bootstrap", "timescale_dsn", "opensearch_url", "s3_endpoint", "s3_region", "s3_bucket", "s3_access_key",
    "s3_secret_key", "encryption_keys",
)  # fmt: skip
# sun_path holds 108 bytes; PostgreSQL puts up to 20 behind the folder.
_LONGEST_SOCKET_FOLDER = 85
_LOG_TIME = re.compile(r"last completed transaction was at log time (\S+ \S+)")


@dataclass(frozen=True)
class Target:
    """How far to recover: to the last commit at or before a time (ISO 8601), or to before a position of the log; to the
    end of the archive without either. `timeline`: the newest without one. `pause`: stay readable there, and go on only
    when told to."""

    time: str = ""
    lsn: str = ""
    timeline: int = 0
    pause: bool = False


@dataclass
class PrivateServer:
    """A server in a folder (above), with the programs of the settings; `process` while it runs."""

    settings: Settings
    folder: Path
    port: int
    user: User
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "server.log"

    @property
    def sockets(self) -> Path:
        """Where its socket is."""
        usual = self.folder / "sockets"
        if len(os.fsencode(usual)) <= _LONGEST_SOCKET_FOLDER:
            return usual
        return Path(tempfile.gettempdir()) / f"dash-{hashlib.sha256(os.fsencode(usual)).hexdigest()[:16]}"

    def dsn(self, database: str = "postgres") -> str:
        """By the socket, as superuser."""
        return make_conninfo(host=str(self.sockets), port=self.port, user="postgres", dbname=database)

    def configure(self, backup: Backup, target: Target, *, keep_log: bool = False) -> None:
        """Write its configuration, and tell it to recover to `target`."""
        folders = [self.folder / "conf", self.folder / "ahead", self.sockets]
        for folder in folders:
            folder.mkdir(mode=0o700, exist_ok=True)
        fetch = f"{shlex.quote(sys.executable)} -P -m dash_pipeline.backups.wal fetch %f %p"
        ahead = shlex.quote(str(self.folder / "ahead"))
        values: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.sockets,
            "hba_file": self.folder / "conf" / "pg_hba.conf",
            "ident_file": self.folder / "conf" / "pg_hba.conf",
            "shared_preload_libraries": backup.preload,
            "timescaledb.telemetry_level": "off",
            "hot_standby": "on",
            "wal_level": "logical",
            "archive_mode": "on" if keep_log else "off",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "jit": "off",
            # What was fetched ahead stays until no restart needs it again.
            "restore_command": f"cp {ahead}/%f %p 2>/dev/null || exec {fetch} {ahead}",
            "archive_cleanup_command": f"{shlex.quote(program(self.settings, 'pg_archivecleanup'))} {ahead} %r",
            "recovery_target_action": "pause" if target.pause else "promote",
            "recovery_target_timeline": target.timeline or "latest",
            "recovery_target_inclusive": "off" if target.lsn else "on",
            **({"recovery_target_time": target.time} if target.time else {}),
            **({"recovery_target_lsn": target.lsn} if target.lsn else {}),
            **self._as_it_was(),
        }
        lines = [f"{name} = '{_quoted(value)}'" for name, value in values.items()]
        (self.folder / "conf" / "postgresql.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "conf" / "pg_hba.conf").write_text(_HBA)
        (self.data / "recovery.signal").touch()
        self.user.owns(self.data, *folders)

    def _as_it_was(self) -> dict[str, str]:
        said = subprocess.run(
            [program(self.settings, "pg_controldata"), str(self.data)], capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        if said.returncode:
            raise DashError(f"{self.data}: pg_controldata: {said.stderr.strip()}")
        control = dict(line.split(":", 1) for line in said.stdout.splitlines() if ":" in line)
        return {name: control[label].strip() for name, label in _AS_IT_WAS.items()}

    def start(self, *, stays: bool = False) -> None:
        """Start it; unless it `stays`, it does not outlive us."""
        conf = self.folder / "conf" / "postgresql.conf"
        command = [program(self.settings, "postgres"), "-D", str(self.data), "-c", f"config_file={conf}"]
        # Behind the change of the user, which makes the kernel forget whom it would tell.
        tied = [] if stays else ["setpriv", "--pdeathsig", "KILL", "--"]
        with self.log.open("ab") as log:
            options: dict[str, Any] = {
                "env": {**os.environ, **_environment(self.settings)},
                "cwd": self.folder,
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": log,
            }
            if stays:
                self.process = subprocess.Popen([*self.user.command, *command], start_new_session=True, **options)
            else:
                self.process = children.start([*self.user.command, *tied, *command], **options)

    def stop(self) -> None:
        """End its sessions and stop it; does nothing when it does not run."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.sockets.parent != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def wait(self, query: str, expected: object, patience_s: float) -> Connection:
        """A connection as soon as it answers `query` so. Raises what `problem` says when it ends, Unavailable when it
        takes longer."""
        until = time.monotonic() + patience_s
        conn: Connection | None = None
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise self.problem()
            try:
                if conn is None:
                    conn = connect(self.dsn())
                row = conn.execute(query).fetchone()
                if row == (expected,):
                    return conn
            except (Unavailable, psycopg.OperationalError):
                conn = None
            if time.monotonic() > until:
                raise Unavailable(f"the restored server is not there after {patience_s:.0f} s; see {self.log}")
            time.sleep(0.1)

    def problem(self) -> DashError:
        """Why it ended, in a line."""
        text = self.log.read_text(errors="replace")
        ours = [line for line in text.splitlines() if line.startswith("dash-pipeline: ")]
        if "recovery ended before configured recovery target was reached" in text:
            found = _LOG_TIME.findall(text)
            newest = f"the newest is of {found[-1]} UTC" if found else "there is none since the backup"
            return DashError(f"no commit after that time is archived ({newest}); without --to all there is is restored")
        if "requested recovery stop point is before consistent recovery point" in text:
            return DashError(
                "that time is before the end of the oldest backup; `dash-pipeline backup --list` says which"
            )
        if "could not restore file" in text and ours:
            return DashError(ours[-1].removeprefix("dash-pipeline: "))
        asked = ("starting up", "not yet accepting", "shutting down")
        fatal = [line for line in text.splitlines() if "FATAL:" in line or "PANIC:" in line]
        fatal = [line for line in fatal if not any(word in line for word in asked)]
        said = fatal[-1].rpartition("FATAL:")[2].strip() if fatal else "no word"
        return DashError(f"the restored server ended: {said} (log: {self.log})")


def private_server(settings: Settings, folder: Path, port: int = 0) -> PrivateServer:
    """A server for this folder on this port of 127.0.0.1, or a free one; nothing is started yet."""
    return PrivateServer(settings, folder, port or _free_port(), unprivileged(folder))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(settings: Settings) -> dict[str, str]:
    """What `restore_command` needs to reach the bucket, whatever the environment says."""
    values = {name: getattr(settings, name) for name in _WAL_SETTINGS}
    texts = {
        name: json.dumps(value) if isinstance(value, dict)
        else value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        for name, value in values.items() if value is not None
    }  # fmt: skip
    return {f"{PREFIX}{name.upper()}": text for name, text in texts.items()}


def _quoted(value: object) -> str:
    return str(value).replace("'", "''")
