"""Base backups of the database cluster in the bucket: taking one, listing them, dropping old ones.

Belongs here: what a backup is and the order in which its objects are written. Does not belong here: the log that makes
it whole (`wal.py`), putting it back (`restore.py`).

    backups/database/<UTC time>/base.tar.zst      what pg_basebackup wrote; full, or what changed since the parent
    backups/database/<UTC time>/manifest.json     PostgreSQL's list of its files, which the next one is taken against
    backups/database/<UTC time>/backup.json       the description (`Backup`), in plain text; written last

A backup without its description is what a kill left behind: it is never listed, and the next backup deletes it. A
backup is of the whole cluster: Dagster's database is in it. The log is not; the end of a backup waits until what makes
it consistent is in the archive.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dash_pipeline import children
from dash_pipeline.backups import wal
from dash_pipeline.backups.content import Connection, Point, points, session
from dash_pipeline.backups.keep import kept
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.locks import locked
from dash_pipeline.settings import Settings, stack_dir
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import keyring

log = logging.getLogger(__name__)

PREFIX = "backups/database/"
BASE, MANIFEST, DESCRIPTION = "base.tar.zst", "manifest.json", "backup.json"
_NAME = "%Y%m%dT%H%M%SZ"
# What the lock is called in pg_locks: of several backups at once, one is taken.
_LOCK = "hashtextextended('dash backup', 0)"
_ARCHIVED_WITHIN_S = 120.0
_NO_SUMMARIES = "WAL summaries are required"

Say = Callable[[str], None]


class Backup(msgspec.Struct, frozen=True):
    """A backup's description.

    `name`: when it began (UTC). `parent`: the backup that an incremental one needs, and "" for a full one. It can be
    restored to any moment after `ended_at` (UTC, ISO 8601). `points`: what each database held shortly after. `start`,
    `end`: the log it needs to be consistent, on `timeline`. `key`: the name of its objects' key. `bytes`, `sha256`: of
    base.tar.zst. `preload`: libraries the server is started with. `system`: the cluster's own number.
    """

    name: str
    parent: str
    ended_at: str
    timeline: int
    start: str
    end: str
    key: str
    bytes: int
    sha256: str
    seconds: float
    preload: str
    points: tuple[Point, ...]
    system: str = ""

    @property
    def time(self) -> datetime:
        """When it began."""
        return datetime.strptime(self.name, _NAME).replace(tzinfo=UTC)

    @property
    def ended(self) -> datetime:
        """When it was whole."""
        return datetime.fromisoformat(self.ended_at)

    @property
    def kind(self) -> str:
        """full or incremental."""
        return "incremental" if self.parent else "full"

    @property
    def segment(self) -> str:
        """The first segment of the log that it needs."""
        return wal.segment_of(self.timeline, wal.lsn_number(self.start))


# ---------------------------------------------------------------------------------------------- what there is


def backups(bucket: s3.Bucket) -> list[Backup]:
    """Every backup, oldest first. One whose description is damaged is told in the log, and is none."""
    found = []
    for place in bucket.keys(PREFIX):
        if place.endswith(f"/{DESCRIPTION}") and (data := bucket.get(place)) is not None:
            try:
                found.append(msgspec.json.decode(data, type=Backup))
            except msgspec.MsgspecError as error:
                log.error("s3: %s/%s is damaged: %s", bucket.name, place, error)
    return sorted(found, key=lambda one: one.name)


def ancestry(backup: Backup, there: Iterable[Backup]) -> list[Backup]:
    """The backups that this one is restored from, the full one first, itself last. Raises DashError when one is
    gone."""
    by_name = {one.name: one for one in there}
    needed = [backup]
    while parent := needed[0].parent:
        if parent not in by_name:
            raise DashError(f"backup {backup.name} needs {parent}, which is gone; `--to` a time before it, or after")
        needed.insert(0, by_name[parent])
    return needed


def prune(settings: Settings) -> tuple[list[str], int]:
    """Delete the backups that are not kept, and the log before the oldest that is; returns their names, and how many
    segments. What a kept one is restored from is kept with it."""
    bucket = s3.bucket(settings)
    there = backups(bucket)
    times = kept((one.time for one in there), settings.backup_daily, settings.backup_weekly)
    needed = {part.name for one in there if one.time in times for part in _known_ancestry(one, there)}
    old = [one.name for one in there if one.name not in needed]
    for name in old:
        _delete(bucket, name)
    rest = [one for one in there if one.name in needed]
    return old, wal.archive(settings).drop_before(min(one.segment[8:] for one in rest).rjust(24, "0")) if rest else 0


def _known_ancestry(backup: Backup, there: Sequence[Backup]) -> list[Backup]:
    try:
        return ancestry(backup, there)
    except DashError as error:
        log.error("%s", error)
        return [backup]


def _delete(bucket: s3.Bucket, name: str) -> None:
    """The description first: what is deleted by half is no backup."""
    bucket.delete([f"{PREFIX}{name}/{DESCRIPTION}"])
    bucket.delete(bucket.keys(f"{PREFIX}{name}/"))


def _sweep(bucket: s3.Bucket) -> None:
    """Delete what killed backups left; nobody else takes one, for we hold the lock."""
    names: dict[str, set[str]] = {}
    for place in bucket.keys(PREFIX):
        name, _, part = place.removeprefix(PREFIX).partition("/")
        names.setdefault(name, set()).add(part)
    for name, parts in names.items():
        if DESCRIPTION not in parts:
            log.warning("backup %s was not finished; deleted", name)
            _delete(bucket, name)


# ---------------------------------------------------------------------------------------------- taking one


def take(settings: Settings, *, full: bool = False, say: Say = lambda _: None) -> Backup:
    """Take a backup and store it: a full one if asked to, or if the last is older than `backup_full_days`, else what
    changed since the newest.

    Raises DashError when the role may not replicate, the database does not archive its log, or another backup is being
    taken; Unavailable when the database or S3 is away. There is no backup then.
    """
    dsn, seal = replication_dsn(settings), keyring(settings).current
    bucket, began = s3.bucket(settings), time.monotonic()
    with session(dsn) as conn:
        _alone(conn)
        preload = _ready_to_archive(conn)
        _sweep(bucket)
        there = backups(bucket)
        name = _new_name(there)
        with scratch(settings, "backup") as folder:
            parent = None if full else _parent(there, settings, conn)
            say(f"{name}: {'incremental on ' + parent.name if parent else 'full'}")
            parent = _copy(settings, dsn, bucket, parent, folder / "base", say)
            base, manifest = folder / "base" / BASE, folder / "base" / "backup_manifest"
            listed = json.loads(manifest.read_bytes())
            needed = listed["WAL-Ranges"][-1]
            for file, to in ((base, BASE), (manifest, MANIFEST)):
                say(f"{name}: {to}: {file.stat().st_size:,} bytes")
                bucket.upload(file, f"{PREFIX}{name}/{to}", seal)
            say(f"{name}: counting rows")
            ended_at = _now(conn)
            seen = points(dsn)
            archived(settings, conn, needed["Timeline"], max(wal.lsn_number(point.lsn) for point in seen))
            backup = Backup(
                name=name, parent=parent.name if parent else "", ended_at=ended_at, timeline=needed["Timeline"],
                start=needed["Start-LSN"], end=needed["End-LSN"], key=seal.name if seal else "",
                bytes=base.stat().st_size, sha256=sha256(base), seconds=round(time.monotonic() - began, 3),
                preload=preload, points=tuple(seen), system=str(listed["System-Identifier"]),
            )  # fmt: skip
        bucket.put(f"{PREFIX}{name}/{DESCRIPTION}", msgspec.json.encode(backup), new=True)
    return backup


def replication_dsn(settings: Settings) -> str:
    """The DSN of the role that copies. Raises DashError when there is none."""
    if settings.backup_dsn is None:
        raise DashError(
            "DASH_BACKUP_DSN: not set; the DSN of a role with REPLICATION and pg_read_all_data on the database's server"
        )
    return settings.backup_dsn.get_secret_value()


def program(settings: Settings, name: str) -> str:
    """The path of one of PostgreSQL's programs. Raises DashError when it is not there."""
    places = [settings.pg_bin] if settings.pg_bin else [Path("/usr/lib/postgresql/17/bin")]
    for place in places:
        if (place / name).exists():
            return str(place / name)
    raise DashError(f"DASH_PG_BIN: no {name} in {places[0]}; set it to the folder of PostgreSQL 17's programs")


