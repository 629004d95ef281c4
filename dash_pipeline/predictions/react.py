"""What follows from anomalies: predictions and alerts, in one transaction.

Belongs here: the order of steps; the same for a warm lane and for the engine's run. Does not belong here: who calls it.

Everything here may be done twice, by two processes at once, or again after a kill: predictions have keys, alerts are
raised under the chain's lock and have the anomaly's id.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from dash_pipeline.alerts.rules import Policy
from dash_pipeline.chains import Chain
from dash_pipeline.models.champions import Champions
from dash_pipeline.predictions.predict import ARCHIVED, predict
from dash_pipeline.settings import Settings
from dash_pipeline.storage import alerts, predictions
from dash_pipeline.storage.anomalies import Stored
from dash_pipeline.storage.timescale import Connection

log = logging.getLogger(__name__)


@dataclass
class Reaction:
    """What came of some anomalies. `unpredicted`: those that scoring failed for, in a way that nobody foresaw. `old`:
    those with a pool or wallet that was not looked at, because part of its history is archived."""

    anomalies: int = 0
    retracted: int = 0
    predictions: int = 0
    unpredicted: int = 0
    alerts: list[bytes] = field(default_factory=list)
    pools: set[bytes] = field(default_factory=set)
    old: set[bytes] = field(default_factory=set)

    def add(self, other: Reaction) -> None:
        """What another reaction did, too."""
        self.anomalies += other.anomalies
        self.retracted += other.retracted
        self.predictions += other.predictions
        self.unpredicted += other.unpredicted
        self.alerts += other.alerts
        self.pools |= other.pools
        self.old |= other.old


def react(
    conn: Connection,
    policy: Policy,
    chains: Mapping[str, Chain],
    champions: Champions,
    anomalies: Sequence[Stored],
    run_id: str,
    archive: Settings | None = None,
) -> Reaction:
    """Score the pools and wallets of active anomalies, raise alerts, take back those of retracted ones; in the
    caller's transaction. Those with archived rows are scored only where `archive` says how S3 is reached."""
    reaction = Reaction(len(anomalies))
    by_chain: dict[str, list[Stored]] = defaultdict(list)
    for one in anomalies:
        by_chain[one.chain].append(one)
        reaction.pools.add(one.pool)
    for chain, some in sorted(by_chain.items()):
        gone = [one.id for one in some if one.retracted]
        active = [one for one in some if not one.retracted]
        reaction.retracted += len(gone)
        if active:
            try:
                with conn.transaction():
                    made = predict(conn, chains[chain], champions, active, archive) if chain in chains else []
                    now = [one for one in made if one.reason != ARCHIVED]
                    written = predictions.write_predictions(conn, now, run_id)
                reaction.predictions += written
                reaction.old |= {one.anomaly_id for one in made if one.reason == ARCHIVED}
            except (psycopg.OperationalError, psycopg.InterfaceError):
                raise
            except Exception:
                # An alert without a prediction is better than none.
                log.exception("%s: %d anomalies are not scored", chain, len(active))
                reaction.unpredicted += len(active)
            reaction.alerts += alerts.raise_alerts(conn, policy, active, run_id)
        if gone:
            reaction.alerts += alerts.retract(conn, policy, gone, run_id)
    return reaction
