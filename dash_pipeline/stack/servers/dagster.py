"""Dagster's processes: code servers, webserver, daemon.

Belongs here: how they are started and asked. Does not belong here: definitions (`dash_pipeline/locations/`).
Nothing here imports dagster: they are programs like the other servers, spoken to by gRPC and GraphQL.
"""

from __future__ import annotations

import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dash_pipeline.stack import install
from dash_pipeline.stack.install import Say
from dash_pipeline.stack.layout import DEPLOYMENT, REPOSITORY
from dash_pipeline.stack.secrets import environment, write_private
from dash_pipeline.stack.servers.base import NotReadyError, Place, Server, http_json
from dash_pipeline.stack.servers.timescale import superuser
from dash_pipeline.stack.supervisor import Program

CODE_LOCATIONS = ("ingestion", "intelligence", "lifecycle", "marts")

_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus
    locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
_PROBLEM_WIDTH = 200
_MAKE_TABLES = "from dagster import DagsterInstance; DagsterInstance.get().get_runs_count()"
_ONE_AT_A_TIME = threading.Lock()
_UNREACHABLE = "DagsterUserCodeUnreachableError"


@dataclass(frozen=True)
class CodeLocation:
    """One code location as the webserver has it; `problem` says why it is not loaded."""

    name: str
    loaded: bool
    problem: str = ""

    @property
    def settled(self) -> bool:
        """Whether waiting would change nothing: loaded, or broken in itself."""
        return self.loaded or bool(self.problem and _UNREACHABLE not in self.problem)


class CodeServer(Server):
    """Loads one code location and serves its definitions; it is the parent of the location's runs."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.name = f"code-{location}"
        self.ports = (self.name,)

    @property
    def needs(self) -> tuple[str, ...]:
        """Its definitions are loaded with the instance, whose storage is in PostgreSQL."""
        return ("timescale",)

    def prepare(self, place: Place, say: Say) -> Program:
        """A location that does not load is served all the same: the UI then shows why."""
        make_instance(place)
        address = ["--host", place.ports.host, "--port", str(place.ports[self.name])]
        module = [
            "--module-name",
            f"dash_pipeline.locations.{self.location}",
            "--location-name",
            self.location,
        ]
        command = [*_dagster("dagster"), "api", "grpc", *address, *module, "--lazy-load-user-code"]
        return Program(self.name, command, stop_wait_s=20)

    def probe(self, place: Place, since: float) -> None:
        """gRPC's own health check; raises NotReadyError until it passes."""
        target = place.ports.at(self.name)
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            request = health_pb2.HealthCheckRequest(service="DagsterApi")
            try:
                health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
            except grpc.RpcError as error:
                raise NotReadyError(str(error.code())) from error

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """gRPC address; Dagster's protocol knows no password, so who reaches the stack's address is let in."""
        return f"grpc://{place.ports.at(self.name)}"


class Webserver(Server):
    """The UI and its GraphQL."""

    name = "webserver"
    ports = ("webserver",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Its storage is in PostgreSQL."""
        return ("timescale",)

    def prepare(self, place: Place, say: Say) -> Program:
        """Reads the code locations from the repository's workspace.yaml."""
        make_instance(place)
        address = ["--host", place.ports.host, "--port", str(place.ports[self.name])]
        command = [
            *_dagster("dagster-webserver"),
            *address,
            "--workspace",
            str(REPOSITORY / "workspace.yaml"),
        ]
        return Program(self.name, command, stop_wait_s=15)

    def probe(self, place: Place, since: float) -> None:
        """GraphQL answers, which needs the database."""
        graphql(place, "{ version }")

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """The UI's URL."""
        return place.settings.dagster_url


class Daemon(Server):
    """Ticks sensors and schedules, starts queued runs, watches running ones."""

    name = "daemon"
    ports = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Sensors must find the topics, the tables and their code."""
        return (
            "timescale",
            "kafka",
            "opensearch",
            "s3",
            "webserver",
            *(f"code-{name}" for name in CODE_LOCATIONS),
        )

    def prepare(self, place: Place, say: Say) -> Program:
        """One daemon for all code locations."""
        make_instance(place)
        workspace = ["--workspace", str(REPOSITORY / "workspace.yaml")]
        return Program(self.name, [*_dagster("dagster-daemon"), "run", *workspace], stop_wait_s=20)

    def probe(self, place: Place, since: float) -> None:
        """Its heart beats in the database, as the webserver sees it; raises NotReadyError until it does."""
        fields = "daemonType required healthy lastHeartbeatTime"
        query = f"{{ instance {{ daemonHealth {{ allDaemonStatuses {{ {fields} }} }} }} }}"
        statuses = graphql(place, query)["instance"]["daemonHealth"]["allDaemonStatuses"]
        # A heartbeat of the daemon before this one would do for `healthy`.
        beating = {one["daemonType"] for one in statuses if one["healthy"] and one["lastHeartbeatTime"] >= since}
        ill = [one["daemonType"] for one in statuses if one["required"] and one["daemonType"] not in beating]
        if ill:
            raise NotReadyError(f"no heartbeat of {', '.join(ill)}")

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """It listens nowhere."""
        return ""


def graphql(place: Place, query: str, **variables: object) -> Any:
    """The `data` of the webserver's answer. Raises NotReadyError when it is an error."""
    answer = http_json(f"{place.settings.dagster_url}/graphql", body={"query": query, "variables": variables})
    if answer.get("errors"):
        raise NotReadyError(answer["errors"][0]["message"])
    return answer["data"]


def code_locations(place: Place) -> list[CodeLocation]:
    """The code locations of the workspace. Raises NotReadyError when the webserver does not answer."""
    entries = graphql(place, _LOCATIONS)["workspaceOrError"]["locationEntries"]
    return [_code_location(entry) for entry in entries]


def _code_location(entry: dict[str, Any]) -> CodeLocation:
    result = entry["locationOrLoadError"]
    if result is None:
        return CodeLocation(entry["name"], False)
    first_line = result.get("message", "").strip().partition("\n")[0]
    problem = textwrap.shorten(first_line.rpartition("dagster._core.errors.")[2], _PROBLEM_WIDTH)
    return CodeLocation(entry["name"], result["__typename"] == "RepositoryLocation", problem)


def make_instance(place: Place) -> None:
    """Make DAGSTER_HOME, and Dagster's tables in an empty database.

    Each of Dagster's programs would make them, but several at once get in each other's way: the first tables of one
    make the others believe that all are there.
    """
    (place.layout.dagster / "logs").mkdir(parents=True, exist_ok=True)
    write_private(place.layout.dagster / "dagster.yaml", (DEPLOYMENT / "dagster" / "dagster.yaml").read_text())
    with _ONE_AT_A_TIME, superuser(place, "dagster") as connection:
        row = connection.execute("SELECT to_regclass('public.runs')").fetchone()
        if row is None or row[0] is None:
            values = environment(place.layout, place.ports, place.secrets)
            install.call([sys.executable, "-c", _MAKE_TABLES], place.log("webserver"), secret=True, **values)  # type: ignore[arg-type]


def _dagster(program: str) -> list[str]:
    return [str(Path(sys.executable).with_name(program))]
