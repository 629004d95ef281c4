"""What every server of the stack can be asked for.

Belongs here: the protocol and the small tools that several servers use. Does not belong here: any one server.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from dash_pipeline.settings import Settings
from dash_pipeline.stack.install import Say
from dash_pipeline.stack.layout import DEPLOYMENT, Layout, Ports
from dash_pipeline.stack.secrets import Secrets, write_private
from dash_pipeline.stack.supervisor import Program


class NotReadyError(Exception):
    """The server does not do its work yet; says what it did instead."""


@dataclass(frozen=True)
class Place:
    """Where a server is put: everything about one stack that a server needs to know."""

    layout: Layout
    ports: Ports
    secrets: Secrets
    settings: Settings

    def conf(self, server: str) -> Path:
        """The folder of a server's rendered configuration."""
        return self.layout.run / server

    def data(self, server: str) -> Path:
        """The folder of a server's data."""
        return self.layout.data / server

    def log(self, server: str) -> Path:
        """What installing and preparing a server printed."""
        return self.layout.logs / f"{server}-setup.log"


class Server(ABC):
    """One server; stateless, so the same object serves any number of stacks."""

    #: Its name everywhere: on the command line, as a program, in file names.
    name: str
    #: The entries of the port table that it listens on.
    ports: tuple[str, ...]
    #: Seconds it may take from its start to its first answer on a small machine that is busy with other things.
    patience_s: float = 300

    @property
    def needs(self) -> tuple[str, ...]:
        """The servers that must be ready before this one starts."""
        return ()

    @abstractmethod
    def prepare(self, place: Place, say: Say) -> Program:
        """Install what is missing, write its configuration, make its data folder; returns what to run.

        Raises DashError with one line when that is not possible.
        """

    @abstractmethod
    def probe(self, place: Place, since: float) -> None:
        """One real request with its user's password; `since`: when its process started, Unix seconds.

        Raises NotReadyError.
        """

    def set_up(self, place: Place) -> None:  # noqa: B027
        """Make what a fresh server lacks, such as roles; most lack nothing. Does nothing the second time."""

    @abstractmethod
    def address(self, place: Place, *, secrets: bool = False) -> str:
        """The URL or DSN to connect by; its password only when `secrets`."""


def render(server: str, name: str, target: Path, values: Mapping[str, object]) -> None:
    """Fill in the `${...}` of `deployments/local/<server>/<name>`; readable by this user only.

    Raises KeyError for a `${...}` without a value: a mistake in this repository.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    template = Template((DEPLOYMENT / server / name).read_text())
    write_private(target, template.substitute(values))


def start_script(server: str) -> str:
    """The path of the server's start script."""
    return str(DEPLOYMENT / server / "start.sh")


def http_json(
    url: str,
    *,
    user: str = "",
    password: str = "",
    body: object = None,
    method: str | None = None,
    timeout_s: float = 5,
) -> Any:
    """Ask an HTTP server for JSON, with JSON when there is a body (POST unless `method` says otherwise).

    Raises NotReadyError unless the answer is JSON with a 2xx status.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    request.add_header("Content-Type", "application/json")
    if user:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            return json.load(response)
    except (OSError, ValueError) as error:
        raise NotReadyError(f"{url}: {error}") from error


# The servers are on this machine: a proxy of the environment cannot reach them.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
