"""Snapshots of the search indexes in the bucket, what was in them, and their restore.

Belongs here: the repository, snapshots, the drill and the operator's restore. Does not belong here: which snapshots are
kept (`keep.py`), making indexes anew from the tables (`dash_pipeline/storage/search/rebuilding.py`).

OpenSearch writes a snapshot to S3 by itself; a shard's content is what it was when its turn began. So that it is known
what a snapshot holds, the followers wait (a second or so) until every shard's turn has begun, and a scroll opened in
the same moment is read afterwards: its documents are counted and hashed into a manifest beside the snapshot. That
nothing was written in between is not assumed: the shards' sequence numbers before and after say so, and where they
moved another snapshot is taken. A snapshot without a manifest is none; `forget` deletes it.

Encryption: the node writes these objects, under keys that only the store knows (SSE-S3 or KMS,
`DASH_OPENSEARCH_SNAPSHOT_ENCRYPTION`). Keys that come with each request, as for all other objects of the platform, its
S3 repository cannot send.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from opensearchpy import ConnectionError as NoConnection
from opensearchpy import NotFoundError, OpenSearch, OpenSearchException, TransportError

from dash_pipeline.backups.keep import kept
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.search.alerts import ALERTS_INDEX
from dash_pipeline.storage.search.bulk import client, one_line, opensearch_errors
from dash_pipeline.storage.search.follower import connect, held
from dash_pipeline.storage.search.indexes import INDEXES
from dash_pipeline.storage.timescale import Connection

REPOSITORY = "dash-backups"
_BLOBS, _MANIFESTS = "backups/search/repository", "backups/search/manifests/"
_NAME = re.compile(r"dash-\d{8}t\d{9}z")
_KINDS = (*INDEXES, ALERTS_INDEX)
# Not index by index: the names of many chains' are longer than a request's line may be.
_ALL, _IF_THERE = ",".join(_KINDS), {"ignore_unavailable": "true"}
_DRILL = "drill-"
# How often a snapshot is taken again because an index was written to in the moment it was taken.
_TRIES = 3
# How long writers wait at most for the shards' turns; a node with few threads and many shards takes them one by one.
_HOLD_S = 30.0
_POLL_S = 0.05
_PAGE, _SCROLL = 1_000, "10m"
_LONG_S = 3600
_SUM = 1 << 128


@dataclass(frozen=True)
class Index:
    """An index of a snapshot: its aliases with their properties, how many documents, and the sum (hex, 128 bits) of
    their hashes over id, routing, version and source; without a sum it was written to while the snapshot was taken."""

    name: str
    aliases: dict[str, dict[str, bool]]
    documents: int
    digest: str


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is whole; `seconds`: what taking it took, `held_s`: how long followers waited for it."""

    name: str
    taken_at: datetime
    indexes: tuple[Index, ...]
    seconds: float
    held_s: float

    @property
    def documents(self) -> int:
        """Documents of all indexes."""
        return sum(index.documents for index in self.indexes)


@dataclass(frozen=True)
class Drilled:
    """What a drill found: `differences` says in words what is not as it was recorded. `restore_s` is the recovery time,
    `seconds` that of the whole drill, `age_s` what would be lost now (indexes can be made from the tables as well)."""

    snapshot: Snapshot
    documents: int
    differences: tuple[str, ...]
    uncompared: tuple[str, ...]
    restore_s: float
    seconds: float
    age_s: float


def register(settings: Settings) -> str:
    """Make sure that the node knows the repository; its name.

    It is the bucket of the settings, reached by the node with its own keys, or the repository that
    `DASH_OPENSEARCH_REPOSITORY` names, which is left as it is. Raises Unavailable when the node cannot write to it.
    """
    if settings.opensearch_repository:
        return settings.opensearch_repository
    wanted = {
        "bucket": settings.s3_bucket,
        "base_path": _BLOBS,
        "server_side_encryption_type": settings.opensearch_snapshot_encryption,
        **({"endpoint": settings.s3_endpoint} if settings.s3_endpoint else {}),
    }
    opensearch = client(settings)
    with _errors(settings):
        try:
            found = opensearch.snapshot.get_repository(repository=REPOSITORY)[REPOSITORY]
        except NotFoundError:
            found = {}
        # The node refuses any change while a snapshot is under way, so what is right is not sent again.
        if found.get("settings") != wanted:
            body = {"type": "s3", "settings": wanted}
            opensearch.snapshot.create_repository(repository=REPOSITORY, body=body, params=_patience())
    return REPOSITORY


