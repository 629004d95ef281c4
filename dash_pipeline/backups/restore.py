"""Putting the database back as it was at a moment.

Belongs here: which backup, fetching it, making one cluster of its parts, recovery. Does not belong here: the server
(`server.py`), proving that it works (`drill.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from dash_pipeline.backups import wal
from dash_pipeline.backups.content import databases
from dash_pipeline.backups.database import (
    BASE,
    MANIFEST,
    PREFIX,
    Backup,
    Say,
    ancestry,
    backups,
    program,
    sha256,
)
from dash_pipeline.backups.server import Target, private_server
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings, stack_dir
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import keyring

# Recovery reads some 100 MB of the log in a second; this is for a database that wrote a terabyte since its backup.
_PATIENCE_S = 4 * 3600.0


class Restored(msgspec.Struct, frozen=True):
    """Restored data: the cluster's folder, the server on it (`port` and `pid` are 0 when it was stopped), from which
    backup it is, its newest commit (UTC, ISO 8601), how long it took from the call to the server's first answer as a
    database that can be written to."""

    data: str
    port: int
    pid: int
    databases: tuple[str, ...]
    backup: str
    newest_commit: str
    seconds: float


def moment(text: str) -> datetime:
    """A time as a person writes it: ISO 8601, UTC unless it says otherwise. Raises DashError when it is none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise DashError(f"--to: {text} is not a time such as 2026-11-25T14:00 or 2026-11-25T15:00+01:00") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def choose(there: Sequence[Backup], at: datetime | None) -> Backup:
    """The newest backup from which this moment can be reached; the newest of all without one. Raises DashError when
    there is none."""
    if not there:
        raise DashError("there is no backup of the database; `dash-pipeline backup` takes one")
    usable = [one for one in there if at is None or one.ended <= at]
    if not usable:
        raise DashError(
            f"{_said(at)} is before the oldest backup; the earliest that can be restored is {_said(there[0].ended)}"
        )
    return usable[-1]


def restorable(settings: Settings) -> list[Backup]:
    """The backups that lead to the newest timeline, oldest first: not those of a time that a restore has undone."""
    ends = wal.archive(settings).branch_ends()
    there = backups(s3.bucket(settings))
    return [one for one in there if wal.lsn_number(one.end) <= ends.get(one.timeline, wal.lsn_number(one.end))]


def fetch(settings: Settings, backup: Backup, folder: Path, say: Say = lambda _: None) -> None:
    """Make `folder/data` the cluster of this backup, ready to be recovered. Each part is held to its hash and to
    PostgreSQL's own list of files.

    Raises DashError when a part, or a segment of the log, is gone, a part is damaged or its key is not in the settings.
    """
    bucket = s3.bucket(settings)
    needed = ancestry(backup, backups(bucket))
    gap = wal.first_gap(wal.archive(settings).segments(), backup.segment)
    if gap:
        raise DashError(
            f"s3: {bucket.name}/{wal.key(gap)} is gone; nothing after it can be restored from {backup.name}"
        )
    parts = [folder / "parts" / one.name if len(needed) > 1 else folder / "data" for one in needed]
    for one, part in zip(needed, parts, strict=True):
        say(f"fetching {one.name}: {one.kind}, {one.bytes:,} bytes")
        _fetch_part(settings, bucket, one, part, folder)
    if len(needed) > 1:
        say(f"combining {len(needed)} backups")
        _checked(
            [program(settings, "pg_combinebackup"), "--no-sync", "-o", str(folder / "data"), *map(str, parts)],
            backup, "cannot be put together",
        )  # fmt: skip
        shutil.rmtree(folder / "parts")
    (folder / "data").chmod(0o700)


def _fetch_part(settings: Settings, bucket: s3.Bucket, backup: Backup, part: Path, folder: Path) -> None:
    seal = keyring(settings).named(backup.key)
    packed, place = folder / BASE, f"{PREFIX}{backup.name}"
    part.mkdir(parents=True)
    bucket.download(f"{place}/{BASE}", packed, seal)
    if sha256(packed) != backup.sha256:
        raise DashError(f"s3: {bucket.name}/{place}/{BASE} is damaged: it is not what was stored")
    try:
        with (
            packed.open("rb") as stream,
            zstandard.ZstdDecompressor().stream_reader(stream) as content,
            tarfile.open(fileobj=content, mode="r|") as files,
        ):
            # Python 3.11.2, which Debian 12 has, knows no filters. The content is ours: its hash was compared.
            safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            files.extractall(part, **safely)
    except OSError as error:
        raise DashError(f"{part}: {error.strerror}; DASH_BACKUP_DIR names a folder with more room") from error
    packed.unlink()
    bucket.download(f"{place}/{MANIFEST}", part / "backup_manifest", seal)
    _checked([program(settings, "pg_verifybackup"), "--no-parse-wal", "--quiet", str(part)], backup, "is damaged")


def _checked(command: Sequence[str], backup: Backup, what: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word"]
        raise DashError(f"backup {backup.name} {what}: {lines[0].partition('error: ')[2] or lines[0]}")


def restore(
    settings: Settings,
    at: datetime | None = None,
    into: Path | None = None,
    port: int = 0,
    say: Say = lambda _: None,
    *,
    stopped: bool = False,
) -> Restored:
    """Restore the cluster as it was at a moment (aware; without one: everything there is) into an empty folder, and
    start a server on it that stays, unless it is to be `stopped`, for the cluster's folder to be moved.

    Raises DashError when the moment cannot be reached, something of the backup is gone, damaged or under a key that the
    settings do not have; the folder is deleted then.
    """
    began = time.monotonic()
    backup = choose(restorable(settings), at)
    folder = (into or stack_dir() / "restored").absolute()
    if folder.exists() and any(folder.iterdir()):
        raise DashError(f"{folder} is not empty; --into names another one")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    server = private_server(settings, folder, port)
    try:
        fetch(settings, backup, folder, say)
        server.configure(backup, Target(time=at.astimezone(UTC).isoformat() if at else ""), keep_log=True)
        say("recovering")
        server.start(stays=True)
        with server.wait("SELECT pg_is_in_recovery()", False, _PATIENCE_S) as conn:
            names = databases(conn)
            row = conn.execute("SELECT pg_last_xact_replay_timestamp()").fetchone()
        shutil.rmtree(folder / "ahead")
    except BaseException:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    assert server.process is not None
    newest = row[0].astimezone(UTC).isoformat() if row and row[0] else ""
    seconds = round(time.monotonic() - began, 3)
    if stopped:
        server.stop()
    port, pid = (0, 0) if stopped else (server.port, server.process.pid)
    return Restored(str(server.data), port, pid, tuple(names), backup.name, newest, seconds)


def _said(at: datetime | None) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at else "now"
