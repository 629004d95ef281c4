"""The read API's process.

Belongs here: how it is started and asked. Does not belong here: the API (`dash_pipeline/api/`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from dash_pipeline.stack.install import Say
from dash_pipeline.stack.servers.base import Place, Server, http_json
from dash_pipeline.stack.supervisor import Program


class Api(Server):
    """Answers from database and search; Kafka, which it asks for offsets only, may be away."""

    name = "api"
    ports = ("api",)

    @property
    def needs(self) -> tuple[str, ...]:
        """The stores that it answers from."""
        return ("timescale", "opensearch")

    def prepare(self, place: Place, say: Say) -> Program:
        """One process; what it needs is in the environment."""
        address = ["--host", place.ports.host, "--port", str(place.ports[self.name])]
        command = [str(Path(sys.executable).with_name("dash-pipeline")), "api", *address]
        return Program(self.name, command, stop_wait_s=15)

    def probe(self, place: Place, since: float) -> None:
        """It answers."""
        http_json(f"{self.address(place)}/healthz")

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """Its URL; /docs is the documentation."""
        return f"http://{place.ports.at(self.name)}"
