"""The chart's haproxy.cfg in the real HAProxy, under load: weights, priorities, retries, TLS.

Ratios only: how fast this machine is today does not matter.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dash_pipeline.settings import Settings
from dash_pipeline.stack import debian, install
from tests.conftest import ROOT
from tests.kubernetes.conftest import Helm

CHART = ROOT / "deployments" / "kubernetes" / "chart"
GIVEN = Path(__file__).with_name("values.yaml")
BACKEND = Path(__file__).with_name("backend.py")
PACKAGES = [
    *("haproxy", "libc6", "libcrypt1", "libgcc-s1", "libjemalloc2", "liblua5.4-0", "libopentracing-c-wrapper0t64"),
    *("libopentracing1", "libpcre2-8-0", "libssl3t64", "libstdc++6", "libzstd1", "zlib1g"),
]
KEYS = {"key-of-a-paying-user": "paying", "key-of-a-batch-user": "batch"}
PAYING, BATCH = ({"x-api-key": key} for key in KEYS)
SEARCH = "/search/transactions/_search"
DOCUMENT = "/search/transactions/_doc"
UPGRADE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "content_length": "",
    "sec_websocket_version": "13",
    "sec_websocket_key": base64.b64encode(b"sixteen bytes...").decode(),
}


@pytest.fixture(scope="session")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine's HAProxy, or Debian 13's unpacked into the cache of servers; no service is installed."""
    if found := shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin"):
        return Path(found)
    log = tmp_path_factory.mktemp("haproxy") / "install.log"

    def build(folder: Path) -> None:
        debian.unpack(PACKAGES, folder, log)
        debian.make_self_contained(folder, folder / "usr" / "sbin", log)

    opt = Path(os.environ.get("DASH_OPT_DIR") or ROOT / ".stack" / "opt")
    return install.once(opt, "haproxy", PACKAGES, build) / "usr" / "sbin" / "haproxy"


def render(helm: Helm, folder: Path, haproxy: dict[str, Any], *files: str) -> subprocess.CompletedProcess[str]:
    """What `helm template` says to these values on top of the chart's own and of `files`."""
    values = folder / "values.yaml"
    values.write_text(json.dumps({"haproxy": haproxy}))
    layers = [f"--values={file}" for file in (GIVEN, *(CHART / file for file in files), values)]
    return helm("template", "test", CHART, "--kube-version=1.34.0", "--show-only=templates/haproxy.yaml", *layers)


def documents(helm: Helm, folder: Path, haproxy: dict[str, Any], *files: str) -> dict[str, dict[str, Any]]:
    """The rendered objects by kind."""
    done = render(helm, folder, haproxy, *files)
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one}


def lay_out(folder: Path, objects: dict[str, dict[str, Any]]) -> list[str]:
    """Put the files of the pod's volume into `folder`; returns the container's command for there."""
    (folder / "haproxy.cfg").write_text(objects["ConfigMap"]["data"]["haproxy.cfg"])
    keys = objects["Secret"]["stringData"]["keys.map"] if "Secret" in objects else ""
    (folder / "keys.map").write_text(keys)
    (folder / "operators.lst").write_text("")
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=dash", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", folder / "tls.pem.key", "-out", folder / "tls.pem"]
    subprocess.run([*certificate, *names, *files], check=True, capture_output=True)
    shutil.copy(folder / "tls.pem", folder / "opensearch-ca.pem")
    command = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["command"]
    return [part.replace("/etc/haproxy", str(folder)) for part in command[1:]]


class Seen(NamedTuple):
    """A request as it reached a backend."""

    method: str
    path: str
    headers: dict[str, str]
    at: float

    @property
    def id(self) -> str:
        """What its sender called it."""
        return self.headers.get("x-opaque-id", "")


