"""Where everything of one stack lies: folders and ports.

Belongs here: paths, port numbers and the stack's identity. Does not belong here: making or reading the files.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dash_pipeline
from dash_pipeline.errors import DashError
from dash_pipeline.settings import stack_dir

REPOSITORY = Path(dash_pipeline.__file__).resolve().parents[1]
DEPLOYMENT = REPOSITORY / "deployments" / "local"

# sun_path holds 108 bytes; PostgreSQL and supervisord put a file name of up to 30 behind the folder.
_LONGEST_SOCKET_FOLDER = 75

# No two are equal modulo 1000, so stacks whose offsets are different thousands never meet.
PORTS = {
    "kafka": 19092,
    "kafka controller": 19093,
    "timescale": 15432,
    "opensearch": 19200,
    "opensearch transport": 19300,
    "s3": 18333,
    "s3 grpc": 18334,
    "s3 master": 18433,
    "s3 master grpc": 18434,
    "s3 volume": 18533,
    "s3 volume grpc": 18534,
    "s3 filer": 18633,
    "s3 filer grpc": 18634,
    "s3 admin": 18733,
    "s3 admin grpc": 18734,
    "webserver": 13000,
    "api": 18080,
    "code-ingestion": 14001,
    "code-marts": 14002,
    "code-intelligence": 14003,
    "code-lifecycle": 14004,
}


@dataclass(frozen=True)
class Ports:
    """The port table moved by an offset, at one address of this machine."""

    offset: int = 0
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not (min(PORTS.values()) + self.offset > 1023 and max(PORTS.values()) + self.offset < 65536):
            raise DashError(f"DASH_PORT_OFFSET={self.offset} moves a port out of 1024 to 65535")

    def __getitem__(self, name: str) -> int:
        return PORTS[name] + self.offset

    def at(self, name: str) -> str:
        """host:port of a server."""
        return f"{self.host}:{self[name]}"


@dataclass(frozen=True)
class Layout:
    """The folders of one stack: `home` holds what is its own, `opt` the installed servers (may be shared)."""

    home: Path
    opt: Path

    @classmethod
    def at(cls, home: Path | None = None, opt: Path | None = None) -> Layout:
        """In `home`, $DASH_STACK_DIR or `.stack`; servers in `opt`, $DASH_OPT_DIR or `<home>/opt`."""
        home = (home or stack_dir()).absolute()
        chosen = opt or os.environ.get("DASH_OPT_DIR")
        return cls(home, Path(chosen).absolute() if chosen else home / "opt")

    @property
    def env(self) -> Path:
        """Settings of everything that talks to the servers; mode 0600."""
        return self.home / "env"

    @property
    def secrets(self) -> Path:
        """Every password that was made for this stack; mode 0600."""
        return self.home / "secrets.json"

    @property
    def data(self) -> Path:
        """What the servers store."""
        return self.home / "data"

    @property
    def logs(self) -> Path:
        """What the servers print."""
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """Rendered configuration and other files that the next start makes anew."""
        return self.home / "run"

    @property
    def dagster(self) -> Path:
        """DAGSTER_HOME."""
        return self.home / "dagster"

    @cached_property
    def id(self) -> str:
        """Marks every process of this stack and of no other."""
        return hashlib.sha256(os.fsencode(self.home.resolve())).hexdigest()[:12]

    @cached_property
    def sockets(self) -> Path:
        """Where UNIX sockets go: `run`, or a short folder for this stack alone when that path is too long."""
        if len(os.fsencode(self.run)) <= _LONGEST_SOCKET_FOLDER:
            return self.run
        return Path(tempfile.gettempdir()) / f"dash-{os.getuid()}-{self.id}"

    def make(self) -> None:
        """Create the folders.

        Raises DashError when the socket folder in the shared temporary folder belongs to somebody else.
        """
        for folder in (self.home, self.opt, self.data, self.logs, self.run, self.dagster):
            folder.mkdir(parents=True, exist_ok=True)
        if self.sockets != self.run:
            self.sockets.mkdir(mode=0o711, exist_ok=True)
            if self.sockets.is_symlink() or self.sockets.stat().st_uid != os.getuid():
                raise DashError(f"{self.sockets} belongs to another user: remove it, or set TMPDIR to another folder")
