"""One module for each server of the stack.

Belongs here: what is particular to a server: install, configure, start, probe, set up.
Does not belong here: their order (`stack.py`).
"""

from dash_pipeline.stack.servers.api import Api
from dash_pipeline.stack.servers.base import NotReadyError, Place, Server
from dash_pipeline.stack.servers.dagster import CODE_LOCATIONS, CodeServer, Daemon, Webserver
from dash_pipeline.stack.servers.kafka import Kafka
from dash_pipeline.stack.servers.opensearch import OpenSearch
from dash_pipeline.stack.servers.s3 import S3
from dash_pipeline.stack.servers.timescale import Timescale

__all__ = ["DAGSTER", "SERVERS", "STORES", "NotReadyError", "Place", "Server"]

#: What keeps data.
STORES: tuple[Server, ...] = (Timescale(), Kafka(), OpenSearch(), S3())
#: What runs the platform's code.
DAGSTER: tuple[Server, ...] = (*(CodeServer(name) for name in CODE_LOCATIONS), Webserver(), Daemon())
SERVERS = {server.name: server for server in (*STORES, *DAGSTER, Api())}
