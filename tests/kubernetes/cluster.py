"""A Kubernetes of one node on this machine: the real programs, in a network namespace of their own.

Belongs here: building the programs, starting and ending them. Does not belong here: what is installed on the cluster
(`conftest.py`), the image that its pods run (`image.py`).

Everything is started as a process of this machine and remembered by its pid; the pods' network is a bridge in the
namespace `NAMESPACE`, to which this machine has a route, so that a test talks to pods and services by their addresses.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from dash_pipeline.stack import install

CONFIG = Path(__file__).parents[2] / "deployments" / "kubernetes" / "cluster"
VERSION = "1.35.4"
#: What is built, each from the Go module in its folder.
PROGRAMS = ("helm", "kube", "coredns", "kube-router")

NAMESPACE = "dash-k8s"
NODE_NAME = "node1"
NODE = "10.244.0.1"
PODS = "10.244.0.0/24"
SERVICES = "10.96.0.0/16"
#: The two ends of the link between this machine and the namespace.
MACHINE, _INSIDE = "10.245.0.1", "10.245.0.2"
#: The niceness of servers that elsewhere have machines of their own: a broker or an API that gets no processor for
#: seconds is given up by whoever uses it.
BEFORE_PODS = -10

_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "ip": "iproute2",
    "openssl": "openssl",
    "gcc": "gcc",
}
_LOCK = Path("/run/lock/dash-kubernetes.lock")
_CNI = Path("/usr/lib/cni/bridge")
_SYSCTLS = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)


def cache() -> Path:
    """Where built programs and the image's base are kept: outside any clone, because making them takes minutes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dash-pipeline"


def not_built() -> str | None:
    """Why its programs cannot be built here, in one line; None if they can."""
    return None if shutil.which("go") else "helm and the cluster's programs are built by Go, which is not there"


def why_not() -> str | None:
    """Why no cluster can be made here, in one line; None if one can."""
    if sys.platform != "linux":
        return "a cluster takes Linux"
    if os.geteuid() != 0:
        return "a cluster takes root (network namespaces, containers)"
    if reason := not_built():
        return reason
    if not shutil.which("apt-get"):
        missing = [package for program, package in _PACKAGES.items() if not shutil.which(program)]
        if missing:
            return f"missing, and no apt-get to install them: {', '.join(missing)}"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {probe.stderr.strip()}" if probe.returncode else None


def program(name: str) -> Path:
    """One of PROGRAMS, built if it is not yet; minutes for `kube`."""
    module = CONFIG / name
    inputs = sorted(file for file in module.iterdir() if file.is_file())
    log = cache() / f"{name}.log"

    def build(folder: Path) -> None:
        flags, package = "-s -w", "."
        text = (module / "go.mod").read_text()
        if tool := re.search(r"^tool (\S+)$", text, re.MULTILINE):
            package = tool[1]
        if name == "kube":
            base = "k8s.io/component-base/version"
            major, minor, _ = VERSION.split(".")
            values = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
            flags += "".join(f" -X {base}.{key}={value}" for key, value in values.items())
            flags += f" -X {base}.buildDate=1970-01-01T00:00:00Z -X k8s.io/client-go/pkg/version.gitVersion=v{VERSION}"
        command = ["go", "build", "-trimpath", "-ldflags", flags, "-o", folder / name, package]
        install.call(command, log, folder=module, CGO_ENABLED="0", GOFLAGS="-buildvcs=false -mod=readonly")

    cache().mkdir(parents=True, exist_ok=True)
    return install.once(cache(), f"kubernetes-{name}", [*inputs, VERSION], build) / name


def build_programs() -> None:
    """Build those of PROGRAMS that are not there yet. Raises DashError."""
    for name in PROGRAMS:
        program(name)


@dataclass(frozen=True)
class Given:
    """Somebody's cluster, such as one of kind or k3d: $KUBECONFIG, an image that it can pull, and the address at which
    its pods reach this machine."""

    kubeconfig: Path
    image: str
    host: str

    @classmethod
    def from_environment(cls) -> Given | None:
        """None unless all three are set: whoever has a KUBECONFIG has not yet said that tests may use that cluster."""
        names = ("KUBECONFIG", "DASH_TEST_IMAGE", "DASH_TEST_HOST")
        values = [os.environ.get(name) for name in names]
        return cls(Path(values[0] or ""), str(values[1]), str(values[2])) if all(values) else None


