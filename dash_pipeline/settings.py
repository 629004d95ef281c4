"""Environment and `.stack/env` -> typed settings.

Belongs here: every value that differs between machines, with its default and its check.
Does not belong here: what is true of a chain (see `chains.toml`) or of one run (run config).

Precedence: environment, then the stack's own file (`$DASH_STACK_DIR/env`, written by `dash-pipeline up`).
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dash_pipeline.errors import DashError

PREFIX = "DASH_"

Severity = Literal["low", "medium", "high"]


def _object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('not JSON, such as {"name": "value"} or [{"name": "value"}]') from None


# Read here, not by pydantic-settings, whose complaint is not a line that says what to do.
_JSON = (NoDecode, BeforeValidator(_object))


def stack_dir() -> Path:
    """The folder everything of the local stack lives under."""
    return Path(os.environ.get("DASH_STACK_DIR") or ".stack").absolute()


class LanePod(BaseModel):
    """The pod of lanes that have at least `lag` messages to do when they are started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
    lag: int = Field(ge=0)
    config: dict[
        Literal[
            "container_config", "pod_template_spec_metadata", "pod_spec_config", "job_config", "job_metadata",
            "job_spec_config", "merge_behavior",
        ],
        Any,
    ]  # fmt: skip


class ApiTier(BaseModel):
    """How much a key of the read API may ask: `rate` requests a second on average, `burst` at once after a pause."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(gt=0)
    burst: int = Field(ge=1)


# The names that the load balancer has for its classes; `standard` is what is in between.
_TIERS = {"anonymous": (20, 40), "batch": (20, 40), "standard": (100, 200), "paying": (500, 1000)}


def _with_anonymous(value: dict[str, ApiTier]) -> dict[str, ApiTier]:
    if "anonymous" not in value:
        raise ValueError("there is no tier `anonymous`, which is for requests without a key")
    return value


def _not_above_max_lanes(value: int, info: ValidationInfo) -> int:
    most = info.data.get("max_lanes", value)
    if value > most:
        raise ValueError(f"{value} is more than DASH_MAX_LANES, which is {most}")
    return value


class Channel(BaseModel):
    """A way to reach operators. `url`: http(s) for a webhook or Slack; for e-mail smtps:// (TLS from the beginning),
    smtp:// (STARTTLS, without which nothing is sent) or smtp+plain:// (unencrypted), each with user:password@ if the
    server wants one."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    kind: Literal["webhook", "slack", "email"]
    url: str = Field(repr=False)
    sender: str = Field("", pattern=r"^$|^[^@\s]+@[^@\s]+$")
    to: list[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]] = []
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        schemes = ("smtp", "smtps", "smtp+plain") if self.kind == "email" else ("http", "https")
        try:
            parts = urlsplit(self.url)
            # The port is read to see that it is a number.
            reachable = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            reachable = False
        if not reachable:
            # It may hold a password and is not shown.
            raise ValueError(f"its url is no {' or '.join(f'{scheme}://' for scheme in schemes)} address")
        if self.kind == "email" and not (self.sender and self.to):
            raise ValueError("an e-mail channel needs sender and to")
        return self


def _known_channels(value: dict[str, list[str]], info: ValidationInfo) -> dict[str, list[str]]:
    channels = info.data.get("notify_channels")
    for owner, names in value.items():
        if channels is not None and (unknown := sorted(set(names) - set(channels))):
            raise ValueError(f"{owner}: DASH_NOTIFY_CHANNELS has no {', '.join(unknown)}")
    return value


