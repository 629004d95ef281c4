"""How a stack is doing, as one report.

Belongs here: gathering it; a part that cannot be asked is empty and says why.
Does not belong here: printing it (`report.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import psycopg

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError
from dash_pipeline.lag import ExtentReader
from dash_pipeline.settings import Settings
from dash_pipeline.stack import processes
from dash_pipeline.stack.servers import SERVERS, NotReadyError, Place, Server
from dash_pipeline.stack.servers.dagster import CodeLocation, code_locations, graphql
from dash_pipeline.stack.stack import Stack
from dash_pipeline.storage import timescale
from dash_pipeline.topics import chain_topics

_T = TypeVar("_T")

_LANE_TAG = "dash/lane"
_LIVE_RUNS = """{ runsOrError(
    filter: {statuses: [QUEUED, NOT_STARTED, STARTING, STARTED, CANCELING]}, limit: 500) {
    ... on Runs { results { runId status jobName startTime tags { key value } } } } }"""


@dataclass(frozen=True)
class ServerStatus:
    """One server. `state` is `ready`, `not ready` or supervisord's word; memory is all its processes'."""

    name: str
    state: str
    pid: int | None
    memory_bytes: int
    address: str
    problem: str = ""


@dataclass(frozen=True)
class PartitionLag:
    """One partition: the next offset to be written, the next to be ingested, and their difference."""

    partition: int
    end: int
    next: int
    lag: int


@dataclass(frozen=True)
class TopicLag:
    """One topic; `lag` is that of all its partitions."""

    topic: str
    lag: int
    partitions: list[PartitionLag]


@dataclass(frozen=True)
class Lane:
    """A run that drains a lane, or is about to."""

    lane: str
    run_id: str
    job: str
    status: str
    started: float | None


@dataclass(frozen=True)
class Status:
    """The whole report; `problems` says which parts are missing and why."""

    servers: list[ServerStatus]
    locations: list[CodeLocation] = field(default_factory=list)
    topics: list[TopicLag] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def memory_bytes(self) -> int:
        """What all servers hold."""
        return sum(server.memory_bytes for server in self.servers)


def status(stack: Stack, *, secrets: bool = False) -> Status:
    """Ask every server of the stack; addresses hold passwords only with `secrets`."""
    servers = [_server(stack, server, secrets) for server in SERVERS.values()]
    ready = {server.name for server in servers if server.state == "ready"}
    problems: list[str] = []

    def part(name: str, needs: set[str], ask: Callable[[], list[_T]]) -> list[_T]:
        try:
            if needs <= ready:
                return ask()
            problems.append(f"{name}: not asked for, {', '.join(sorted(needs - ready))} not ready")
        except (NotReadyError, DashError, psycopg.Error) as error:
            problems.append(f"{name}: {error}")
        return []

    place = stack.place
    return Status(
        servers=servers,
        locations=part("code locations", {"webserver"}, lambda: code_locations(place)),
        topics=part("lag", {"kafka", "timescale"}, lambda: lag(place.settings)),
        lanes=part("lanes", {"webserver"}, lambda: _lanes(place)),
        problems=problems,
    )


def lag(settings: Settings) -> list[TopicLag]:
    """What is in Kafka and not yet in TimescaleDB, for every topic of every chain of the registry.

    A partition nobody has ingested yet counts from its first message.
    """
    wanted = [topic for chain in load_chains(settings.chains_file) for topic in chain_topics(chain)]
    reader = ExtentReader(settings)
    try:
        extent = reader.read(wanted)
    finally:
        reader.close()
    with timescale.connect(settings) as connection:
        committed = timescale.committed_offsets(connection)
    topics = defaultdict(list)
    for place, behind in sorted(extent.lag(committed).items()):
        end = extent.end[place]
        topics[place[0]].append(PartitionLag(place[1], end, end - behind, behind))
    return [TopicLag(name, sum(one.lag for one in parts), parts) for name, parts in topics.items()]


def _server(stack: Stack, server: Server, secrets: bool) -> ServerStatus:
    address = server.address(stack.place, secrets=secrets)
    if not stack.supervisor.running():
        return ServerStatus(server.name, "stopped", None, 0, address)
    known = stack.supervisor.state(server.name)
    if known.pid is None:
        return ServerStatus(server.name, known.state.lower(), None, 0, address)
    memory = processes.memory_bytes(processes.tree(known.pid))
    try:
        server.probe(stack.place, known.since)
    except NotReadyError as error:
        return ServerStatus(server.name, "not ready", known.pid, memory, address, str(error))
    return ServerStatus(server.name, "ready", known.pid, memory, address)


def _lanes(place: Place) -> list[Lane]:
    lanes = []
    for run in graphql(place, _LIVE_RUNS)["runsOrError"]["results"]:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        if _LANE_TAG in tags:
            lanes.append(Lane(tags[_LANE_TAG], run["runId"], run["jobName"], run["status"], run["startTime"]))
    return lanes
