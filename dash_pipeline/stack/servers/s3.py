"""S3: SeaweedFS in one process.

Belongs here: its start and its bucket. Does not belong here: what the platform puts into it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dash_pipeline.errors import DashError
from dash_pipeline.stack.install import Say
from dash_pipeline.stack.servers.base import NotReadyError, Place, Server, start_script
from dash_pipeline.stack.supervisor import Program

_PORTS = ("s3", "s3 master", "s3 volume", "s3 filer", "s3 admin")


class S3(Server):
    """An S3 gateway with its storage."""

    name = "s3"
    ports = (*_PORTS, *(f"{port} grpc" for port in _PORTS))

    def prepare(self, place: Place, say: Say) -> Program:
        """The program comes with the locked requirements; keys and bucket are given at each start.
        Raises DashError when it is missing."""
        weed = Path(sys.executable).with_name("weed")
        if not weed.exists():
            raise DashError(f"{weed} is missing: run `make venv`")
        data = place.data(self.name)
        data.mkdir(parents=True, exist_ok=True)
        ports = {f"{port.removeprefix('s3 ').upper()}_PORT": str(place.ports[port]) for port in _PORTS}
        grpc = {f"{port.removeprefix('s3 ').upper()}_GRPC_PORT": str(place.ports[f"{port} grpc"]) for port in _PORTS}
        environment = {"WEED": str(weed), "DATA": str(data), "HOST": place.ports.host, **ports, **grpc}
        return Program(self.name, ["/bin/sh", start_script(self.name)], environment)

    def probe(self, place: Place, since: float) -> None:
        """The bucket is there for who has the key; raises NotReadyError until it is."""
        settings = place.settings
        client = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=place.secrets.s3_access_key,
            aws_secret_access_key=place.secrets.s3_secret_key,
            config=Config(
                connect_timeout=2,
                read_timeout=5,
                retries={"max_attempts": 0},
                proxies={},
                s3={"addressing_style": "path"},
            ),
        )
        try:
            client.head_bucket(Bucket=settings.s3_bucket)
        except (BotoCoreError, ClientError) as error:
            raise NotReadyError(str(error)) from error

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """Endpoint and bucket."""
        keys = place.secrets
        key = f" key={keys.s3_access_key} secret={keys.s3_secret_key}" if secrets else ""
        return f"{place.settings.s3_endpoint} (bucket={place.settings.s3_bucket}{key})"