class Settings(BaseSettings):
    """Every setting's environment variable is its name in capitals behind `DASH_`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    kafka_bootstrap: str = Field(min_length=3, description="brokers, host:port[,host:port]")
    kafka_security_protocol: str = Field(
        "PLAINTEXT",
        pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    )
    kafka_sasl_mechanism: str = Field(
        "SCRAM-SHA-512",
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; counts with SASL only",
    )
    kafka_username: str | None = Field(None, description="user, with SASL")
    kafka_password: SecretStr | None = Field(None, description="its password")
    kafka_ca_file: Path | None = Field(None, description="PEM file of who signed the brokers' certificates")

    timescale_dsn: SecretStr = Field(description="postgresql://user:password@host:port/database")

    opensearch_url: str = Field(pattern="^https?://", description="http(s)://host:port of the search cluster")
    opensearch_username: str | None = Field(None, description="user of the search cluster, if it asks for one")
    opensearch_password: SecretStr | None = Field(None, description="its password")
    opensearch_ca_file: Path | None = Field(None, description="PEM file of who signed the cluster's certificate")
    opensearch_shards: int = Field(1, ge=1, le=1024, description="of a transactions index, from its next rebuild on")

    opensearch_repository: str = Field(
        "", description="a snapshot repository that the cluster has; without it one in the bucket is registered"
    )
    opensearch_snapshot_encryption: Literal["AES256", "aws:kms", "bucket_default"] = Field(
        "AES256", description="with which of the store's own keys its snapshots are encrypted"
    )

    s3_endpoint: str | None = Field(None, description="http(s)://host:port of the store; AWS without it")
    s3_region: str = Field("us-east-1", description="region that requests are signed for")
    s3_bucket: str = Field("dash", description="bucket of archive, backups, labels and models")
    s3_access_key: str | None = Field(None, description="access key; without it, as AWS' tools find theirs")
    s3_secret_key: SecretStr | None = Field(None, description="its secret key")
    encryption_keys: Annotated[dict[str, str], *_JSON] = Field(
        default_factory=dict,
        repr=False,
        description="name -> AES-256 key in base64 for archives and backups; the first encrypts, the others still read",
    )

    backup_dsn: SecretStr | None = Field(
        None,
        description="postgresql://user:password@host:port/db of a role with REPLICATION and pg_read_all_data",
    )
    pg_bin: Path | None = Field(None, description="folder of PostgreSQL 17's programs, which back up and restore")
    backup_dir: Path | None = Field(
        None, description="folder for what is being backed up or restored; it needs the database's room"
    )
    backup_full_days: float = Field(7, gt=0, description="days after which a backup is a full one again")
    backup_daily: int = Field(7, ge=1, description="backups kept: the newest of each of so many days")
    backup_weekly: int = Field(4, ge=0, description="and the newest of each of so many weeks")
    archive_timeout_s: int = Field(60, ge=1, description="seconds of commits that may be on the database's disk alone")
    archive_waiting_s: float = Field(600, gt=0, description="seconds a log segment may wait to be archived")

    dagster_url: str = Field("http://127.0.0.1:3000", description="where Dagster's UI is, for links in messages")
    code_url: str = Field(
        "",
        pattern="^(https?://.*)?$",
        description="what links to an asset's code begin with, as https://git.example/dash/blob/<revision>; without it"
        " they name files of this checkout",
    )

    chains_file: Path | None = Field(None, description="a registry that replaces the one in the package")

    batch_rows: int = Field(10_000, ge=1, le=100_000, description="rows a micro-batch holds at most")
    batch_bytes: int = Field(32 << 20, ge=1 << 10, description="bytes a micro-batch holds at most")
    max_message_bytes: int = Field(8 << 20, ge=1 << 10, description="a larger message is a dead letter")
    max_reorg_depth: int = Field(256, ge=1, description="blocks; a deeper fork is refused")
    retry_for_s: float = Field(60, ge=0, description="seconds a lane retries an unreachable server")

    max_lanes: int = Field(2, ge=1, le=256, description="lanes per chain at the same time")
    min_lanes: Annotated[int, AfterValidator(_not_above_max_lanes)] = Field(
        1, ge=1, description="lanes per chain while there is lag"
    )
    lag_per_lane: int = Field(5_000, ge=1, description="lag that earns another lane")
    scale_up_cooldown_s: float = Field(30, ge=0, description="seconds for which a chain's lanes stay as planned")
    scale_down_after_s: float = Field(
        120, ge=0, description="seconds for which lag must fit into fewer lanes before there are fewer"
    )
    lane_pods: Annotated[list[LanePod], *_JSON] = Field(
        default_factory=list,
        description='pods of lanes on Kubernetes, [{"name": ..., "lag": ..., "config": {...}}]: a lane gets the one'
        " with the largest lag not above its own, `config` as its run's tag dagster-k8s/config",
    )
    idle_timeout_s: float = Field(20, ge=0, description="seconds without messages after which a lane ends")
    max_run_s: float = Field(600, ge=1, description="seconds after which a lane ends")
    checkpoint_s: float = Field(30, ge=1, description="seconds between the reports of a lane that runs")
    stop_within_s: float = Field(
        20, ge=2, description="seconds in which a lane ends that gets SIGTERM; less than a pod's grace period"
    )

    settle_blocks: int = Field(12, ge=0, description="blocks below the tip that a check leaves to arrive")
    fresh_within_s: float = Field(600, gt=0, description="seconds of chain time rows and indexes may be behind")
    wall_clock_gap_s: float = Field(900, gt=0, description="seconds a live chain's newest block may be old")
    notify_channels: Annotated[dict[str, Channel], *_JSON] = Field(
        default_factory=dict,
        repr=False,
        description='name -> {"kind": "webhook", "slack" or "email", "url": ...}: how operators are reached',
    )
    owner_routes: Annotated[dict[str, list[str]], *_JSON, AfterValidator(_known_channels)] = Field(
        default_factory=dict,
        description='owner -> names of channels that its notices go to; "*" gets what no other owner does',
    )
    notify_repeat_s: float = Field(14_400, gt=0, description="seconds after which an open notice is told again")
    notify_resolved: bool = Field(True, description="operators are told when a notice is resolved")
    failures_in_row: Annotated[dict[str, Annotated[int, Field(ge=1, le=100)]], *_JSON] = Field(
        default_factory=dict,
        description='job -> failed runs in a row that operators are told of; "*" for others, 1 without',
    )
    notify_lag: int = Field(100_000, ge=1, description="a chain's lag that operators are told of, once it lasts")
    notify_after_s: float = Field(
        300, gt=0, description="seconds that lag lasts, or that commits stand still, before operators are told"
    )
    notify_quiet_s: float = Field(900, gt=0, description="seconds without an event of a live chain")
    notify_dead_letters: int = Field(1, ge=1, description="dead letters of a chain within an hour")
    health_minutes: int = Field(5, ge=1, le=59, description="minutes between two looks of platform_health")
    drill_overdue_days: float = Field(8, gt=0, description="days since the last good restore drill")

    metrics_push_url: str | None = Field(
        None, pattern="^https?://", description="a Pushgateway that lanes and the engine push their metrics to"
    )
    metrics_dir: Path | None = Field(
        None, description="folder that lanes and the engine write their metrics to; `dash-pipeline metrics` shows them"
    )

    alert_routes: Annotated[dict[str, str], *_JSON] = Field(
        default_factory=dict, description="route -> URL that alerts about pools are posted to, as JSON"
    )
    alert_secret: SecretStr | None = Field(None, description="key of the signature on what is posted to the routes")
    alert_min_severity: Severity = Field("medium", description="a less severe anomaly raises no alert")
    alert_route_severity: Annotated[dict[str, Severity], *_JSON] = Field(
        default_factory=dict, description="route -> the least severe alert that it gets; others get all"
    )
    alert_cooldown_s: float = Field(3600, ge=0, description="seconds in which a pool alerts again only if it got worse")
    alert_batch: int = Field(50, ge=1, le=1000, description="alerts that one request to a route holds at most")
    alert_give_up_s: float = Field(86_400, gt=0, description="seconds after which an alert nobody takes is given up")
    direct_alerts: bool = Field(True, description="lanes raise alerts themselves, before the prediction engine's run")

    marts_every_s: float = Field(60, ge=1, description="seconds from one run of the marts to the next, if rows came")
    api_tiers: Annotated[dict[str, ApiTier], *_JSON, AfterValidator(_with_anonymous)] = Field(
        default_factory=lambda: {name: ApiTier(rate=rate, burst=burst) for name, (rate, burst) in _TIERS.items()},
        description='tiers of the API\'s keys, {"name": {"rate": requests a second, "burst": requests at once}}, for'
        " each process of the API; `anonymous` is for requests without a key, for each address",
    )
    api_anonymous: bool = Field(True, description="the API answers requests without a key")
    api_key_cache_s: float = Field(5, ge=0, le=60, description="seconds after which a revoked key is refused")
    api_timeout_s: float = Field(2, gt=0, le=30, description="seconds after which a store that is silent is away")
    api_proxies: str = Field(
        "127.0.0.1", description="addresses whose X-Forwarded-For the API believes, as in 10.0.0.0/8,127.0.0.1; or *"
    )

    retention_days: float = Field(7, gt=0, description="days of chain time that rows stay hot")
    compress_after_days: float | None = Field(
        None, gt=0, description="days of chain time after which hot rows are compressed, where TimescaleDB's licence"
        " has compression; off without"
    )  # fmt: skip
    search_transaction_days: float = Field(
        7, gt=0, description="days of chain time that transactions stay in the search index"
    )
    search_wallet_days: float = Field(30, gt=0, description="days of chain time that wallets' days stay in the index")
    search_alert_days: float = Field(365, gt=0, description="days before the newest one that alerts stay in the index")
    upload_hours: float = Field(24, gt=0, description="hours after which an unfinished upload in parts is ended")
    dagster_days: float = Field(30, gt=0, description="days that ended runs, their events and ticks stay in Dagster")
    champion_refresh_s: float = Field(20, gt=0, le=60, description="seconds between looks for a new champion")
    labels: Annotated[dict[str, str], *_JSON] = Field(
        default_factory=dict,
        description="model -> csv or Parquet (a path or s3://bucket/key) that it is trained on, instead of the sample",
    )


def load_settings() -> Settings:
    """The settings in force.

    Raises DashError with one line for each wrong or missing setting: its name, what is wrong, where it is set.
    """
    file = stack_dir() / "env"
    try:
        # PostgreSQL runs our module as a user who may not read the file; its environment has all that the file says.
        return Settings(_env_file=file if os.access(file, os.R_OK) else None)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = PREFIX + str(problem["loc"][0]).upper()
            if name in os.environ:
                where = "set in the environment"
            elif problem["type"] != "missing":
                where = f"set in {file}"
            else:
                where = f"set it in the environment or in {file} (`dash-pipeline up` writes that file)"
            text = problem["msg"].removeprefix("Value error, ")
            inside = "".join(f"{part}: " for part in problem["loc"][1:])
            lines.append(f"{name}: {inside}{text[:1].lower()}{text[1:]}; {where}")
        raise DashError("\n".join(lines)) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """`load_settings()`, once per process."""
    return load_settings()
