"""Kafka: one KRaft node, clients by SCRAM.

Belongs here: broker installation, format, probe. Does not belong here: topics (`dash_pipeline/topics.py`).
"""

from __future__ import annotations

import base64
import shutil
import uuid
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from dash_pipeline.kafka import confluent_options
from dash_pipeline.stack import install
from dash_pipeline.stack.install import Say
from dash_pipeline.stack.layout import DEPLOYMENT
from dash_pipeline.stack.servers.base import NotReadyError, Place, Server, render, start_script
from dash_pipeline.stack.supervisor import Program

_HERE = DEPLOYMENT / "kafka"


class Kafka(Server):
    """The broker and its controller in one process."""

    name = "kafka"
    ports = ("kafka", "kafka controller")

    def prepare(self, place: Place, say: Say) -> Program:
        """Jars by Maven; the users are made when the metadata log is formatted."""
        java = install.java(place.layout.opt, place.log(self.name), say)
        jars = self._jars(place, say)
        conf = place.conf(self.name)
        render(
            self.name,
            "server.properties",
            conf / "server.properties",
            {
                "data": place.data(self.name),
                "host": place.ports.host,
                "kafka_port": place.ports["kafka"],
                "kafka_controller_port": place.ports["kafka controller"],
                "broker_password": place.secrets.kafka_broker,
                "controller_password": place.secrets.kafka_controller,
            },
        )
        shutil.copy(_HERE / "log4j2.yaml", conf)
        if not (place.data(self.name) / "meta.properties").exists():
            say("formatting")
            self._format(place, java, jars)
        environment = {"JAVA": str(java), "JARS": str(jars), "CONF": str(conf), "HEAP": "512m"}
        return Program(self.name, ["/bin/sh", start_script(self.name)], environment, stop_wait_s=45)

    def probe(self, place: Place, since: float) -> None:
        """The platform's user asks for metadata; the broker must advertise the address it was asked at.
        Raises NotReadyError until it does."""
        options: dict[str, str | int | float | bool] = {**confluent_options(place.settings)}
        options |= {"log_level": "0", "socket.timeout.ms": "2000"}
        try:
            metadata = AdminClient(options).list_topics(timeout=2)
        except KafkaException as error:
            raise NotReadyError(str(error.args[0])) from error
        if place.ports["kafka"] not in {broker.port for broker in metadata.brokers.values()}:
            raise NotReadyError("the broker is not registered yet")

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """Broker address and how to log in."""
        password = f" password={place.secrets.kafka}" if secrets else ""
        return f"{place.settings.kafka_bootstrap} (SASL_PLAINTEXT SCRAM-SHA-512 user=dash{password})"

    def _jars(self, place: Place, say: Say) -> Path:
        pom = _HERE / "pom.xml"

        def build(folder: Path) -> None:
            say("fetching jars by Maven")
            install.maven(pom, folder, place.layout.opt, place.log(self.name))

        return install.once(place.layout.opt, self.name, [pom], build)

    def _format(self, place: Place, java: Path, jars: Path) -> None:
        users = {"dash": place.secrets.kafka, "broker": place.secrets.kafka_broker}
        scram = [
            argument
            for user, password in users.items()
            for argument in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]")
        ]
        # A zero in front: an id that begins with a hyphen would be taken for an option.
        cluster = base64.urlsafe_b64encode(bytes([0, *uuid.uuid4().bytes[1:]])).decode().rstrip("=")
        conf = place.conf(self.name)
        tool = [str(java), "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*"]
        logging = f"-Dlog4j2.configurationFile={conf / 'log4j2.yaml'}"
        properties = str(conf / "server.properties")
        command = [
            *tool,
            logging,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            cluster,
            "-c",
            properties,
            *scram,
        ]
        install.call(command, place.log(self.name), secret=True)