@dataclass(frozen=True)
class Cluster:
    """A cluster whose files lie in `home`; there can be one on a machine at a time. One that is `given` is used, and
    nothing of it started or ended."""

    home: Path
    given: Given | None = None

    @property
    def run(self) -> Path:
        """Configuration, sockets, certificates, pids."""
        return self.home / "run"

    @property
    def kubeconfig(self) -> Path:
        """Of the cluster's administrator."""
        return self.given.kubeconfig if self.given else self.run / "admin.kubeconfig"

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """What kubectl prints; with `check` it must succeed, without, what it complains about is part of that."""
        command = [program("kube"), "kubectl", "--kubeconfig", self.kubeconfig, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def helm(self, *arguments: str | Path) -> str:
        """What helm prints."""
        command = [program("helm"), "--kubeconfig", self.kubeconfig, *arguments]
        environment = {
            **os.environ,
            "HELM_CACHE_HOME": str(cache() / "helm"),
            "HELM_CONFIG_HOME": str(cache() / "helm"),
        }
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise AssertionError(f"helm {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def load(self, archive: Path) -> None:
        """Give the node an image."""
        self._ctr("images", "import", str(archive))

    def has(self, image: str) -> bool:
        """Whether the node has an image."""
        return image in self._ctr("images", "ls", "-q").split()

    @contextmanager
    def without(self, image: str) -> Iterator[None]:
        """The node has lost an image for as long as the block lasts."""
        kept = f"{image}-kept"
        self._ctr("images", "tag", "--force", image, kept)
        self._ctr("images", "rm", "--sync", image)
        try:
            yield
        finally:
            self._ctr("images", "tag", "--force", kept, image)

    def pid(self, name: str) -> int:
        """Of a program of the cluster."""
        return int((self.run / "pids" / name).read_text())

    def stop(self, name: str) -> None:
        """End a program of the cluster, if it runs."""
        file = self.run / "pids" / name
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = self.pid(name)
            if self._is_ours(pid):
                os.kill(pid, signal.SIGTERM)
                if not _until(lambda: not _alive(pid), 10):
                    os.kill(pid, signal.SIGKILL)
                    _until(lambda: not _alive(pid), 5)
        file.unlink(missing_ok=True)

    def start(self, name: str) -> None:
        """Start a program of the cluster with the arguments it has."""
        (self.run / "pids").mkdir(exist_ok=True)
        with (self.run / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{NAMESPACE}", "--", *map(str, self._commands()[name])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.run / "pids" / name).write_text(str(process.pid))
        before_pods(process.pid)

    def up(self) -> None:
        """Start everything; returns when the node is ready."""
        missing = [package for name, package in _PACKAGES.items() if not shutil.which(name)]
        if not _CNI.exists():
            missing.append("containernetworking-plugins")
        self.down()
        self.run.mkdir(parents=True)
        if missing:
            install.debian_packages(missing, self.run / "packages.log")
        (self.run / "sysctls").write_text(_out("sysctl", *_SYSCTLS))
        self._make_network()
        self._make_certificates()
        self._configure()
        self.start("etcd")
        self.start("kube-apiserver")
        self.start("containerd")
        self._wait("kube-apiserver", 300, lambda: bool(self.kubectl("get", "--raw", "/readyz")))
        for name in ("kube-controller-manager", "kube-scheduler", "coredns", "kube-proxy"):
            self.start(name)
        self._wait("containerd", 120, lambda: bool(self._ctr("version")))
        self.load(pause_image())
        self.start("kubelet")
        ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        self._wait("kubelet", 300, lambda: self.kubectl("get", "node", NODE_NAME, "-o", ready) == "True")
        self.kubectl("label", "node", NODE_NAME, "topology.kubernetes.io/zone=zone1")
        self.start("kube-router")

    def down(self) -> None:
        """End everything this folder's cluster has started, and leave the machine as it was."""
        if not self.run.exists():
            return
        for name in ("kube-router", "coredns", "kube-proxy", "kube-scheduler", "kube-controller-manager", "kubelet"):
            self.stop(name)
        for task in self._ctr("tasks", "ls", "-q", check=False).split():
            self._ctr("tasks", "rm", "-f", task, check=False)
        for container in self._ctr("containers", "ls", "-q", check=False).split():
            self._ctr("containers", "rm", container, check=False)
        for name in ("containerd", "kube-apiserver", "etcd"):
            self.stop(name)
        for pid in _processes(lambda line: "containerd-shim" in line and str(self.run) in line):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self.home}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        for name in re.findall(r"^(cni-\S+)", _out("ip", "netns", "list"), re.MULTILINE):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", NAMESPACE], check=False, capture_output=True)
        for group in Path("/sys/fs/cgroup").glob("*/kubepods"):
            for folder in sorted(group.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
        saved = self.run / "sysctls"
        if saved.exists():
            subprocess.run(["sysctl", "-qw", *saved.read_text().replace(" = ", "=").split("\n")[:-1]], check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    def _ctr(self, *arguments: str, check: bool = True) -> str:
        command = ["ctr", "-a", str(self.run / "containerd.sock"), "-n", "k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _is_ours(self, pid: int) -> bool:
        """A pid may have gone to another program since."""
        try:
            return str(self.home).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except FileNotFoundError:
            return False

    def _wait(self, name: str, seconds: float, ready: Callable[[], bool]) -> None:
        def tried() -> bool:
            try:
                return ready()
            except AssertionError:
                return False

        if not _until(tried, seconds):
            log = self.run / f"{name}.log"
            raise AssertionError(f"{name} is not ready after {seconds:g} s: {install.last_line(log)} (log: {log})")

    def _make_network(self) -> None:
        here, there = MACHINE, _INSIDE
        for line in (
            f"netns add {NAMESPACE}",
            f"-n {NAMESPACE} link set lo up",
            f"-n {NAMESPACE} link add pods type bridge",
            f"-n {NAMESPACE} address add {NODE}/24 dev pods",
            f"-n {NAMESPACE} link set pods up",
            f"link add {NAMESPACE} type veth peer name machine netns {NAMESPACE}",
            f"address add {here}/30 dev {NAMESPACE}",
            f"link set {NAMESPACE} up",
            f"-n {NAMESPACE} address add {there}/30 dev machine",
            f"-n {NAMESPACE} link set machine up",
            # Kubernetes looks for a default route. It leads to this machine, which forwards nothing.
            f"-n {NAMESPACE} route add default via {here}",
            f"route add {PODS} via {there}",
            f"route add {SERVICES} via {there}",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        inside = ["nsenter", f"--net=/run/netns/{NAMESPACE}", "--"]
        settings = ("net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")
        subprocess.run([*inside, "sysctl", "-qw", *settings], check=True)
        # Whoever looks for a name outside, as servers do for the addresses of their clients, is told at once that there
        # is none.
        for chain in ("OUTPUT", "FORWARD"):
            rule = ["iptables", "-A", chain, "-o", "machine", "!", "-d", f"{here}/32", "-j", "REJECT"]
            subprocess.run([*inside, *rule], check=True)

    def _make_certificates(self) -> None:
        pki = self.run / "pki"
        pki.mkdir()

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=pki, check=True, capture_output=True)

        def key(name: str) -> None:
            openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")

        key("ca")
        usage = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=test", "-days", "30", "-out", "ca.crt", *usage)
        openssl("genrsa", "-out", "sa.key", "2048")
        openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        names = [
            "kubernetes",
            *(f"kubernetes.default{rest}" for rest in ("", ".svc", ".svc.cluster.local")),
            "localhost",
        ]
        api = [*(f"DNS:{name}" for name in names), "IP:127.0.0.1", "IP:10.96.0.1", f"IP:{NODE}"]
        kubelet = [f"DNS:{NODE_NAME}", f"IP:{NODE}", "IP:127.0.0.1"]
        for name, subject, use, alternatives in (
            ("apiserver", "/CN=kube-apiserver", "serverAuth", api),
            ("kubelet-server", f"/CN={NODE_NAME}", "serverAuth", kubelet),
            ("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet", "clientAuth", []),
            ("front-proxy", "/CN=front-proxy-client", "clientAuth", []),
            ("admin", "/O=system:masters/CN=admin", "clientAuth", []),
            ("kube-controller-manager", "/CN=system:kube-controller-manager", "clientAuth", []),
            ("kube-scheduler", "/CN=system:kube-scheduler", "clientAuth", []),
            ("kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}", "clientAuth", []),
            ("kube-proxy", "/CN=system:kube-proxy", "clientAuth", []),
        ):
            key(name)
            openssl("req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
            lines = [f"extendedKeyUsage={use}", "keyUsage=critical,digitalSignature,keyEncipherment"]
            lines += [f"subjectAltName={','.join(alternatives)}"] if alternatives else []
            (pki / f"{name}.ext").write_text("\n".join(lines))
            signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30"]
            openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-extfile", f"{name}.ext", "-out", f"{name}.crt")

        def encoded(name: str) -> str:
            return base64.b64encode((pki / name).read_bytes()).decode()

        for name in ("admin", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
            server = {"server": f"https://{NODE}:6443", "certificate-authority-data": encoded("ca.crt")}
            user = {"client-certificate-data": encoded(f"{name}.crt"), "client-key-data": encoded(f"{name}.key")}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": server}],
                "users": [{"name": name, "user": user}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            }
            (self.run / f"{name}.kubeconfig").write_text(json.dumps(config))

    def _configure(self) -> None:
        values = {
            "home": str(self.home),
            "run": str(self.run),
            "pki": str(self.run / "pki"),
            "node": NODE,
            "name": NODE_NAME,
            "pods": PODS,
        }
        (self.run / "cni").mkdir()
        for name, to in (
            ("containerd.toml", "containerd.toml"),
            ("cni.json", "cni/10-pods.conflist"),
            ("kubelet.yaml", "kubelet.yaml"),
            ("kube-proxy.yaml", "kube-proxy.yaml"),
            ("Corefile", "Corefile"),
        ):
            (self.run / to).write_text(Template((CONFIG / name).read_text()).substitute(values))
        (self.run / "resolv.conf").touch()

    def _commands(self) -> dict[str, Sequence[str | Path]]:
        """Program -> how it is started."""
        kube, run, pki = program("kube"), self.run, self.run / "pki"

        def config(name: str) -> list[str]:
            file = run / f"{name}.kubeconfig"
            return [f"--{use}kubeconfig={file}" for use in ("", "authentication-", "authorization-")]

        return {
            "etcd": [
                kube, "etcd", f"--data-dir={self.home}/etcd", "--unsafe-no-fsync", "--log-level=warn",
                "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=default=http://127.0.0.1:2380",
            ],
            "kube-apiserver": [
                kube, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--bind-address={NODE}",
                "--secure-port=6443", f"--advertise-address={NODE}", f"--service-cluster-ip-range={SERVICES}",
                f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
                f"--client-ca-file={pki}/ca.crt", f"--kubelet-certificate-authority={pki}/ca.crt",
                f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
                f"--kubelet-client-key={pki}/apiserver-kubelet.key",
                "--kubelet-preferred-address-types=InternalIP",
                f"--requestheader-client-ca-file={pki}/ca.crt",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
                f"--proxy-client-cert-file={pki}/front-proxy.crt", f"--proxy-client-key-file={pki}/front-proxy.key",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
                "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged", "--v=1",
            ],
            "containerd": ["containerd", "-c", run / "containerd.toml"],
            "kube-controller-manager": [
                kube, "kube-controller-manager", *config("kube-controller-manager"), "--leader-elect=false",
                f"--service-account-private-key-file={pki}/sa.key", f"--root-ca-file={pki}/ca.crt",
                "--use-service-account-credentials", "--bind-address=127.0.0.1",
                # A node that is gone is noticed within a test's patience.
                "--node-monitor-grace-period=20s",
            ],
            "kube-scheduler": [
                kube, "kube-scheduler", *config("kube-scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1",
            ],
            "kubelet": [
                kube, "kubelet", f"--config={run}/kubelet.yaml", f"--kubeconfig={run}/kubelet.kubeconfig",
                f"--root-dir={self.home}/kubelet", f"--hostname-override={NODE_NAME}", f"--node-ip={NODE}", "--v=1",
            ],
            "kube-proxy": [kube, "kube-proxy", f"--config={run}/kube-proxy.yaml"],
            "coredns": [program("coredns"), "-conf", run / "Corefile"],
            "kube-router": [
                program("kube-router"), f"--kubeconfig={run}/admin.kubeconfig", f"--hostname-override={NODE_NAME}",
                "--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--run-loadbalancer=false",
                f"--service-cluster-ip-range={SERVICES}", "--health-port=0", "--iptables-sync-period=30s",
            ],
        }  # fmt: skip


def before_pods(pid: int) -> None:
    """Let a process's whole session go before pods: the kernel shares processors between sessions first."""
    session = Path(f"/proc/{pid}/autogroup")
    if session.exists():
        session.write_text(str(BEFORE_PODS))


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One cluster on the machine at a time: their networks and control groups have the same names. What a run that was
    killed has left, in whichever folder, is ended first."""
    with _LOCK.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        if before := stream.read().strip():
            Cluster(Path(before)).down()
        stream.truncate(0)
        stream.write(str(home))
        stream.flush()
        yield
        if not (home / "run").exists():
            stream.truncate(0)


def pause_image() -> Path:
    """The image of what holds a pod's namespaces, as an archive."""
    from tests.kubernetes.image import archive

    def build(folder: Path) -> None:
        log = cache() / "pause.log"
        install.call(["gcc", "-static", "-Os", "-o", folder / "pause", CONFIG / "pause.c"], log)
        archive(folder / "pause.tar", "localhost/pause:1", {"pause": folder / "pause"}, ["/pause"])

    return install.once(cache(), "kubernetes-pause", [CONFIG / "pause.c"], build) / "pause.tar"


def _alive(pid: int) -> bool:
    """Whether the process runs; one of our own that has ended is waited for."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    return Path(f"/proc/{pid}").exists()


def _until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _processes(wanted: Callable[[str], bool]) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.append(int(folder.name))
    return found


def _out(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    # For whoever started tests that were broken off.
    Cluster(Path(".stack/kubernetes").absolute()).down()
