"""The passwords of one stack, and the `env` file that hands the settings to everything else.

Belongs here: making, keeping and writing them. Does not belong here: reading settings (`settings.py`).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dotenv import dotenv_values

from dash_pipeline.errors import DashError
from dash_pipeline.stack.layout import Layout, Ports

_HEAD = "# Written by `dash-pipeline up`. Add settings of your own below the last line; they are kept."
_OWN = "# Your own settings:"


@dataclass(frozen=True)
class Secrets:
    """One password for each user of each server."""

    kafka: str
    kafka_broker: str
    kafka_controller: str
    timescale: str
    timescale_dagster: str
    timescale_superuser: str
    opensearch: str
    s3_access_key: str
    s3_secret_key: str
    alerts: str
    encryption: str
    timescale_backup: str


_NAMES = tuple(field.name for field in fields(Secrets))
# No server's data depends on these: a stack that was made before there were any gets them now.
_LATER = {"alerts", "encryption", "timescale_backup"}


def kept_secrets(layout: Layout) -> Secrets:
    """The stack's passwords, made at the first call.

    Raises DashError when the file is gone or unreadable but servers have data that was made with it.
    """
    try:
        kept = json.loads(layout.secrets.read_text())
        if isinstance(kept, dict) and (missing := set(_NAMES) - set(kept)) and missing <= _LATER:
            return _keep(layout, kept | _make(missing))
        return Secrets(**kept)
    except FileNotFoundError:
        if any(layout.data.glob("*/*")):
            raise DashError(
                f"{layout.secrets} is gone, and {layout.data} holds data that needs its passwords: "
                "put it back, or `dash-pipeline reset --all`"
            ) from None
    except (ValueError, TypeError) as error:
        raise DashError(f"{layout.secrets}: {error}; put it right, or `dash-pipeline reset --all`") from None
    return _keep(layout, _make(_NAMES))


def _make(names: Iterable[str]) -> dict[str, str]:
    return {name: secrets.token_hex(16) for name in names}


def _keep(layout: Layout, passwords: dict[str, str]) -> Secrets:
    made = Secrets(**passwords)
    write_private(layout.secrets, json.dumps(asdict(made), indent=1))
    return made


def environment(layout: Layout, ports: Ports, made: Secrets) -> dict[str, str]:
    """The settings with which a process reaches this stack's servers, as environment variables."""
    return {
        "DASH_PORT_OFFSET": str(ports.offset),
        "DASH_STACK_HOST": ports.host,
        "DASH_KAFKA_BOOTSTRAP": ports.at("kafka"),
        "DASH_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "DASH_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "DASH_KAFKA_USERNAME": "dash",
        "DASH_KAFKA_PASSWORD": made.kafka,
        "DASH_TIMESCALE_DSN": f"postgresql://dash:{made.timescale}@{ports.at('timescale')}/dash",
        "DASH_BACKUP_DSN": f"postgresql://backup:{made.timescale_backup}@{ports.at('timescale')}/dash",
        "DASH_OPENSEARCH_URL": f"http://{ports.at('opensearch')}",
        "DASH_OPENSEARCH_USERNAME": "dash",
        "DASH_OPENSEARCH_PASSWORD": made.opensearch,
        "DASH_S3_ENDPOINT": f"http://{ports.at('s3')}",
        "DASH_S3_REGION": "us-east-1",
        "DASH_S3_BUCKET": "dash",
        "DASH_S3_ACCESS_KEY": made.s3_access_key,
        "DASH_S3_SECRET_KEY": made.s3_secret_key,
        # 32 bytes, as AES-256 wants them.
        "DASH_ENCRYPTION_KEYS": json.dumps({"local": base64.b64encode(made.encryption.encode()).decode()}),
        "DASH_DAGSTER_URL": f"http://{ports.at('webserver')}",
        "DASH_CODE_INGESTION_HOST": ports.host,
        "DASH_CODE_INGESTION_PORT": str(ports["code-ingestion"]),
        "DASH_ALERT_SECRET": made.alerts,
        "DASH_METRICS_DIR": str(layout.run / "metrics"),
        "DASH_CODE_INTELLIGENCE_HOST": ports.host,
        "DASH_CODE_INTELLIGENCE_PORT": str(ports["code-intelligence"]),
        "DASH_CODE_LIFECYCLE_HOST": ports.host,
        "DASH_CODE_LIFECYCLE_PORT": str(ports["code-lifecycle"]),
        "DASH_CODE_MARTS_HOST": ports.host,
        "DASH_CODE_MARTS_PORT": str(ports["code-marts"]),
        "DAGSTER_HOME": str(layout.dagster),
        "DAGSTER_PG_HOST": ports.host,
        "DAGSTER_PG_PORT": str(ports["timescale"]),
        "DAGSTER_PG_PASSWORD": made.timescale_dagster,
        "DAGSTER_COMPUTE_LOGS": str(layout.dagster / "logs"),
        # Dagster's compute log manager has no setting for the key; boto3 looks here.
        "AWS_ACCESS_KEY_ID": made.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": made.s3_secret_key,
    }


def write_env(layout: Layout, values: dict[str, str]) -> None:
    """Write the env file; lines that a person added are kept."""
    own = [
        line
        for line in _lines(layout.env)
        if line not in (_HEAD, _OWN) and line.partition("=")[0].strip() not in values
    ]
    ours = [f"{name}={value}" for name, value in values.items()]
    write_private(layout.env, "\n".join([_HEAD, *ours, _OWN, *own]) + "\n")


def read_env(layout: Layout) -> dict[str, str]:
    """What the env file says, read as settings read it; nothing if there is none."""
    return {name: value or "" for name, value in dotenv_values(layout.env, interpolate=False).items()}


def write_private(file: Path, text: str) -> None:
    """Replace a file in one step; nobody else can read it at any moment."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    draft.replace(file)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []
