"""Which anomalies become alerts, and who is told.

Belongs here: the settings that decide it, and the decision, both pure. Does not belong here: SQL
(`dash_pipeline/storage/alerts.py`), which asks for the decision under the chain's lock.

The cool-down counts from when an anomaly was detected, by the wall clock: an engine that was away for hours decides as
one that was there, and an anomaly that is handed over twice is decided the same way twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import polars as pl
from pydantic import SecretStr

from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings

#: From the least to the most severe; a severity's rank is its place.
SEVERITIES = ("low", "medium", "high")

_TIME = pl.Datetime("us", "UTC")
#: Anomalies to decide on.
CANDIDATES: dict[str, Any] = {
    "id": pl.Binary,
    "pool": pl.Binary,
    "severity": pl.String,
    "ts": _TIME,
    "detected_at": _TIME,
}
#: Alerts that hold.
RAISED: dict[str, Any] = {"pool": pl.Binary, "severity": pl.String, "raised_at": _TIME}


@dataclass(frozen=True)
class Policy:
    """What the settings say about alerts. `routes`: name -> URL; `route_severity`: route -> the least severe alert that
    it gets, `min_severity` where it is not named; `url`: where people look, named in every alert."""

    min_severity: str = "medium"
    cooldown_s: float = 3600
    routes: Mapping[str, str] = field(default_factory=dict)
    route_severity: Mapping[str, str] = field(default_factory=dict)
    secret: SecretStr | None = None
    give_up_s: float = 86_400
    batch: int = 50
    url: str = ""

    def __post_init__(self) -> None:
        """Raises DashError for a route that cannot be posted to, a severity that is none, a route that is not there."""
        for route, url in self.routes.items():
            if not _can_be_posted_to(url):
                # The URL may hold a password and is not shown.
                raise DashError(f"DASH_ALERT_ROUTES: {route} is no http:// or https:// address")
        for name, severity in [("DASH_ALERT_MIN_SEVERITY", self.min_severity), *self.route_severity.items()]:
            if severity not in SEVERITIES:
                raise DashError(f"{name}: {severity} is not one of {', '.join(SEVERITIES)}")
        if unknown := sorted(set(self.route_severity) - set(self.routes)):
            raise DashError(f"DASH_ALERT_ROUTE_SEVERITY: DASH_ALERT_ROUTES has no {', '.join(unknown)}")

    @staticmethod
    def of(settings: Settings) -> Policy:
        """The policy that the settings describe. Raises DashError for one that makes no sense."""
        return Policy(
            min_severity=settings.alert_min_severity,
            cooldown_s=settings.alert_cooldown_s,
            routes=settings.alert_routes,
            route_severity=settings.alert_route_severity,
            secret=settings.alert_secret,
            give_up_s=settings.alert_give_up_s,
            batch=settings.alert_batch,
            url=settings.dagster_url,
        )

    def tells(self, severity: str) -> bool:
        """Whether anomalies of this severity raise alerts."""
        return rank(severity) >= rank(self.min_severity)

    def told(self) -> list[tuple[str, str]]:
        """(route, severity) for each severity of alerts that a route gets."""
        return [
            (route, severity)
            for route in self.routes
            for severity in SEVERITIES
            if rank(severity) >= rank(self.route_severity.get(route, self.min_severity))
        ]


def _can_be_posted_to(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # The port is read to see that it is a number.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def rank(severity: str) -> int:
    """0 for the least severe."""
    return SEVERITIES.index(severity)


def decide(candidates: pl.DataFrame, raised: pl.DataFrame, policy: Policy) -> list[bytes]:
    """The ids of the anomalies that become alerts, in the order of the pools' ids.

    `candidates` (CANDIDATES): active anomalies of one chain that are no alerts; `raised` (RAISED): alerts that hold, of
    their pools. A pool's anomaly is covered by an alert that is at least as severe and was raised within the cool-down
    before its detection, or after that. Of a pool's others the most severe becomes an alert; of equals the earliest.
    """
    order = pl.Enum(SEVERITIES)
    severe = candidates.with_columns(pl.col("severity").cast(order).to_physical()).filter(
        pl.col("severity") >= rank(policy.min_severity)
    )
    alerts = raised.select("pool", "raised_at", as_severe=pl.col("severity").cast(order).to_physical())
    covered = severe.join(alerts, on="pool").filter(
        (pl.col("as_severe") >= pl.col("severity"))
        & (pl.col("raised_at") > pl.col("detected_at") - timedelta(seconds=policy.cooldown_s))
    )
    chosen = (
        severe.join(covered, on="id", how="anti")
        .sort("severity", "ts", "id", descending=[True, False, False])
        .unique("pool", keep="first", maintain_order=True)
    )
    ids: list[bytes] = chosen.sort("pool")["id"].to_list()
    return ids