def snapshot(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Snapshot:
    """Take a snapshot of every index behind the platform's aliases, and of no other.

    Raises Unavailable when OpenSearch, the store or the database (whose locks the followers know) does not answer, and
    DashError when there is no index or another snapshot, drill or clean-up is under way; there is no snapshot then.
    """
    opensearch = client(settings)
    with closing(connect(settings)) as conn, _alone(conn), _errors(settings):
        repository = register(settings)
        found = _try(settings, opensearch, conn, repository)
        for _ in range(1, _TRIES):
            if moved := [index.name for index in found.indexes if not index.digest]:
                say(f"written to meanwhile, so taken again: {', '.join(moved)}")
                _delete(opensearch, repository, found.name)
                found = _try(settings, opensearch, conn, repository)
        s3.bucket(settings).put(f"{_MANIFESTS}{found.name}.json", msgspec.json.encode(found), new=True)
    return found


def snapshots(settings: Settings) -> list[Snapshot]:
    """The snapshots, newest first, by their manifests: the node is not asked. Raises Unavailable when the store does
    not answer, DashError when a manifest is damaged."""
    bucket = s3.bucket(settings)
    found = []
    for key in reversed(bucket.keys(_MANIFESTS)):
        try:
            found.append(msgspec.json.decode(bucket.get(key) or b"", type=Snapshot))
        except msgspec.DecodeError:
            raise DashError(f"s3: {bucket.name}/{key} is damaged; delete it, and its snapshot goes too") from None
    return found


def forget(settings: Settings) -> list[str]:
    """Delete the snapshots that need not be kept, and what a killed or failed one left; their names."""
    opensearch = client(settings)
    with closing(connect(settings)) as conn, _alone(conn), _errors(settings):
        repository = register(settings)
        known = {one.name: one.taken_at for one in snapshots(settings)}
        keep = kept(known.values(), settings.backup_daily, settings.backup_weekly)
        # One that is under way without anybody waiting for it ends by itself, and goes the next time.
        there = {name for name, state in _states(opensearch, repository).items() if state != "IN_PROGRESS"}
        old = [name for name, taken_at in known.items() if taken_at not in keep]
        gone = sorted({*old, *(there - set(known))})
        for name in gone:
            _delete(opensearch, repository, name)
            s3.bucket(settings).delete([f"{_MANIFESTS}{name}.json"])
    return gone


def drill(settings: Settings) -> Drilled:
    """Restore the newest snapshot beside the indexes in use, under names that no alias shows, and compare each index
    with what was recorded when it was taken. Nothing of it is left, however it ends.

    Raises DashError when there is no snapshot, when the repository has lost it or does not give it back whole, and
    Unavailable when a server does not answer.
    """
    started = time.monotonic()
    opensearch = client(settings)
    with closing(connect(settings)) as conn, _alone(conn), _errors(settings):
        newest = _newest(settings)
        repository = register(settings)
        _drop_drilled(opensearch)  # of a drill that was killed
        try:
            _restored(settings, opensearch, repository, newest, {one.name: _DRILL + one.name for one in newest.indexes})
            restore_s = time.monotonic() - started
            # Whatever a page of results is capped at, a shard's documents are read through.
            found = {one.name: _count(opensearch, *_scroll(opensearch, _DRILL + one.name)) for one in newest.indexes}
        finally:
            with suppress(OpenSearchException):
                _drop_drilled(opensearch)
    differences = tuple(
        f"{one.name}: {one.documents:,} documents with sum {one.digest} were recorded,"
        f" {found[one.name][0]:,} with {found[one.name][1]} came back"
        for one in newest.indexes
        if one.digest and found[one.name] != (one.documents, one.digest)
    )
    return Drilled(
        newest,
        sum(documents for documents, _ in found.values()),
        differences,
        tuple(one.name for one in newest.indexes if not one.digest),
        restore_s,
        time.monotonic() - started,
        (datetime.now(UTC) - newest.taken_at).total_seconds(),
    )


def restore(settings: Settings, name: str = "") -> Snapshot:
    """Put a snapshot (the newest without a name) in place of the indexes in use: each is restored beside them and then
    swapped in behind its aliases; the old ones are deleted.

    What was committed after the snapshot is not in it: `dash-pipeline search rebuild` brings the indexes up to date
    while they are searched. Needs no database. Raises DashError when there is no such snapshot.
    """
    opensearch = client(settings)
    with _errors(settings):
        wanted = _newest(settings, name)
        targets = {one.name: _free_name(opensearch, one.name) for one in wanted.indexes}
        try:
            _restored(settings, opensearch, register(settings), wanted, targets)
        except BaseException:
            _drop(opensearch, targets.values())
            raise
        for one in wanted.indexes:
            old = _behind(opensearch, one.aliases)
            actions: list[dict[str, Any]] = [{"remove_index": {"index": index}} for index in old]
            for alias, properties in one.aliases.items():
                actions.append({"add": {"index": targets[one.name], "alias": alias, **properties}})
            opensearch.indices.update_aliases(body={"actions": actions})
    return wanted


# ---------------------------------------------------------------------------------------------- taking


def _try(settings: Settings, opensearch: OpenSearch, conn: Connection, repository: str) -> Snapshot:
    started = time.monotonic()
    taken_at = datetime.now(UTC)
    name = f"dash-{taken_at:%Y%m%dt%H%M%S}{taken_at.microsecond // 1000:03}z"
    aliases = _indexes(opensearch)
    if not aliases:
        raise DashError("search: there is no index yet, so there is nothing to take a snapshot of")
    names = sorted(aliases)
    scrolls: dict[str, tuple[str, list[_Hit]]] = {}
    try:
        with ExitStack() as waiting:
            for chain in _chains(aliases):
                waiting.enter_context(held(conn, chain, wait=True))
            began = time.monotonic()
            before = _sequence(opensearch, names)
            opensearch.indices.refresh(index=_ALL, params=_IF_THERE)
            for index in names:
                scrolls[index] = _scroll(opensearch, index)
            body = {"indices": ",".join(names), "include_global_state": False, "metadata": {"by": "dash-pipeline"}}
            opensearch.snapshot.create(repository=repository, snapshot=name, body=body, params=_patience())
            _wait(lambda: _all_begun(opensearch, repository, name) or time.monotonic() - began > _HOLD_S)
            after = _sequence(opensearch, names)
            held_s = time.monotonic() - began
        indexes = []
        for index in names:
            documents, digest = _count(opensearch, *scrolls.pop(index))
            indexes.append(Index(index, aliases[index], documents, digest if before[index] == after[index] else ""))
        _wait(lambda: _states(opensearch, repository, name).get(name) != "IN_PROGRESS")
        _check(opensearch, repository, name)
    except BaseException:
        for scroll_id, _ in scrolls.values():
            with suppress(OpenSearchException):
                opensearch.clear_scroll(scroll_id=scroll_id)
        with suppress(OpenSearchException):
            _delete(opensearch, repository, name)
        raise
    return Snapshot(name, taken_at, tuple(indexes), time.monotonic() - started, held_s)


def _indexes(opensearch: OpenSearch) -> dict[str, dict[str, dict[str, bool]]]:
    """The indexes behind the platform's aliases, with all their aliases."""
    found = opensearch.indices.get_alias()
    return {name: about["aliases"] for name, about in found.items() if any(kind in about["aliases"] for kind in _KINDS)}


def _chains(indexes: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The chains whose followers write to these indexes, in the order in which they are held."""
    named = {(kind, alias) for aliases in indexes.values() for alias in aliases for kind in INDEXES if kind in aliases}
    return sorted({alias.removeprefix(f"{kind}-") for kind, alias in named if alias != kind})


def _sequence(opensearch: OpenSearch, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """The sequence number of the last operation on each shard of each index."""
    found = opensearch.indices.stats(index=_ALL, metric="docs", params={"level": "shards", **_IF_THERE})["indices"]
    return {
        name: {
            shard: copy["seq_no"]["max_seq_no"]
            for shard, copies in found.get(name, {"shards": {}})["shards"].items()
            for copy in copies
            if copy["routing"]["primary"]
        }
        for name in names
    }


def _all_begun(opensearch: OpenSearch, repository: str, name: str) -> bool:
    """Whether every shard has the state in hand that goes into the snapshot."""
    (status,) = opensearch.snapshot.status(repository=repository, snapshot=name)["snapshots"]
    return bool(status["shards_stats"]["initializing"] == 0 and status["state"] != "INIT")


def _check(opensearch: OpenSearch, repository: str, name: str) -> None:
    (found,) = opensearch.snapshot.get(repository=repository, snapshot=name)["snapshots"]
    if found["state"] != "SUCCESS":
        reason = next((one["reason"] for one in found["failures"]), found.get("reason") or "no reason given")
        raise Unavailable(f"search: snapshot {name} is {found['state']}, so there is none: {_short(reason)}")


def _states(opensearch: OpenSearch, repository: str, name: str = "dash-*") -> dict[str, str]:
    """The state of each snapshot that this module took."""
    found = opensearch.snapshot.get(
        repository=repository, snapshot=name, params={"ignore_unavailable": "true", **_patience()}
    )
    return {one["snapshot"]: one["state"] for one in found["snapshots"] if _NAME.fullmatch(one["snapshot"])}


def _delete(opensearch: OpenSearch, repository: str, name: str) -> None:
    with suppress(NotFoundError):
        opensearch.snapshot.delete(repository=repository, snapshot=name, params=_patience(_LONG_S))


# ---------------------------------------------------------------------------------------------- restoring


def _newest(settings: Settings, name: str = "") -> Snapshot:
    found = [one for one in snapshots(settings) if name in ("", one.name)]
    if not found:
        what = f"no snapshot {name}" if name else "no snapshot yet"
        raise DashError(f"search: {what} under s3://{settings.s3_bucket}/{_MANIFESTS}; asset backups/search takes one")
    return found[0]


def _restored(
    settings: Settings, opensearch: OpenSearch, repository: str, wanted: Snapshot, targets: Mapping[str, str]
) -> None:
    """Restore each index under its new name, and wait until all of it is there."""
    for index, target in targets.items():
        body = {
            "indices": index,
            "include_global_state": False,
            "include_aliases": False,
            "rename_pattern": "^.+$",
            "rename_replacement": target,
        }
        try:
            done = opensearch.snapshot.restore(
                repository=repository,
                snapshot=wanted.name,
                body=body,
                params={"wait_for_completion": "true", **_patience(_LONG_S)},
            )
        except NotFoundError as error:
            raise DashError(
                f"search: repository {repository} has no snapshot {wanted.name}, whose manifest is there; its objects"
                f" in s3://{settings.s3_bucket}/{_BLOBS} were deleted or are another cluster's"
            ) from error
        if failed := done["snapshot"]["shards"]["failed"]:
            raise DashError(
                f"search: {wanted.name}: {failed} shards of {index} do not come back; the node's log says why, objects"
                f" in s3://{settings.s3_bucket}/{_BLOBS} are missing or altered"
            )


def _free_name(opensearch: OpenSearch, index: str) -> str:
    """The index's name with the next number that none has."""
    kind = index.rsplit("-", 1)[0]
    found = opensearch.indices.get(index=f"{kind}-*", params={"filter_path": "*.aliases"})
    numbers = [int(match[1]) for one in found if (match := re.fullmatch(re.escape(kind) + r"-(\d{6})", one))]
    return f"{kind}-{max(numbers, default=0) + 1:06}"


def _behind(opensearch: OpenSearch, aliases: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The indexes behind the aliases that are written to."""
    written = [alias for alias, properties in aliases.items() if properties.get("is_write_index")]
    try:
        return sorted(opensearch.indices.get_alias(name=",".join(written))) if written else []
    except NotFoundError:
        return []


def _drop_drilled(opensearch: OpenSearch) -> None:
    patterns = ",".join(f"{_DRILL}{kind}-*" for kind in _KINDS)
    _drop(opensearch, opensearch.indices.get(index=patterns, params={"filter_path": "*.aliases"}))


def _drop(opensearch: OpenSearch, names: Collection[str]) -> None:
    for name in names:
        opensearch.indices.delete(index=name, params={"ignore_unavailable": "true", **_patience()})


# ---------------------------------------------------------------------------------------------- content


class _Hit(msgspec.Struct, rename="_{}".format):
    """A document as it is stored: its source is not parsed."""

    id: str
    version: int
    source: msgspec.Raw
    routing: str = ""


class _Hits(msgspec.Struct):
    hits: list[_Hit]


class _Page(msgspec.Struct, rename={"scroll_id": "_scroll_id", "shards": "_shards"}):
    scroll_id: str
    hits: _Hits
    shards: dict[str, Any]


_PAGES = msgspec.json.Decoder(_Page)


def _scroll(opensearch: OpenSearch, index: str) -> tuple[str, list[_Hit]]:
    """All documents of an index as a search sees it now: the name to go on with, and the first of them."""
    body = {"size": _PAGE, "sort": ["_doc"], "version": True}
    page = _page(opensearch, f"/{index}/_search", {"scroll": _SCROLL}, body)
    return page.scroll_id, page.hits.hits


def _count(opensearch: OpenSearch, scroll_id: str, hits: list[_Hit]) -> tuple[int, str]:
    """How many documents there are, and the sum of their hashes, in which their order plays no part."""
    documents = total = 0
    while hits:
        documents += len(hits)
        total += sum(map(_hash, hits))
        page = _page(opensearch, "/_search/scroll", {}, {"scroll": _SCROLL, "scroll_id": scroll_id})
        scroll_id, hits = page.scroll_id, page.hits.hits
    opensearch.clear_scroll(scroll_id=scroll_id)
    return documents, f"{total % _SUM:032x}"


def _hash(hit: _Hit) -> int:
    text = f"{hit.id}\0{hit.routing}\0{hit.version}\0".encode() + bytes(hit.source)
    return int.from_bytes(hashlib.sha256(text).digest()[:16])


def _page(opensearch: OpenSearch, path: str, params: dict[str, str], body: dict[str, Any]) -> _Page:
    # Past the client's own parser, which would make objects of every source.
    connection = opensearch.transport.get_connection()
    _, _, text = connection.perform_request("POST", path, params, json.dumps(body).encode(), timeout=120)
    page = _PAGES.decode(text)
    if page.shards["failed"]:
        raise Unavailable("search: some shards did not answer while documents were counted")
    return page


# ---------------------------------------------------------------------------------------------- waiting, errors


def _wait(done: Callable[[], bool], patience_s: float = _LONG_S) -> None:
    until = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > until:
            raise Unavailable(f"search: not done after {patience_s:.0f} s")
        time.sleep(_POLL_S)


def _patience(seconds: float = 120) -> dict[str, Any]:
    return {"request_timeout": seconds}


@contextmanager
def _alone(conn: Connection) -> Iterator[None]:
    """One of snapshot, clean-up and drill at a time; a process that dies lets go."""
    row = conn.execute("SELECT pg_try_advisory_lock(hashtextextended('backups:search', 0))").fetchone()
    if row is None or not row[0]:
        raise DashError("search: another snapshot, clean-up or drill of the indexes is under way; wait for its end")
    yield


@contextmanager
def _errors(settings: Settings) -> Iterator[None]:
    """An error of the repository says which store the node was to use; all others as everywhere."""
    where = f"s3://{settings.s3_bucket}/{_BLOBS}"
    if settings.s3_endpoint:
        where += f" at {settings.s3_endpoint}"
    with opensearch_errors():
        try:
            yield
        except TransportError as error:
            if isinstance(error, NoConnection) or not str(error.error).startswith(("repository", "snapshot")):
                raise
            raise Unavailable(f"search: snapshots in {where}: {error.error}: {_reason(error)}") from error


def _reason(error: TransportError) -> str:
    """The innermost cause that the node names."""
    about: Any = error.info.get("error", {}) if isinstance(error.info, dict) else {}
    while isinstance(about, dict) and isinstance(about.get("caused_by"), dict):
        about = about["caused_by"]
    return _short(str(about.get("reason") or one_line(error)))


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
