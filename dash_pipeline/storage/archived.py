"""Archived rows of some addresses, to be put beside their hot ones.

Belongs here: who has archived rows, which objects are looked at, and how far. Does not belong here: what the rows mean
(`pool_history.py`, `wallet_history.py`), how objects are read (`history.py`).

Who is young is told by what stays in the database for ever: when a pool or a contract was created, and in which blocks
a wallet did anything. Days are read in the order of time, a few at a time, and no further than somebody needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import reduce
from operator import or_

import polars as pl

from dash_pipeline.archive import manifest
from dash_pipeline.archive.manifest import Entry
from dash_pipeline.settings import Settings
from dash_pipeline.storage import history
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.storage.timescale import Connection, of_chain

_READ = ("transactions", "token_transfers", "pool_events")
# Objects with so many rows together are read at a time: most rows are ruled out, but these may not be.
_ROWS_AT_ONCE = 4_000_000
_FAR = datetime.max.replace(tzinfo=UTC)

_SINCE = f"""
SELECT k.address, least((SELECT min(p.ts) FROM chain.pools p WHERE p.address = k.address AND {of_chain("p")}),
 (SELECT min(c.ts) FROM chain.contracts c WHERE c.address = k.address AND {of_chain("c")}))
FROM unnest(%(addresses)b::bytea[]) AS k(address)
"""

_BLOCKS = f"FROM rollup.wallet_blocks w WHERE w.wallet = k.wallet AND {of_chain('w')} AND w.ts < %(edge)s"
_ACTIVE = f"""
SELECT k.wallet FROM unnest(%(wallets)b::bytea[]) AS k(wallet) WHERE EXISTS (SELECT {_BLOCKS})
 OR EXISTS (SELECT FROM chain.contracts c WHERE c.address = k.wallet AND {of_chain("c")} AND c.ts < %(edge)s)