def _alone(conn: Connection) -> None:
    row = conn.execute(f"SELECT pg_try_advisory_lock({_LOCK})").fetchone()
    if row != (True,):
        raise Unavailable("another backup of this database is being taken; this one was not begun")


def _ready_to_archive(conn: Connection) -> str:
    """The libraries the server was started with. Raises DashError when its log is not kept."""
    row = conn.execute("SELECT current_setting('archive_mode'), current_setting('shared_preload_libraries')").fetchone()
    assert row is not None
    if row[0] == "off":
        raise DashError(
            "database: archive_mode is off, and without its log a backup cannot be restored; docs/operations.md says"
            " what to set"
        )
    return str(row[1])


def _new_name(there: Sequence[Backup]) -> str:
    """The time, in seconds; a second later than the newest if the clock was set back."""
    now = datetime.now(UTC).replace(microsecond=0)
    if there and there[-1].time >= now:
        now = there[-1].time + timedelta(seconds=1)
    return now.strftime(_NAME)


def _parent(there: Sequence[Backup], settings: Settings, conn: Connection) -> Backup | None:
    """What an incremental backup is taken against: the newest, unless its full one is too old or gone, or it is of the
    time before a restore, or of another cluster."""
    if not there:
        return None
    newest = there[-1]
    try:
        first = ancestry(newest, there)[0]
    except DashError as error:
        log.warning("%s; a full backup is taken", error)
        return None
    old = datetime.now(UTC) - first.time > timedelta(days=settings.backup_full_days, minutes=-30)
    row = conn.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    same = row == (newest.system,) and timeline_of(conn) == newest.timeline
    return newest if same and not old else None