@dataclass
class Site:
    """HAProxy with what is behind it, all on 127.0.0.1."""

    folder: Path
    port: int
    metrics: int
    process: subprocess.Popen[bytes]
    backends: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """What a client that trusts the certificate connects with."""
        return ssl.create_default_context(cafile=self.folder / "tls.pem")

    def seen(self, names: str) -> list[Seen]:
        """What reached these backends."""
        lines = chain(*((self.folder / f"{name}.seen").read_text().splitlines() for name in names))
        return [Seen(*json.loads(line)) for line in lines]

    def status(self, server: str) -> dict[str, str]:
        """A server's row in the exported metrics: what is 1 of its states and check results."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        mine = [line for line in lines if f'server="{server}"' in line and 'proxy="opensearch"' in line]
        return {
            name: line.partition('state="')[2].partition('"')[0]
            for name in ("haproxy_server_status", "haproxy_server_check_status")
            for line in mine
            if line.startswith(f"{name}{{") and line.endswith(" 1")
        }


@contextmanager
def site(
    helm: Helm,
    haproxy: Path,
    folder: Path,
    weights: dict[str, int],
    values: dict[str, Any] | None = None,
    opensearch: dict[str, Any] | None = None,
    **environment: str,
) -> Iterator[Site]:
    """HAProxy as the chart configures it, in front of backends with these weights."""
    with ExitStack() as stack:
        backends, servers = {}, []
        for name, weight in weights.items():
            command = [sys.executable, str(BACKEND), name, str(folder)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout
            port = int(process.stdout.readline())
            backends[name] = process
            servers.append({"name": name, "address": "127.0.0.1", "port": port, "weight": weight})
        https, metrics = free_ports(2)
        mine = {
            "enabled": True,
            "listen": {"address": "127.0.0.1", "https": https, "metrics": metrics},
            "tls": {"secretName": "any"},
            "apiKeys": {"keys": KEYS},
            "check": {"interval": "200ms", "fall": 2, "rise": 2},
            "webserver": {"servers": servers},
            "api": {"servers": servers},
            "opensearch": {"servers": servers, "slots": 2} | (opensearch or {}),
        }
        arguments = lay_out(folder, documents(helm, folder, mine | (values or {})))
        log = stack.enter_context((folder / "haproxy.log").open("wb"))
        process = subprocess.Popen([haproxy, *arguments], stdout=log, stderr=log, env=os.environ | environment)
        stack.callback(end, process)
        one = Site(folder, https, metrics, process, backends)
        wait_for(lambda: answers(one), f"HAProxy: {folder / 'haproxy.log'}")
        yield one


def end(haproxy: subprocess.Popen[bytes]) -> None:
    """End the master, and with it its worker. Now and then one of 3.0.11 with two threads has closed everything, and
    sleeps on: where it is a pod, its grace period ends it."""
    haproxy.terminate()
    try:
        haproxy.wait(5)
    except subprocess.TimeoutExpired:
        haproxy.kill()
        haproxy.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def answers(one: Site) -> bool:
    """Whether HAProxy is up."""
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{one.metrics}/healthz", timeout=1))
    except OSError:
        return False


def wait_for(true: Callable[[], bool], what: str) -> None:
    """Wait until it is, at most 15 s."""
    end = time.monotonic() + 15
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Answer(NamedTuple):
    """What came back: status 0 is a connection that was closed without one."""

    status: int
    headers: dict[str, str]
    seconds: float

    @property
    def server(self) -> str:
        """Who answered."""
        return self.headers.get("served-by", "")


class Client:
    """A user's connection, opened again when it was closed."""

    def __init__(self, one: Site, headers: dict[str, str] | None = None) -> None:
        self.site, self.headers = one, headers or {}
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        """Send a request and read its answer."""
        all_headers = {"host": "dash", "content-length": str(len(body))} | self.headers
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items() if value)
        started = time.perf_counter()
        try:
            reader, writer = self.streams or await self.connect()
            started = time.perf_counter()
            writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
            status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            got = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
            if got.get("upgrade"):
                return Answer(int(status.split()[1]), got, 0)
            await reader.readexactly(int(got.get("content-length", 0)))
            if got.get("connection") == "close":
                self.close()
        except (asyncio.IncompleteReadError, OSError):
            self.close()
            return Answer(0, {}, time.perf_counter() - started)
        return Answer(int(status.split()[1]), got, time.perf_counter() - started)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the connection; that is no part of a request's time."""
        self.streams = await asyncio.open_connection("127.0.0.1", self.site.port, ssl=self.site.tls)
        return self.streams

    def close(self) -> None:
        """End the connection."""
        if self.streams:
            self.streams[1].close()
            self.streams = None


