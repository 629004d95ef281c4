"""Images without Docker: the project's own, built from its Dockerfile by buildah on a base made by debootstrap.

Belongs here: the base, the build, archives that a node imports. Does not belong here: what is in the image
(`deployments/docker/Dockerfile`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dash_pipeline.locks import locked
from dash_pipeline.stack import debian, install
from tests.kubernetes.cluster import cache

ROOT = Path(__file__).parents[2]
NAME = "localhost/dash-pipeline:test"

_SUITE = "trixie"
_BASE = f"localhost/debian-python:{_SUITE}"
# What the Dockerfile's own base, Docker's `python`, has.
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def archive(file: Path, name: str, files: Mapping[str, Path], entrypoint: Sequence[str]) -> None:
    """An image of these files (path -> what is put there) alone, in Docker's archive format."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path, source in files.items():
            tar.add(source, path)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    parts = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer.getvalue(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(file, "w") as tar:
        for path, content in parts.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def archived() -> Path:
    """The archive that `build` makes."""
    return ROOT / ".stack" / "image.tar"


def build() -> None:
    """Build the project's image into its archive; layers that have not changed come from the cache."""
    with locked(cache() / ".image.lock"):
        _build(archived())


def _build(file: Path) -> None:
    make_base()
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    command = [
        *_buildah(), "build", "--layers", "--isolation=chroot", "--network=host", f"--tag={NAME}",
        f"--build-arg=BASE={_BASE}", f"--file={ROOT / 'deployments' / 'docker' / 'Dockerfile'}",
        # The machine's certificates and its way to packages, for as long as the build lasts.
        f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro", *_package_settings(), str(ROOT),
    ]  # fmt: skip
    log = cache() / "image.log"
    install.call(command, log)
    install.call([*_buildah(), "push", NAME, f"docker-archive:{file}:{NAME}"], log)


def _buildah() -> list[str]:
    storage = cache() / "images"
    return ["buildah", f"--root={storage}/root", f"--runroot={storage}/run", "--storage-driver=overlay"]


def _package_settings() -> list[str]:
    names = [name for name in os.environ if name.startswith(("PIP_", "UV_")) or name in ("SSL_CERT_FILE",)]
    return [f"--env={name}" for name in names if "FIND_LINKS" not in name]


def make_base() -> None:
    """The image that the project's is built on, if it is not there yet. Raises DashError."""
    if missing := [package for package in ("buildah", "debootstrap") if not shutil.which(package)]:
        install.debian_packages(missing, cache() / "packages.log")
    found = subprocess.run([*_buildah(), "images", "-q", _BASE], capture_output=True, text=True, check=False)
    if found.stdout.strip():
        return
    log, root = cache() / "base.log", cache() / "base"
    shutil.rmtree(root, ignore_errors=True)
    install.call(
        ["debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", _SUITE, root, debian.mirror()], log
    )
    made = subprocess.run([*_buildah(), "from", "scratch"], capture_output=True, text=True, check=True).stdout.strip()
    install.call([*_buildah(), "copy", "--quiet", made, root, "/"], log)
    install.call([*_buildah(), "commit", "--quiet", "--rm", made, _BASE], log)
    shutil.rmtree(root, ignore_errors=True)
