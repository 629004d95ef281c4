"""TimescaleDB: PostgreSQL 17 with the extension.

Belongs here: installation, the cluster, roles and databases. Does not belong here: the schema (`storage/`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from dash_pipeline.stack import debian, install
from dash_pipeline.stack.install import Say
from dash_pipeline.stack.layout import DEPLOYMENT, Layout
from dash_pipeline.stack.secrets import write_private
from dash_pipeline.stack.servers.base import NotReadyError, Place, Server, render, start_script
from dash_pipeline.stack.supervisor import Program
from dash_pipeline.unprivileged import User, unprivileged

_PACKAGES = DEPLOYMENT / "timescale" / "packages.txt"
_IN_PREFIX = "usr/lib/postgresql/17/bin"
_MACHINES = Path("/usr/lib/postgresql/17/bin")
_EXTENSION = Path("/usr/share/postgresql/17/extension/timescaledb.control")


class Timescale(Server):
    """The hot store, and Dagster's storage in a database and with a role of its own."""

    name = "timescale"
    ports = ("timescale",)

    def prepare(self, place: Place, say: Say) -> Program:
        """The machine's PostgreSQL, or a prefix; a new cluster when there is none."""
        binaries = self._binaries(place, say)
        conf, data, sockets = place.conf(self.name), place.data(self.name), _sockets(place)
        user = unprivileged(place.layout.home)
        values = {
            "data": data,
            "conf": conf,
            "sockets": sockets,
            "host": place.ports.host,
            "timescale_port": place.ports["timescale"],
            "shared_buffers": "512MB",
            "archive_timeout": f"{place.settings.archive_timeout_s}s",
            "python": sys.executable,
        }
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            render(self.name, name, conf / name, values)
        for folder in (data, sockets):
            folder.mkdir(mode=0o700, exist_ok=True)
        user.owns(data, sockets, *conf.iterdir())
        if not (data / "PG_VERSION").exists():
            say("making the database cluster")
            self._make_cluster(place, binaries, user)
        environment = {
            "BIN": str(binaries),
            "CONF": str(conf),
            "DATA": str(data),
            "AS": " ".join(user.command),
        }
        # SIGINT: end the sessions and stop; SIGTERM would wait for clients to leave.
        return Program(self.name, ["/bin/sh", start_script(self.name)], environment, stop_signal="INT", stop_wait_s=60)

    def probe(self, place: Place, since: float) -> None:
        """The superuser gets an answer; raises NotReadyError until he does."""
        try:
            with superuser(place) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise NotReadyError(str(error).strip()) from error

    def set_up(self, place: Place) -> None:
        """Roles `dash` and `dagster`, each with a database of its own name; the extension in `dash`; role `backup`."""
        passwords = {"dash": place.secrets.timescale, "dagster": place.secrets.timescale_dagster}
        with superuser(place) as connection:
            for name, password in passwords.items():
                _make_role(connection, name, password)
                make_database(connection, name, owner=name)
            _make_role(connection, "backup", place.secrets.timescale_backup)
            # What copying the cluster takes, what comparing it takes, and no right to write anything.
            connection.execute("ALTER ROLE backup REPLICATION; GRANT pg_read_all_data, pg_monitor TO backup")
        with superuser(place, "dash") as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
            connection.execute("GRANT EXECUTE ON FUNCTION pg_switch_wal TO backup")

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """DSN of the platform's database."""
        password = f":{place.secrets.timescale}" if secrets else ""
        return f"postgresql://dash{password}@{place.ports.at('timescale')}/dash"

    def _binaries(self, place: Place, say: Say) -> Path:
        found = programs(place.layout)
        if found != _prefix(place.layout) / _IN_PREFIX:
            return found
        log = place.log(self.name)

        def build(folder: Path) -> None:
            say("fetching Debian packages")
            names = [line for line in _PACKAGES.read_text().splitlines() if line and not line.startswith("#")]
            debian.unpack(names, folder, log)
            say("making the programs independent of this machine's libraries")
            debian.make_self_contained(folder, folder / _IN_PREFIX, log)

        return install.once(place.layout.opt, self.name, _inputs(place.layout), build) / _IN_PREFIX

    def _make_cluster(self, place: Place, binaries: Path, user: User) -> None:
        password = place.conf(self.name) / "password"
        write_private(password, place.secrets.timescale_superuser)
        user.owns(password)
        options = ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--data-checksums"]
        login = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={password}"]
        try:
            install.call(
                [*user.command, binaries / "initdb", "-D", place.data(self.name), *options, *login],
                place.log(self.name),
                LC_ALL="C.UTF-8",
            )
        finally:
            password.unlink()


def programs(layout: Layout) -> Path:
    """The folder of PostgreSQL's programs: $DASH_PG_BIN, the machine's, or (whether they are there yet or not) the
    stack's own."""
    if chosen := os.environ.get("DASH_PG_BIN"):
        return Path(chosen)
    if (_MACHINES / "postgres").exists() and _EXTENSION.exists():
        return _MACHINES
    return _prefix(layout) / _IN_PREFIX


def _prefix(layout: Layout) -> Path:
    return install.folder(layout.opt, Timescale.name, _inputs(layout))


def _inputs(layout: Layout) -> list[Path | str]:
    # The programs hold the folder's absolute path.
    return [_PACKAGES, str(layout.opt)]


def superuser(place: Place, database: str = "postgres") -> psycopg.Connection[Any]:
    """A connection that may do everything, by the socket; each statement is a transaction of its own."""
    return psycopg.connect(
        host=str(_sockets(place)),
        port=place.ports["timescale"],
        user="postgres",
        password=place.secrets.timescale_superuser,
        dbname=database,
        autocommit=True,
        connect_timeout=5,
    )


def make_database(connection: psycopg.Connection[Any], name: str, *, owner: str) -> None:
    """Make an empty database unless there is one of this name."""
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
        names = sql.Identifier(name), sql.Identifier(owner)
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))


def drop_database(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop a database; whoever is connected to it is thrown out."""
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _make_role(connection: psycopg.Connection[Any], name: str, password: str) -> None:
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
        role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
        connection.execute(role)


def _sockets(place: Place) -> Path:
    return place.layout.sockets / "pg"
