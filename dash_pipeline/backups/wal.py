"""PostgreSQL's log (WAL) in the bucket: what `archive_command` and `restore_command` run, and what is there.

Belongs here: pushing, fetching, listing segments; how many wait. Does not belong here: base backups (`database.py`).

    backups/wal/<timeline>/<segment>.zst        compressed with zstd, encrypted under a key of the settings

    python -m dash_pipeline.backups.wal push pg_wal/<segment>            0 once it is in the bucket, else 1
    python -m dash_pipeline.backups.wal fetch <segment> <file> [folder]  1 when there is none; 200 for anything else

PostgreSQL calls it for one segment after the other, and half a second of each call is Python's start. So a call goes
on with whatever else is ready and leaves a mark for each in `pg_wal/dash_pushed/`, which `archive_command` looks for
first; a fetch brings the next segments along into `folder`. Marks lie in pg_wal because no base backup copies that.

A segment is never replaced: the same content again is success, another content is a mistake (two databases with one
bucket) that must be seen. A fetch that fails says 200: PostgreSQL takes any number below 126 for the end of the archive
and would go into service without what it could not read. A push says 1: PostgreSQL does not count what fails above 125.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings, load_settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import Keyring, keyring

if TYPE_CHECKING:
    from dash_pipeline.storage.timescale import Connection

PREFIX = "backups/wal/"
#: Exit codes: of a push, of a fetch.
NOT_PUSHED, ABSENT, FAILED = 1, 1, 200

_MARKS = "dash_pushed"
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_ARCHIVED = re.compile(r"[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history")
# A call goes on for so long at most: PostgreSQL may be waiting for it to shut down.
_GO_ON_S = 20.0
_AT_ONCE, _AHEAD = 2, 8
# Level 1: at level 3 the log is a tenth smaller and takes twice the time of a processor that commits need.
_LEVEL = 1
_SIZE = 16 << 20


@dataclass(frozen=True)
class Archive:
    """The log in a bucket. Its methods raise what those of `Bucket` raise."""

    bucket: s3.Bucket
    ring: Keyring

    def push(self, file: Path) -> None:
        """Store a segment or history file. Raises DashError when there is another of its name."""
        data = file.read_bytes()
        packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
        try:
            self.bucket.put(key(file.name), packed, new=True, seal=self.ring.current)
        except s3.Conflict:
            if self.get(file.name) != data:
                raise DashError(
                    f"s3: {self.bucket.name}/{key(file.name)} is another database's segment, and is not replaced; give"
                    " each database a bucket of its own (DASH_S3_BUCKET)"
                ) from None

    def get(self, name: str) -> bytes | None:
        """A segment's content; None when there is none. Raises DashError when it is damaged."""
        packed = self._read(key(name))
        try:
            return None if packed is None else zstandard.ZstdDecompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise DashError(f"s3: {self.bucket.name}/{key(name)} is damaged: {error}") from None

    def _read(self, place: str) -> bytes | None:
        """Segments do not say under which key they are; there are few keys, and the newest is the likeliest."""
        refused: DashError | None = None
        for seal in [*self.ring.keys.values(), None]:
            try:
                return self.bucket.get(place, seal)
            except Unavailable:
                raise
            except DashError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def segments(self) -> list[str]:
        """The names of all that is there, timeline by timeline, in order."""
        return [place.rpartition("/")[2].removesuffix(".zst") for place in self.bucket.keys(PREFIX)]

    def branch_ends(self) -> dict[int, int]:
        """Where the newest timeline left each one that it came of: timeline -> position. What is later on those was
        given up by a restore."""
        histories = [name for name in self.segments() if name.endswith(".history")]
        lines = (self.get(max(histories)) or b"").decode().splitlines() if histories else []
        fields = [line.split("\t") for line in lines if "\t" in line]
        return {int(timeline): lsn_number(lsn) for timeline, lsn, *_ in fields}

    def drop_before(self, segment: str) -> int:
        """Delete what is older than this segment, on every timeline; returns how many. History files stay: they are
        small, and tell which timeline came of which."""
        old = [name for name in self.segments() if _SEGMENT.match(name) and name[8:24] < segment[8:24]]
        self.bucket.delete([key(name) for name in old])
        return len(old)


def archive(settings: Settings) -> Archive:
    """The log in the bucket of the settings; nothing is connected yet."""
    return Archive(s3.bucket(settings), keyring(settings))


def lsn_number(lsn: str) -> int:
    """A position of the log, as PostgreSQL writes it, in bytes."""
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def key(name: str) -> str:
    """The object of a segment or history file."""
    return f"{PREFIX}{name[:8]}/{name}.zst"


def segment_of(timeline: int, lsn: int, size: int = _SIZE) -> str:
    """The segment that holds a position of the log."""
    number = lsn // size
    return f"{timeline:08X}{number * size >> 32:08X}{number % ((1 << 32) // size):08X}"


def following(segment: str, size: int = _SIZE) -> Iterator[str]:
    """The segments after this one."""
    lsn = (int(segment[8:16], 16) << 32) + int(segment[16:24], 16) * size
    while True:
        lsn += size
        yield segment_of(int(segment[:8], 16), lsn, size)


