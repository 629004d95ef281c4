"""Documents to OpenSearch, many at a time.

Belongs here: the connection, requests of a bounded size, what an answer means.
Does not belong here: what the lines say.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opensearchpy import ConnectionError as NoConnection
from opensearchpy import OpenSearch, OpenSearchException, TransportError

from dash_pipeline.errors import DashError, Unavailable, first_line
from dash_pipeline.settings import Settings

log = logging.getLogger(__name__)

REQUEST_BYTES = 6 << 20
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_BUSY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED_STATUS = frozenset({400, 413})
# What an item can answer that will pass: the node is busy, starting, or out of memory or disk.
_BUSY = frozenset(
    {
        "rejected_execution_exception",
        "circuit_breaking_exception",
        "unavailable_shards_exception",
        "cluster_block_exception",
        "process_cluster_event_timeout_exception",
    }
)


class IndexMissing(Unavailable):
    """The alias that is written to is not there."""


class _BusyError(Exception):
    """The server took some items and refused others for now."""


@dataclass
class Written:
    """What became of the lines: `conflicts` lost to a newer document, `rejected` did not fit the mapping."""

    documents: int = 0
    conflicts: int = 0
    rejected: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Written) -> None:
        """What another request wrote, too."""
        self.documents += other.documents
        self.conflicts += other.conflicts
        self.rejected += other.rejected
        self.bytes += other.bytes
        self.reasons += other.reasons


def client(settings: Settings) -> OpenSearch:
    """A client; nothing is connected yet. It does not retry by itself: a caller knows how long it may wait."""
    # Who made a request reports its failure; the library would add a traceback for each.
    logging.getLogger("opensearch").setLevel(logging.ERROR)
    user, password = settings.opensearch_username, settings.opensearch_password
    auth = (user, password.get_secret_value()) if user and password else None
    return OpenSearch(
        hosts=[settings.opensearch_url],
        http_auth=auth,
        ca_certs=str(settings.opensearch_ca_file) if settings.opensearch_ca_file else None,
        timeout=30,
        max_retries=0,
        http_compress=False,
    )


def batches(lines: Iterable[bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """Split into requests of at most `max_bytes`; a larger line goes alone."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch


def write(
    client: OpenSearch, target: str, lines: Iterable[bytes], retry_for_s: float, is_alias: bool = True
) -> Written:
    """Send the lines (each: an action and its document, with their newlines) to `target`.

    A document that lost to a newer version, or that the index refuses, is counted and does not stop the others. What
    may pass (no connection, node busy or starting) is tried again for `retry_for_s` seconds; repeating is harmless
    because every line carries its version. Raises Unavailable after that, IndexMissing when there is no such alias.
    """
    total = Written()
    try:
        for batch in batches(lines, REQUEST_BYTES):
            total.add(_send(client, target, batch, retry_for_s, is_alias))
    finally:
        # Lines that come from a statement hold their connection until they have ended.
        if isinstance(lines, Generator):
            lines.close()
    if total.rejected:
        log.error("%s refused %d documents: %s", target, total.rejected, total.reasons.most_common(3))
    return total


def _send(client: OpenSearch, target: str, batch: list[bytes], retry_for_s: float, is_alias: bool) -> Written:
    params = {"filter_path": "errors,items.*.error"}
    if is_alias:  # else a document written while the alias is gone would make an index of that name
        params["require_alias"] = "true"
    body = b"".join(batch)
    deadline, pause = time.monotonic() + retry_for_s, _PAUSE_S
    while True:
        try:
            return _read(client.bulk(body=body, index=target, params=params), target, len(batch), len(body))
        except (NoConnection, TransportError, _BusyError) as error:
            if isinstance(error, TransportError) and error.status_code in _REFUSED_STATUS:
                break
            if not _passes(error) or time.monotonic() + pause > deadline:
                raise Unavailable(f"search: {target}: {one_line(error)}") from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    return _send_halves(client, target, batch, retry_for_s, is_alias)


def _send_halves(client: OpenSearch, target: str, batch: list[bytes], retry_for_s: float, is_alias: bool) -> Written:
    """Part the line that has the whole request refused (too large, say) from the others."""
    if len(batch) == 1:
        reason = f"the request is refused: {batch[0][:200]!r}"
        return Written(documents=1, rejected=1, bytes=len(batch[0]), reasons=Counter([reason]))
    middle = len(batch) // 2
    written = _send(client, target, batch[:middle], retry_for_s, is_alias)
    written.add(_send(client, target, batch[middle:], retry_for_s, is_alias))
    return written


def _passes(error: Exception) -> bool:
    return isinstance(error, NoConnection | _BusyError) or (
        isinstance(error, TransportError) and error.status_code in _BUSY_STATUS
    )


def one_line(error: Exception) -> str:
    """An OpenSearch error without its nested causes."""
    if isinstance(error, NoConnection):
        return f"no connection ({type(error.info).__name__})"
    if isinstance(error, TransportError):
        return f"{error.status_code} {error.error}"
    return first_line(error)


def _read(answer: Any, target: str, documents: int, size: int) -> Written:
    written = Written(documents, bytes=size)
    for item in answer.get("items", ()):
        (outcome,) = item.values()
        kind, reason = outcome["error"]["type"], outcome["error"].get("reason", "")
        if kind == "version_conflict_engine_exception":
            written.conflicts += 1
        elif kind in _BUSY:
            raise _BusyError(f"{kind}: {reason}")
        elif kind == "index_not_found_exception":
            raise IndexMissing(f"search: there is no alias {target}")
        else:
            written.rejected += 1
            written.reasons[f"{kind}: {reason[:200]}"] += 1
    return written


@contextmanager
def opensearch_errors() -> Iterator[None]:
    """An OpenSearch error becomes a person's one line: Unavailable if it may pass, else DashError."""
    try:
        yield
    except OpenSearchException as error:
        kind = Unavailable if _passes(error) else DashError
        raise kind(f"search: {one_line(error)}") from error
