"""A new index from the tables, put behind the alias of the old one in one step.

Belongs here: the order of a rebuild. Does not belong here: what is in a document (`documents.py`, `rollups.py`).

Followers go on meanwhile: from its first moment the new index is named in `ops.search_rebuilds`, and every follower
writes what it writes to both. Rows are read in small steps, each with a version of its own and holding the chain for
its length, so of two writers of a document the one that read its rows later wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from opensearchpy import OpenSearch

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage.search import documents, indexes, rollups
from dash_pipeline.storage.search.bulk import Written, client, opensearch_errors, write
from dash_pipeline.storage.search.follower import chain_time, connect, held, next_version, slices
from dash_pipeline.storage.search.indexes import TOKENS_INDEX, TRANSACTIONS_INDEX, WALLETS_INDEX
from dash_pipeline.storage.search.rollups import Blocks
from dash_pipeline.storage.timescale import Connection

# Called with steps done and steps in all.
ProgressCallback = Callable[[int, int], None]

# What a step holds the chain for, and with it its followers.
_BLOCKS_AT_ONCE = 32
_KEYS_AT_ONCE = 1_000


@dataclass
class _Job:
    """One chain's index being built."""

    conn: Connection
    opensearch: OpenSearch
    chain: str
    target: str
    retry_for_s: float
    written: Written

    @contextmanager
    def step(self) -> Iterator[int]:
        """Hold the chain for a step, with the step's version."""
        with held(self.conn, self.chain, wait=True):
            yield next_version(self.conn)

    def send(self, lines: Iterable[bytes]) -> None:
        self.written.add(write(self.opensearch, self.target, lines, self.retry_for_s, is_alias=False))


def rebuild(
    settings: Settings, index: str, chain: str | None = None, progress: ProgressCallback = lambda done, total: None
) -> dict[str, Written]:
    """Build `index` (one of `indexes.INDEXES`) anew for one chain, or for all that have blocks, and swap it in.

    Searches see the old index until the new one is complete. Returns what was written by chain. Raises DashError for
    an unknown index, a chain without blocks or when this rebuild is already under way, Unavailable when a server stays
    away; the old index is then still in use, and nothing of the new one is left.
    """
    if index not in indexes.INDEXES:
        raise DashError(f"{index!r} is no index; there are {', '.join(indexes.INDEXES)}")
    conn, opensearch = connect(settings), client(settings)
    try:
        chains = _chains_with_blocks(conn, load_chains(settings.chains_file) if chain is None else [chain])
        if chain is not None and not chains:
            raise DashError(f"the database has no blocks of {chain}")
        with opensearch_errors():
            return {one: _rebuild_chain(settings, conn, opensearch, index, one, progress) for one in chains}
    finally:
        conn.close()


def _chains_with_blocks(conn: Connection, chains: Iterable[str]) -> list[str]:
    rows = conn.execute(
        "SELECT chain FROM unnest(%s::text[]) c(chain)"
        " WHERE EXISTS (SELECT FROM ops.block_tree t WHERE t.chain = c.chain)",
        (list(chains),),
    ).fetchall()
    return [name for (name,) in rows]


def _rebuild_chain(
    settings: Settings, conn: Connection, opensearch: OpenSearch, index: str, chain: str, progress: ProgressCallback
) -> Written:
    with _alone(conn, index, chain):
        indexes.ensure(settings, [chain])
        _clean_up(conn, opensearch, index, chain)
        target = indexes.create_next(opensearch, index, chain)
        job = _Job(conn, opensearch, chain, target, settings.retry_for_s, Written())
        try:
            conn.execute(
                "INSERT INTO ops.search_rebuilds (index, chain, target) VALUES (%s, %s, %s)", (index, chain, target)
            )
            _FILL[index](job, settings, progress)
            # Not in the middle of a follower's cycle, which would put half of its documents into the old index.
            with held(conn, chain, wait=True):
                indexes.swap(opensearch, index, chain, target)
        finally:
            # After a swap this removes the old index, else what there is of the new one.
            _clean_up(conn, opensearch, index, chain)
        return job.written


@contextmanager
def _alone(conn: Connection, index: str, chain: str) -> Iterator[None]:
    key = ("hashtextextended('rebuild:' || %s || ':' || %s, 0)", (index, chain))
    row = conn.execute(f"SELECT pg_try_advisory_lock({key[0]})", key[1]).fetchone()
    if row is None or not row[0]:
        raise DashError(f"{indexes.alias(index, chain)} is being rebuilt already")
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute(f"SELECT pg_advisory_unlock({key[0]})", key[1])