async def load(clients: list[Client], seconds: float, path: str) -> list[list[Answer]]:
    """All clients at once, each one request after the other; what each got."""
    for client in clients:
        await client.connect()
    end = time.monotonic() + seconds

    async def repeat(client: Client) -> list[Answer]:
        got = []
        while time.monotonic() < end:
            got.append(await client.ask(path))
        client.close()
        return got

    return await asyncio.gather(*map(repeat, clients))


def once(one: Site, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    """One request on a connection of its own."""

    async def run() -> Answer:
        client = Client(one)
        answer = await client.ask(path, method, body, **headers)
        client.close()
        return answer

    return asyncio.run(run())


def shares(answers: list[Answer]) -> dict[str, float]:
    """Who answered how many of six."""
    return {name: 6 * count / len(answers) for name, count in sorted(Counter(one.server for one in answers).items())}


def p99(answers: list[Answer]) -> float:
    """Seconds that one in a hundred took longer than."""
    return sorted(answer.seconds for answer in answers)[int(len(answers) * 0.99)]


@pytest.fixture(scope="module")
def three(helm: Helm, haproxy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three backends with weights 3, 2, 1 and as many slots."""
    timeouts = {"timeouts": {"server": "2s", "queue": "10s"}}
    with site(helm, haproxy, tmp_path_factory.mktemp("three"), {"a": 3, "b": 2, "c": 1}, timeouts) as one:
        yield one


@pytest.mark.parametrize("file", ["values-small.yaml", "values-production.yaml"])
def test_haproxy_accepts_the_configuration(helm: Helm, haproxy: Path, tmp_path: Path, file: str) -> None:
    # More threads than this machine has processors are a warning.
    values = {"enabled": True, "tls": {"secretName": "any"}, "threads": 1}
    arguments = lay_out(tmp_path, documents(helm, tmp_path, values, file))

    done = subprocess.run([haproxy, "-c", *arguments], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"opensearch": {"servers": [{"name": "a", "address": "a", "port": 9200, "weight": 300}]}},
            "- at '/haproxy/opensearch/servers/0/weight': maximum: got 300, want 256",
        ),
        (
            {"apiKeys": {"keys": {"k": "gold"}}},
            "- at '/haproxy/apiKeys/keys/k': value must be one of 'paying', 'batch'",
        ),
        ({"slots": 3}, "- at '/haproxy': additional properties 'slots' not allowed"),
        ({"timeouts": {"queue": "10"}}, "- at '/haproxy/timeouts/queue': '10' does not match pattern"),
        ({"tls": {"secretName": ""}}, "haproxy.tls.secretName: name a Secret of type kubernetes.io/tls"),
        ({"apiKeys": {"keys": KEYS, "secretName": "any"}}, "haproxy.apiKeys: set secretName or keys, not both"),
    ],
)
def test_a_wrong_value_is_refused_with_one_line(helm: Helm, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    done = render(helm, tmp_path, {"enabled": True, "tls": {"secretName": "any"}} | wrong)

    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if said in line] == [
        line for line in done.stderr.splitlines() if "haproxy" in line
    ], done.stderr


def test_service_policies_and_monitor_select_its_pods(helm: Helm, tmp_path: Path) -> None:
    objects = documents(helm, tmp_path, {"metrics": {"podMonitor": True}}, "values-production.yaml")

    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": labels}
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        assert objects[kind]["spec"]["selector"] == {"matchLabels": labels}, kind
    ports = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert objects["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in [port["name"] for port in ports]
    assert [port["targetPort"] for port in objects["Service"]["spec"]["ports"]] == ["https"], "metrics stay inside"


def test_requests_are_shared_by_weight(helm: Helm, haproxy: Path, tmp_path: Path) -> None:
    with site(helm, haproxy, tmp_path, {"a": 3, "b": 2, "c": 1}, opensearch={"slots": 16}) as one:
        got = [*chain(*asyncio.run(load([Client(one) for _ in range(6)], 3, f"{SEARCH}?ms=1")))]

    print(len(got), "requests, shares of 6 with weights 3, 2, 1:", shares(got))
    assert len(got) > 300
    assert shares(got) == pytest.approx({"a": 3, "b": 2, "c": 1}, rel=0.05)


def test_paying_users_keep_their_latency_when_the_rest_queues(three: Site) -> None:
    rest = [Client(three) for _ in range(80)]
    paying = [Client(three, PAYING) for _ in range(4)]
    unknown = [Client(three, {"x-api-key": "key-of-nobody"}) for _ in range(4)]

    got = asyncio.run(load([*rest, *paying, *unknown], 8, f"{SEARCH}?ms=40"))

    waited, first, nobody = ([*chain(*part)] for part in (got[:80], got[80:84], got[84:]))
    everything = waited + first + nobody
    print("p99 of paying users / of others:", p99(first) / p99(waited), "shares of 6:", shares(everything))
    assert {answer.status for answer in everything} == {200}
    assert len(first) > 100
    assert p99(waited) > 3 * 0.04, "saturated: the rest does queue"
    assert p99(first) < p99(waited) / 2
    assert p99(nobody) > p99(waited) / 2, "a key that nobody was given is none"
    most = {name: max(int(one.headers["at-once"]) for one in everything if one.server == name) for name in "abc"}
    assert most == {"a": 3, "b": 2, "c": 1}, "slots follow the weights"
    assert shares(everything) == pytest.approx(most, rel=0.1), "weights hold while requests queue"


def test_the_queue_is_ordered_by_class(three: Site) -> None:
    async def run() -> None:
        # Six slots are taken, and given back one after the other.
        taken = [Client(three).ask(f"{SEARCH}?ms={600 + 100 * n}") for n in range(6)]
        tasks = [asyncio.create_task(one) for one in taken]
        await asyncio.sleep(0.3)
        for name, headers in {"batch": BATCH, "none": {}, "paying": PAYING}.items():
            # They keep what they get, so each slot goes to one of them.
            tasks.append(asyncio.create_task(Client(three, headers).ask(f"{SEARCH}?ms=1000", x_opaque_id=name)))
            await asyncio.sleep(0.05)
        assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}

    asyncio.run(run())

    order = sorted((seen for seen in three.seen("abc") if seen.id), key=lambda seen: seen.at)
    assert [seen.id for seen in order] == ["paying", "none", "batch"]


def test_no_key_and_no_claim_reaches_a_server(three: Site) -> None:
    claims = {
        "x_forwarded_for": "6.6.6.6",
        "x_forwarded_host": "evil",
        "forwarded": "for=6.6.6.6",
        "x_real_ip": "6.6.6.6",
    }
    assert once(three, f"{DOCUMENT}/claims", x_api_key="key-of-a-paying-user", **claims).status == 200

    (one,) = [seen for seen in three.seen("abc") if seen.path.endswith("claims")]
    headers = one.headers
    assert one.path == "/transactions/_doc/claims", "the prefix is HAProxy's"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert not {"x-api-key", "x-forwarded-host", "forwarded", "x-real-ip"} & set(headers)
    everything = "".join((three.folder / f"{name}.seen").read_text() for name in "abc")
    everything += (three.folder / "haproxy.log").read_text()
    assert not any(key in everything for key in KEYS)
    assert not any(key in (three.folder / "keys.map").read_text() for key in KEYS)


def test_the_api_gets_the_key_and_nobody_else_does(three: Site) -> None:
    for path in ("/v1/tokens?of=api", "/docs?of=api", "/v1x?of=webserver", "/docsx?of=webserver"):
        wait_for(lambda path=path: once(three, path, x_api_key="of-the-api").status == 200, path)

    got = {seen.path: seen.headers.get("x-api-key") for seen in three.seen("abc") if "?of=" in seen.path}
    assert got == {
        "/v1/tokens?of=api": "of-the-api", "/docs?of=api": "of-the-api", "/v1x?of=webserver": None,
        "/docsx?of=webserver": None,
    }  # fmt: skip


def test_answers_carry_security_headers(three: Site) -> None:
    headers = once(three, "/runs").headers
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"


def test_requests_have_a_largest_size(three: Site) -> None:
    assert once(three, DOCUMENT, "POST", b"x" * 100).status == 200
    assert once(three, DOCUMENT, "POST", content_length=str(10 * 1024 * 1024 + 1)).status == 413
    assert once(three, DOCUMENT, "POST", content_length="", transfer_encoding="chunked").status == 411
    assert once(three, "/runs", cookie="x" * 20_000).status == 400


def test_only_tls_1_3_is_spoken(three: Site) -> None:
    def version(highest: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=three.folder / "tls.pem")
        context.maximum_version = highest
        with (
            socket.create_connection(("127.0.0.1", three.port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return secure.version()

    assert version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        version(ssl.TLSVersion.TLSv1_2)


def test_a_websocket_outlives_the_timeout_of_requests_and_holds_no_slot(three: Site) -> None:
    async def run() -> None:
        # The three webservers have 16 slots each.
        open_ones = [Client(three) for _ in range(60)]
        for client in open_ones:
            assert (await client.ask("/graphql", **UPGRADE)).status == 101
        await asyncio.sleep(2.5)
        for client in open_ones:
            assert client.streams
            reader, writer = client.streams
            writer.write(b"still there?")
            assert await asyncio.wait_for(reader.readexactly(12), 5) == b"still there?"
        assert (await Client(three).ask("/runs")).status == 200
        for client in open_ones:
            client.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "health", ["", '{"status":"green","discovered_cluster_manager":false}'], ids=["ill", "cut off"]
)
def test_a_failing_server_is_taken_out_and_comes_back(three: Site, health: str) -> None:
    file = three.folder / "a.health"
    file.write_text(health)
    wait_for(lambda: three.status("a")["haproxy_server_status"] == "DOWN", "a is taken out")
    assert {once(three, SEARCH).server for _ in range(12)} == {"b", "c"}

    file.unlink()
    wait_for(lambda: three.status("a")["haproxy_server_status"] == "UP", "a is back")
    assert {once(three, SEARCH).server for _ in range(12)} == {"a", "b", "c"}


def test_the_ui_can_ask_for_a_login(helm: Helm, haproxy: Path, tmp_path: Path) -> None:
    login = "Basic " + base64.b64encode(b"ann:long password").decode()
    with site(helm, haproxy, tmp_path, {"a": 1}, {"operators": {"secretName": "any"}}) as one:
        assert once(one, "/runs").status == 401
        assert once(one, "/graphql", **UPGRADE).status == 401
        assert once(one, SEARCH).status == 200, "OpenSearch has passwords of its own"
        # As the documentation says.
        said = subprocess.run(
            "printf 'Basic %s' \"$(printf 'ann:long password' | base64 -w0)\" | sha256sum | cut -d' ' -f1",
            shell=True,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (tmp_path / "operators.lst").write_text(said)
        one.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: once(one, "/runs", authorization=login).status == 200, "the new list is read")
        assert once(one, "/runs", authorization=login + "x").status == 401
        assert [seen.path for seen in one.seen("a")] == ["/transactions/_search", "/runs"]
        assert "authorization" not in one.seen("a")[1].headers


def test_no_search_fails_when_a_server_dies(helm: Helm, haproxy: Path, tmp_path: Path) -> None:
    got = killed_under_load(helm, haproxy, tmp_path, SEARCH, "POST")

    assert {answer.status for _, answer in got.answers} == {200}
    assert got.arrivals["a"], "the dead one had its share"
    assert max(Counter(chain(*got.arrivals.values())).values()) == 2, "what it had in hand was done by another"


def test_what_may_not_be_done_twice_is_not(helm: Helm, haproxy: Path, tmp_path: Path) -> None:
    got = killed_under_load(helm, haproxy, tmp_path, DOCUMENT, "POST")

    arrived = Counter(chain(*got.arrivals.values()))
    failed = {name for name, answer in got.answers if answer.status != 200}
    assert failed & set(arrived), "some were in the dead one's hands"
    assert max(arrived.values()) == 1


class Killed(NamedTuple):
    """Names and answers of all requests, and the names in order of arrival at each backend."""

    answers: list[tuple[str, Answer]]
    arrivals: dict[str, list[str]]


def killed_under_load(helm: Helm, haproxy: Path, folder: Path, path: str, method: str) -> Killed:
    """Twelve clients for 3 s; one of three backends is killed after the first, with something in hand."""
    with site(helm, haproxy, folder, {"a": 1, "b": 1, "c": 1}, opensearch={"slots": 8}) as one:
        end, counter = time.monotonic() + 3, iter(range(1_000_000))

        async def ask() -> list[tuple[str, Answer]]:
            client, got = Client(one), []
            while time.monotonic() < end:
                name = str(next(counter))
                got.append((name, await client.ask(f"{path}?ms=300", method, b"{}", x_opaque_id=name)))
            client.close()
            return got

        async def kill() -> list[tuple[str, Answer]]:
            await asyncio.sleep(1)
            # On a busy machine it may be idle just now, while clients read what they got.
            while time.monotonic() < end and time.monotonic() - max((it.at for it in one.seen("a")), default=0) > 0.1:
                await asyncio.sleep(0.01)
            one.backends["a"].send_signal(signal.SIGKILL)
            return []

        async def run() -> list[list[tuple[str, Answer]]]:
            return await asyncio.gather(*(ask() for _ in range(12)), kill())

        answers = [*chain(*asyncio.run(run()))]
        return Killed(answers, {name: [seen.id for seen in one.seen(name)] for name in "abc"})


def test_a_pod_that_is_told_to_go_finishes_what_it_has(helm: Helm, haproxy: Path, tmp_path: Path) -> None:
    with site(helm, haproxy, tmp_path, {"a": 1, "b": 1}, opensearch={"slots": 8}) as one:

        async def run() -> list[Answer]:
            tasks = [asyncio.create_task(Client(one).ask(f"{SEARCH}?ms=800")) for _ in range(12)]
            await asyncio.sleep(0.3)
            one.process.send_signal(signal.SIGUSR1)
            return list(await asyncio.gather(*tasks))

        assert [answer.status for answer in asyncio.run(run())] == [200] * 12


def test_opensearch_itself_is_searched_and_checked(
    helm: Helm, haproxy: Path, settings: Settings, tmp_path: Path
) -> None:
    address, _, port = settings.opensearch_url.rpartition("/")[2].partition(":")
    assert settings.opensearch_password
    login = f"{settings.opensearch_username}:{settings.opensearch_password.get_secret_value()}"
    behind = {
        "servers": [{"name": "node", "address": address, "port": int(port), "weight": 1}],
        "check": {"username": settings.opensearch_username, "passwordSecret": {"name": "any"}},
    }
    authorization = "Basic " + base64.b64encode(login.encode()).decode()
    with site(helm, haproxy, tmp_path, {"a": 1}, opensearch=behind, OPENSEARCH_LOGIN=login) as one:
        wait_for(lambda: one.status("node").get("haproxy_server_check_status") == "L7OK", "the node is well")
        asked = {"authorization": authorization, "content_type": "application/json"}
        assert once(one, "/search/_search", "POST", b'{"size":0}', **asked).status == 200
        assert once(one, "/search/_search").status == 401
    with site(helm, haproxy, tmp_path, {"b": 1}, opensearch=behind, OPENSEARCH_LOGIN="dash:wrong") as one:
        wait_for(lambda: one.status("node").get("haproxy_server_status") == "DOWN", "a check without rights fails")