"""
_DAYS = f"""
SELECT k.wallet, ARRAY(SELECT DISTINCT (w.ts AT TIME ZONE 'UTC')::date {_BLOCKS} AND w.ts <= %(until)s)
FROM unnest(%(wallets)b::bytea[]) AS k(wallet)
"""


@dataclass(frozen=True)
class Wanted:
    """The most rows to read of an address, and the days that may hold some."""

    most: int
    days: Container[date] | None = None
    since: datetime | None = None

    def on(self, day: date) -> bool:
        """Whether the day may hold rows."""
        return (self.days is None or day in self.days) and (self.since is None or self.since.date() <= day)


@dataclass(frozen=True)
class Archive:
    """What is archived of a chain, in a transaction that holds the seam; `opened` makes one. `edge`: what is archived
    is earlier; None: nothing is. Without `settings` no object can be read."""

    conn: Connection
    chain: str
    settings: Settings | None
    edge: datetime | None

    def old_contracts(self, addresses: Iterable[bytes | None]) -> dict[bytes, datetime | None]:
        """The pools and tokens that may have archived rows, with when they were created (None: unknown)."""
        if self.edge is None:
            return {}
        asked = {"chain": self.chain, "addresses": list({*addresses} - {None})}
        rows = self.conn.execute(_SINCE, asked, prepare=True, binary=True).fetchall()
        return {address: since for address, since in rows if since is None or since < self.edge}

    def old_wallets(self, wallets: Iterable[bytes | None]) -> set[bytes]:
        """The wallets that have archived rows."""
        if self.edge is None:
            return set()
        asked = {"chain": self.chain, "wallets": list({*wallets} - {None}), "edge": self.edge}
        return {wallet for (wallet,) in self.conn.execute(_ACTIVE, asked, prepare=True, binary=True)}

    def days(self, wallets: Iterable[bytes], until: datetime) -> dict[bytes, set[date]]:
        """The archived days on which each wallet did anything: sent or received a transaction or a transfer."""
        asked = {"chain": self.chain, "wallets": list(wallets), "edge": self.edge, "until": until}
        return {wallet: set(days) for wallet, days in self.conn.execute(_DAYS, asked, binary=True)}

    def rows(
        self,
        table: str,
        columns: Sequence[str],
        by: Sequence[str],
        wanted: Mapping[bytes, Wanted],
        until: datetime,
        where: pl.Expr | None = None,
        *,
        newest: bool,
        keep: Callable[[pl.DataFrame], pl.DataFrame] = lambda rows: rows,
    ) -> pl.DataFrame:
        """`columns`, and as `address` the one of `wanted` that is in a column of `by`: of each address up to `most` of
        its newest (else its oldest) rows up to and with `until` of those that `where` and `keep` leave. A row with two
        of the addresses comes twice, each row once otherwise.

        Raises Unavailable when an object cannot be read, DashError when the settings lack its key.
        """
        place = [name for name in ("ts", "block_number", "tx_index", "log_index") if name in columns]
        read = [*dict.fromkeys([*columns, *by])]
        left = dict(wanted)
        none = pl.DataFrame(schema={name: TABLES[table].schema()[name] for name in read} | {"address": pl.Binary})
        found = [none]
        for group in self.groups(
            table, until, newest=newest, on=lambda day: any(one.on(day) for one in wanted.values())
        ):
            days = {one.date for one in group}
            asked = [address for address, one in left.items() if any(map(one.on, days))]
            if not asked:
                continue
            predicate = reduce(or_, (pl.col(name).is_in(asked) for name in by)) & (pl.col("ts") <= until)
            rows = self.read(table, group, read, predicate if where is None else predicate & where)
            rows = pl.concat(rows.with_columns(pl.col(name).alias("address")) for name in by)
            rows = keep(rows.filter(pl.col("address").is_in(asked)).unique(["address", *place]))
            most = pl.DataFrame([(address, left[address].most) for address in asked],
                                {"address": pl.Binary, "_most": pl.Int64}, orient="row")  # fmt: skip
            rows = rows.sort(place, descending=newest).join(most, on="address", maintain_order="left")
            rows = rows.filter(pl.int_range(pl.len()).over("address") < pl.col("_most")).drop("_most")
            found.append(rows.select(none.columns))
            for address, count in rows.group_by("address").len().iter_rows():
                had = left.pop(address)
                if count < had.most:
                    left[address] = Wanted(had.most - count, had.days, had.since)
        return pl.concat(found).select(*columns, "address")

    def groups(
        self, table: str, until: datetime, *, newest: bool, on: Callable[[date], bool] = lambda day: True
    ) -> Iterator[list[Entry]]:
        """The table's objects by whole days, the newest (else the oldest) first, as many as are read at a time."""
        days: dict[date, list[Entry]] = {}
        for entry in manifest.entries(self.conn, table, self.chain):
            if entry.ts_min <= until and on(entry.date):
                days.setdefault(entry.date, []).append(entry)
        group: list[Entry] = []
        for day in sorted(days, reverse=newest):
            if group and sum(one.rows for one in [*group, *days[day]]) > _ROWS_AT_ONCE:
                yield group
                group = []
            group = [*group, *days[day]]
        if group:
            yield group

    def read(self, table: str, entries: Sequence[Entry], columns: Sequence[str], predicate: pl.Expr) -> pl.DataFrame:
        """The rows of these objects that the predicate holds for."""
        assert self.settings is not None
        return history.archived(self.settings, table, entries, columns, predicate)


@contextmanager
def opened(conn: Connection, chain: str, settings: Settings | None) -> Iterator[Archive]:
    """A transaction in which nothing of what features are made of goes from hot to archived. Without `settings` nobody
    is waited for: while somebody takes rows out, everything counts as archived."""
    with conn.transaction():
        held = manifest.share_seam(conn, _READ, wait=settings is not None)
        yield Archive(conn, chain, settings, manifest.edge(conn, chain, _READ) if held else _FAR)