def timeline_of(conn: Connection) -> int:
    """The timeline that the database is on: one more after each restore."""
    row = conn.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
    assert row is not None
    return int(row[0])


def _copy(
    settings: Settings, dsn: str, bucket: s3.Bucket, parent: Backup | None, folder: Path, say: Say
) -> Backup | None:
    """Run pg_basebackup into `folder`; returns the parent it was taken against."""
    command = [
        program(settings, "pg_basebackup"), "--pgdata", str(folder), "--format=tar", "--compress=client-zstd:1",
        "--wal-method=none", "--checkpoint=fast", "--no-sync", "--no-password",
    ]  # fmt: skip
    if parent:
        manifest = folder.with_name("parent.json")
        bucket.download(f"{PREFIX}{parent.name}/{MANIFEST}", manifest, keyring(settings).named(parent.key))
        command.append(f"--incremental={manifest}")
    error = _run(command, dsn)
    if error and parent and _NO_SUMMARIES in error:
        say(f"no incremental backup: {error}; a full one instead")
        shutil.rmtree(folder, ignore_errors=True)
        return _copy(settings, dsn, bucket, None, folder, say)
    if error:
        raise DashError(f"pg_basebackup: {error}; it needs a role with REPLICATION that pg_hba.conf lets in")
    if strangers := [file.name for file in folder.iterdir() if file.name not in (BASE, "backup_manifest")]:
        raise DashError(f"database: it has tablespaces ({', '.join(sorted(strangers))}), which are not backed up")
    return parent


def _run(command: Sequence[str], dsn: str) -> str:
    """Run a program of PostgreSQL's; its last word if it failed. The password is not among its arguments."""
    asked = conninfo_to_dict(dsn)
    password = asked.pop("password", None)
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **({"PGPASSWORD": str(password)} if password else {})}
    target: Mapping[str, Any] = {name: value for name, value in asked.items() if value is not None}
    with children.running(
        [*command, "--dbname", make_conninfo("", **target)], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        said = [line for line in process.communicate()[1].decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if "error:" in line] or said[-1:]
    return errors[0].partition("error: ")[2] or errors[0] if process.returncode else ""


def _now(conn: Connection) -> str:
    row = conn.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0].astimezone(UTC).isoformat()  # type: ignore[no-any-return]


def archived(settings: Settings, conn: Connection, timeline: int, lsn: int) -> None:
    """Have the log up to this position archived, and wait until it is. Raises Unavailable when it takes too long."""
    # A role that may not ask for it waits until `archive_timeout` is over.
    with suppress(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT pg_switch_wal()")
    segment, bucket = wal.segment_of(timeline, lsn), s3.bucket(settings)
    patience = _ARCHIVED_WITHIN_S + settings.archive_timeout_s
    until = time.monotonic() + patience
    while not bucket.keys(wal.key(segment)):
        if time.monotonic() > until:
            raise Unavailable(
                f"database: segment {segment} of the log is not archived after {patience:.0f} s; its server's"
                " log says why"
            )
        time.sleep(0.1)


def sha256(file: Path) -> str:
    """A file's hash, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------- room to work


@contextmanager
def scratch(settings: Settings, purpose: str) -> Iterator[Path]:
    """A new folder for as long as the block lasts. What a killed owner left is deleted by the next."""
    home = settings.backup_dir or stack_dir() / "backups"
    home.mkdir(parents=True, exist_ok=True)
    _sweep_scratch(home)
    folder = home / f"{purpose}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o711)
    with locked(folder / ".lock"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep_scratch(home: Path) -> None:
    """Delete the folders that nobody holds."""
    for lock in home.glob("*/.lock"):
        with suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
