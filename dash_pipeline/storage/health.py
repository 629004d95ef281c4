"""How the platform does, as its database knows it: commits, tips, dead letters, what waits, what lanes measured.

Belongs here: SQL for those who look at the platform from outside (sensors, `platform_health`, `dash-pipeline metrics`),
and the row that a checkpoint leaves. Does not belong here: what is worth a notice (`sensors/`), Kafka's offsets
(`dash_pipeline/lag.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from dash_pipeline.storage.timescale import Connection
from dash_pipeline.topics import chain_topics

if TYPE_CHECKING:
    from dash_pipeline.microbatch.drain import Checkpoint

STAGES = ("ingestion", "processing", "output", "end_to_end")
_LATENCIES = tuple(f"{stage}_{percentile}_ms" for stage in STAGES for percentile in ("p50", "p99"))
_RECENT = timedelta(hours=1)


@dataclass(frozen=True)
class ChainHealth:
    """A chain, now. `commit_age_s`: seconds since its newest commit of offsets; `event_age_s`: seconds from its newest
    canonical block's own time to now; both None if there is none. `dead_letters`: those of the last hour."""

    commit_age_s: float | None = None
    event_age_s: float | None = None
    dead_letters: int = 0

    @property
    def behind_s(self) -> float | None:
        """How old the newest block was at the newest commit: little on a live chain, days while old blocks come."""
        if self.commit_age_s is None or self.event_age_s is None:
            return None
        return self.event_age_s - self.commit_age_s


def chains(conn: Connection, names: list[str]) -> dict[str, ChainHealth]:
    """Every one of these chains, known to the database or not."""
    topics = [topic for name in names for topic in chain_topics(name)]
    commits = conn.execute(
        "SELECT split_part(topic, '.', 1), extract(epoch FROM clock_timestamp() - max(updated_at))::float8"
        " FROM ops.stream_offsets WHERE topic = ANY(%s) AND next_offset > 0 GROUP BY 1",
        (topics,),
    ).fetchall()
    tips = conn.execute(
        "SELECT chain, extract(epoch FROM clock_timestamp() - tip_ts)::float8 FROM ops.chains WHERE chain = ANY(%s)",
        (names,),
    ).fetchall()
    letters = conn.execute(
        "SELECT split_part(topic, '.', 1), count(*) FROM ops.dead_letters WHERE topic = ANY(%s)"
        " AND seen_at > clock_timestamp() - %s GROUP BY 1",
        (topics, _RECENT),
    ).fetchall()
    commit: dict[str, float] = dict(commits)
    tip: dict[str, float] = dict(tips)
    dead: dict[str, int] = dict(letters)
    return {name: ChainHealth(commit.get(name), tip.get(name), dead.get(name, 0)) for name in names}


def search_pending(conn: Connection) -> dict[str, tuple[int, float]]:
    """Chain -> micro-batches that the indexes do not show yet, and seconds since the oldest one's commit."""
    rows = conn.execute(
        "SELECT chain, count(*), extract(epoch FROM clock_timestamp() - min(committed_at))::float8"
        " FROM ops.search_outbox GROUP BY 1"
    ).fetchall()
    return {chain: (batches, oldest_s) for chain, batches, oldest_s in rows}


