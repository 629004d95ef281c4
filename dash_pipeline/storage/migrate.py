"""Brings the hot store's schema to this version of the code.

Belongs here: running the migrations. Does not belong here: the migrations (`migrations/versions/`, one file a step,
never edited once released).
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from dash_pipeline.errors import Unavailable, first_line
from dash_pipeline.settings import Settings

# Two stacks of one database may start at the same time: the second waits for the first.
_LOCK = 0x4441_5348


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Apply every migration up to `revision`; does nothing when the schema is there already.

    Raises Unavailable with one line when the database cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    url = make_url(settings.timescale_dsn.get_secret_value()).set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except OperationalError as error:
        raise Unavailable(f"database: {first_line(error.orig or error)}") from error
    finally:
        engine.dispose()
