"""OpenSearch: one node, HTTP with a password.

Belongs here: node installation and probe. Does not belong here: indexes (`dash_pipeline/storage/search.py`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dash_pipeline.stack import install
from dash_pipeline.stack.install import Say
from dash_pipeline.stack.layout import DEPLOYMENT
from dash_pipeline.stack.servers.base import NotReadyError, Place, Server, http_json, render, start_script
from dash_pipeline.stack.supervisor import Program

_HERE = DEPLOYMENT / "opensearch"


class OpenSearch(Server):
    """The node; it is told of S3 by the stack's environment, and needs it only for snapshots."""

    name = "opensearch"
    ports = ("opensearch", "opensearch transport")

    def prepare(self, place: Place, say: Say) -> Program:
        """Jars by Maven, the main class by the compiler that comes with them."""
        log = place.log(self.name)
        java = install.java(place.layout.opt, log, say)
        dist = self._dist(place, java, say)
        conf, data = place.conf(self.name), place.data(self.name)
        home = conf / "home"
        for folder in (data, home):
            folder.mkdir(parents=True, exist_ok=True)
        render(
            self.name,
            "opensearch.yml",
            conf / "opensearch.yml",
            {
                "data": data,
                "logs": place.layout.logs / "opensearch",
                "host": place.ports.host,
                "opensearch_port": place.ports["opensearch"],
                "opensearch_transport_port": place.ports["opensearch transport"],
            },
        )
        shutil.copy(_HERE / "log4j2.properties", conf)
        environment = {
            "JAVA": str(java),
            "DIST": str(dist),
            "CONF": str(conf),
            "HOME_DIR": str(home),
            "HEAP": "768m",
        }
        return Program(self.name, ["/bin/sh", start_script(self.name)], environment, stop_wait_s=45)

    def probe(self, place: Place, since: float) -> None:
        """The cluster says that its primaries are there; raises NotReadyError until it does."""
        url = f"{place.settings.opensearch_url}/_cluster/health?wait_for_status=yellow&timeout=2s"
        health = http_json(url, user="dash", password=place.secrets.opensearch)
        if health["status"] == "red":
            raise NotReadyError("the cluster is red")

    def address(self, place: Place, *, secrets: bool = False) -> str:
        """URL with the user's name."""
        password = f":{place.secrets.opensearch}" if secrets else ""
        return place.settings.opensearch_url.replace("://", f"://dash{password}@")

    def _dist(self, place: Place, java: Path, say: Say) -> Path:
        pom, source = _HERE / "pom.xml", _HERE / "src" / "DashNode.java"
        log = place.log(self.name)

        def build(folder: Path) -> None:
            say("fetching jars by Maven")
            install.maven(pom, folder, place.layout.opt, log)
            say("compiling the main class")
            compiler = next((folder / "compiler").glob("ecj-*.jar"))
            classpath = ":".join(str(jar) for jar in sorted((folder / "jars").glob("*.jar")))
            level = str(install.JAVA_AT_LEAST)
            options = ["-source", level, "-target", level, "-proc:none", "-nowarn"]
            classes = folder / "classes"
            install.call([java, "-jar", compiler, *options, "-cp", classpath, "-d", classes, source], log)
            # A jar, because the JVM keeps an archive of loaded classes only when no folder is on the class path.
            shutil.make_archive(str(folder / "node"), "zip", classes)
            (folder / "node.zip").rename(folder / "jars" / "dash-node.jar")

        return install.once(place.layout.opt, self.name, [pom, source], build)