def archived(conn: Connection) -> tuple[int, int, float | None]:
    """Rows and bytes of the archive, and seconds since something was last archived, None if nothing ever was."""
    row = conn.execute(
        "SELECT coalesce(sum(rows), 0)::int8, coalesce(sum(bytes), 0)::int8,"
        " extract(epoch FROM clock_timestamp() - max(archived_at))::float8"
        " FROM ops.archive_manifest WHERE replaced_at IS NULL"
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def database_bytes(conn: Connection) -> int:
    """Size of the database."""
    row = conn.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    size: int = row[0]
    return size


def keep_checkpoint(conn: Connection, chain: str, lane: str, run_id: str, done: Checkpoint) -> None:
    """Write down what a lane did since the last report."""
    values: dict[str, Any] = {
        "chain": chain,
        "lane": lane,
        "run_id": run_id,
        "seconds": done.seconds,
        "messages": done.messages,
        "bytes": done.bytes,
        "rows": sum(done.rows.values()),
        "dead_letters": done.dead_letters,
        "reorgs": done.reorgs,
        "anomalies": done.anomalies,
        "lag": done.lag_after,
        "index_behind_s": done.index_behind_s,
    }
    for stage in STAGES:
        for percentile in ("p50", "p99"):
            values[f"{stage}_{percentile}_ms"] = done.latency.get(stage, {}).get(percentile)
    conn.execute(
        f"INSERT INTO ops.checkpoints ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
        list(values.values()),
    )


@dataclass(frozen=True)
class Measured:
    """What lanes measured of a chain in a window. `events_per_s`: messages over the window's whole length; `latency`:
    stage -> {"p50", "p99"} in ms, the median checkpoint's p50 and the worst one's p99; empty without a checkpoint."""

    checkpoints: int = 0
    messages: int = 0
    bytes: int = 0
    rows: int = 0
    dead_letters: int = 0
    reorgs: int = 0
    anomalies: int = 0
    events_per_s: float = 0.0
    index_behind_s: float = 0.0
    latency: dict[str, dict[str, float]] = field(default_factory=dict)


def measured(conn: Connection, chain: str, window_s: float) -> Measured:
    """The chain's checkpoints of the last `window_s` seconds, together."""
    sums = ("messages", "bytes", "rows", "dead_letters", "reorgs", "anomalies")
    latencies = [
        f"percentile_disc(0.5) WITHIN GROUP (ORDER BY {name})" if "_p50_" in name else f"max({name})"
        for name in _LATENCIES
    ]
    row = conn.execute(
        f"SELECT count(*), {', '.join(f'coalesce(sum({name}), 0)::int8' for name in sums)},"
        f" coalesce(max(index_behind_s), 0), {', '.join(latencies)}"
        " FROM ops.checkpoints WHERE chain = %s AND at > clock_timestamp() - %s",
        (chain, timedelta(seconds=window_s)),
    ).fetchone()
    assert row is not None
    count, *numbers = row[: len(sums) + 1]
    found = dict(zip(_LATENCIES, row[len(sums) + 2 :], strict=True))
    latency = {
        stage: {name: found[f"{stage}_{name}_ms"] for name in ("p50", "p99")}
        for stage in STAGES
        if found[f"{stage}_p50_ms"] is not None
    }
    values = dict(zip(sums, numbers, strict=True))
    return Measured(
        count, **values, events_per_s=values["messages"] / window_s, index_behind_s=row[len(sums) + 1], latency=latency
    )


@dataclass(frozen=True)
class Course:
    """A chain's last hours in steps, oldest first; a step without a checkpoint is left out. `at`: a step's beginning;
    `events_per_s`; `lag`: the most messages left to do of a lane; `p50`, `p99`: stage -> ms of each step."""

    at: list[datetime]
    events_per_s: list[float]
    lag: list[int]
    p50: dict[str, list[float | None]]
    p99: dict[str, list[float | None]]


def course(conn: Connection, chain: str, hours: float, step_s: float) -> Course:
    """What the chain's lanes measured in the last `hours`, in steps of `step_s` seconds."""
    latencies = [
        f"percentile_disc(0.5) WITHIN GROUP (ORDER BY {name})" if "_p50_" in name else f"max({name})"
        for name in _LATENCIES
    ]
    rows = conn.execute(
        f"SELECT time_bucket(%s, at), sum(messages)::float8 / %s, max(lag), {', '.join(latencies)}"
        " FROM ops.checkpoints WHERE chain = %s AND at > clock_timestamp() - %s GROUP BY 1 ORDER BY 1",
        (timedelta(seconds=step_s), step_s, chain, timedelta(hours=hours)),
    ).fetchall()
    columns = list(zip(*rows, strict=True)) or [()] * (3 + len(_LATENCIES))
    found = dict(zip(_LATENCIES, map(list, columns[3:]), strict=True))
    return Course(
        list(columns[0]),
        list(columns[1]),
        list(columns[2]),
        {stage: found[f"{stage}_p50_ms"] for stage in STAGES},
        {stage: found[f"{stage}_p99_ms"] for stage in STAGES},
    )


def sweep(conn: Connection, days: float) -> dict[str, int]:
    """Delete checkpoints, settled deliveries and resolved notices older than `days` days; table -> how many."""
    gone = {
        "checkpoints": "at",
        "notice_deliveries": "(delivered_at IS NOT NULL OR dropped IS NOT NULL) AND queued_at",
        "notices": "resolved_at",
    }
    return {
        table: conn.execute(
            f"DELETE FROM ops.{table} WHERE {condition} < clock_timestamp() - %s", (timedelta(days=days),)
        ).rowcount
        for table, condition in gone.items()
    }