def first_gap(names: Iterable[str], start: str) -> str | None:
    """The first segment after `start` that is missing although a later one of its timeline is there."""
    there = sorted(name for name in names if _SEGMENT.fullmatch(name) and name[:8] == start[:8] and name >= start)
    if there and there[0] != start:
        return start
    return next((next(following(a)) for a, b in pairwise(there) if next(following(a)) != b), None)


def push_ready(store: Archive, file: Path) -> int:
    """Push this file, then whatever else waits; returns how many it were.

    Raises what pushing the first one raises. The others' errors are left to their own calls.
    """
    if not _ARCHIVED.fullmatch(file.name):
        raise DashError(f"{file}: not a file of PostgreSQL's log")
    marks = file.parent / _MARKS
    _forget_marks(file.parent, marks)
    store.push(file)
    count, until = 1, time.monotonic() + _GO_ON_S
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while time.monotonic() < until:
            waiting = [name for name in _ready(file.parent) if name != file.name and not (marks / name).exists()]
            if not waiting:
                break
            pushed = list(threads.map(lambda name: _push_marked(store, file.parent / name, marks), waiting[:16]))
            count += sum(pushed)
            if not all(pushed):
                break
    return count


def _push_marked(store: Archive, file: Path, marks: Path) -> bool:
    try:
        store.push(file)
    except (DashError, OSError):
        return False
    marks.mkdir(mode=0o700, exist_ok=True)
    (marks / file.name).touch()
    return True


def _ready(folder: Path) -> list[str]:
    return sorted(one.stem for one in (folder / "archive_status").glob("*.ready") if _ARCHIVED.fullmatch(one.stem))


def _forget_marks(folder: Path, marks: Path) -> None:
    if marks.is_dir():
        ready = set(_ready(folder))
        for mark in marks.iterdir():
            if mark.name not in ready:
                mark.unlink(missing_ok=True)


def fetch(store: Archive, name: str, file: Path, ahead: Path | None = None) -> bool:
    """Write a segment to `file`, and those that follow it to folder `ahead`; False when there is none."""
    data = store.get(name)
    if data is None:
        return False
    if ahead and _SEGMENT.fullmatch(name):
        _write(ahead / name, data)
        some = list(islice(following(name, len(data)), _AHEAD))
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda next_: _fetch_ahead(store, next_, ahead), some))
    _write(file, data)
    return True


def _fetch_ahead(store: Archive, name: str, ahead: Path) -> None:
    # What fails here fails again when it is its turn, and is told then.
    try:
        if not (ahead / name).exists() and (data := store.get(name)) is not None:
            _write(ahead / name, data)
    except DashError:
        return


def _write(file: Path, data: bytes) -> None:
    """In one step: PostgreSQL takes what it finds in `ahead` at once."""
    draft = file.with_name(f".{file.name}")
    draft.write_bytes(data)
    draft.replace(file)


_WAITING = """
SELECT w.count, extract(epoch FROM clock_timestamp() - w.oldest)::float8,
  CASE WHEN a.last_failed_time > coalesce(a.last_archived_time, '-infinity') THEN a.last_failed_wal END,
  extract(epoch FROM clock_timestamp() - coalesce(a.last_archived_time, pg_postmaster_start_time()))::float8,
  (SELECT setting::float8 FROM pg_settings WHERE name = 'archive_timeout')
FROM pg_stat_archiver a,
  (SELECT count(*), min(modification) AS oldest FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') w
"""


@dataclass(frozen=True)
class Waiting:
    """What the database has not archived yet: how many segments, since when the oldest waits (s), the last failure
    that no success followed, and of how many last seconds at most (`loss_s`) commits would be gone with the disk."""

    segments: int
    oldest_s: float
    failing: str
    loss_s: float


def waiting(conn: Connection) -> Waiting:
    """What waits, as seen by a role with pg_monitor."""
    row = conn.execute(_WAITING).fetchone()
    assert row is not None
    segments, oldest_s, failing, archived_s, timeout_s = row
    # While nothing waits, a commit that is older than archive_timeout is in a segment that was closed for it.
    loss_s = archived_s if segments or not timeout_s else min(archived_s, timeout_s)
    return Waiting(segments, oldest_s or 0.0, failing or "", loss_s)


def main(arguments: Sequence[str]) -> int:
    """The command line above; what is wrong is one line for PostgreSQL's log."""
    try:
        match arguments:
            case ["push", file]:
                push_ready(archive(load_settings()), Path(file))
                return 0
            case ["fetch", name, file, *ahead]:
                there = fetch(archive(load_settings()), name, Path(file), Path(ahead[0]) if ahead else None)
                return 0 if there else ABSENT
    except (DashError, OSError) as error:
        print(f"dash-pipeline: {error}", file=sys.stderr)
        return NOT_PUSHED if arguments[0] == "push" else FAILED
    print("usage: push FILE | fetch NAME FILE [FOLDER]", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