def _clean_up(conn: Connection, opensearch: OpenSearch, index: str, chain: str) -> None:
    """No rebuild is under way, and no index is left that is not behind the alias."""
    with held(conn, chain, wait=True):
        conn.execute("DELETE FROM ops.search_rebuilds WHERE index = %s AND chain = %s", (index, chain))
        indexes.delete_unused(opensearch, index, chain)


# ---------------------------------------------------------------------------------------------- filling


def _fill_transactions(job: _Job, settings: Settings, progress: ProgressCallback) -> None:
    for blocks in _block_steps(job, progress):
        with job.step() as version:
            job.send(documents.transaction_lines(job.conn, job.chain, blocks, version))


def _fill_wallets(job: _Job, settings: Settings, progress: ProgressCallback) -> None:
    day: datetime | None = None
    wallets: set[bytes] = set()
    for blocks in _block_steps(job, progress):
        if blocks.day != day and day is not None:
            _send_wallets(job, day, wallets)
            wallets = set()
        day = blocks.day
        with job.step():
            rollups.refresh_wallet_blocks(job.conn, job.chain, blocks)
            touched = rollups.touched(job.conn, job.chain, blocks).wallets
            rollups.drop_prefixes(job.conn, job.chain, blocks, touched)
            wallets.update(touched)
    if day is not None:
        _send_wallets(job, day, wallets)


def _send_wallets(job: _Job, day: datetime, wallets: set[bytes]) -> None:
    for keys in slices(list(wallets), _KEYS_AT_ONCE):
        with job.step() as version:
            job.send(documents.wallet_lines(job.conn, job.chain, day, keys, version))


def _fill_tokens(job: _Job, settings: Settings, progress: ProgressCallback) -> None:
    tokens: set[bytes] = set()
    for blocks in _block_steps(job, progress):
        with job.step():
            touched = rollups.touched(job.conn, job.chain, blocks)
            rollups.refresh_candles(job.conn, job.chain, blocks.day, touched.minutes)
            tokens.update(touched.tokens)
    registered = load_chains(settings.chains_file).get(job.chain)
    quotes = documents.preferred_quotes(registered.quote_tokens if registered else ())
    for pools in slices(_pools(job), _KEYS_AT_ONCE):
        with job.step():
            if as_of := chain_time(job.conn, job.chain):
                tokens.update(
                    rollups.refresh_pool_windows(
                        job.conn, job.chain, pools, as_of, [quote.contract for quote in quotes]
                    )
                )
    for keys in slices(list(tokens), _KEYS_AT_ONCE):
        with job.step() as version:
            if as_of := chain_time(job.conn, job.chain):
                job.send(documents.token_lines(job.conn, job.chain, keys, as_of, quotes, version))


_FILL = {TRANSACTIONS_INDEX: _fill_transactions, WALLETS_INDEX: _fill_wallets, TOKENS_INDEX: _fill_tokens}


def _pools(job: _Job) -> list[bytes]:
    rows = job.conn.execute("SELECT DISTINCT address FROM chain.pools WHERE chain = %s", (job.chain,)).fetchall()
    return [pool for (pool,) in rows]


def _block_steps(job: _Job, progress: ProgressCallback) -> Iterator[Blocks]:
    """The chain's blocks whose rows are in the canonical tables, a step's worth of one day at a time, oldest first."""
    days = job.conn.execute(
        "SELECT date_trunc('day', ts) AS day, min(block_number), max(block_number), count(*) FROM ops.block_tree"
        " WHERE chain = %s AND status IN ('canonical', 'provisional') GROUP BY 1 ORDER BY 1",
        (job.chain,),
    ).fetchall()
    total, done = sum(count for *_, count in days), 0
    progress(0, total)
    for day, low, high, _ in days:
        rows = job.conn.execute(
            "SELECT block_hash, ts FROM ops.block_tree WHERE chain = %s AND block_number BETWEEN %s AND %s"
            " AND date_trunc('day', ts) = %s AND status IN ('canonical', 'provisional') ORDER BY ts",
            (job.chain, low, high, day),
            binary=True,
        ).fetchall()
        for part in slices(rows, _BLOCKS_AT_ONCE):
            yield Blocks(day, [block_hash for block_hash, _ in part], part[0][1])
            done += len(part)
            progress(done, total)
