"""Encrypted objects on the real S3: what is stored is not the content, and only its own key reads it."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import Key, keyring

OLD, NEW = Key("old", bytes(range(32))), Key("new", bytes(range(32, 64)))


@pytest.fixture
def bucket(settings: Settings) -> s3.Bucket:
    return s3.bucket(settings)


def test_only_its_key_reads_an_object(bucket: s3.Bucket, unique: Callable[[str], str]) -> None:
    key, data = f"{unique('sealed')}/a", secrets.token_bytes(100_000)
    bucket.put(key, data, seal=OLD)
    assert bucket.get(key, seal=OLD) == data
    with pytest.raises(DashError, match=r"new in DASH_ENCRYPTION_KEYS is the key it was written with"):
        bucket.get(key, seal=NEW)
    with pytest.raises(DashError, match="refuses"):
        bucket.get(key)


def test_the_store_keeps_no_plain_text(
    bucket: s3.Bucket, stack: Stack, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Looked for in the store's own files; the plain object shows that it would be found."""
    marks = {name: os.urandom(100_000) for name in ("plain", "sealed")}
    folder = unique("marks")
    bucket.put(f"{folder}/plain", marks["plain"])
    bucket.put(f"{folder}/sealed", marks["sealed"], seal=OLD)
    stored = [file.read_bytes() for file in stack.layout.data.joinpath("s3").rglob("*") if file.is_file()]
    assert any(marks["plain"][:64] in content for content in stored)
    assert not any(marks["sealed"][:64] in content for content in stored)


def test_files_of_several_parts(bucket: s3.Bucket, unique: Callable[[str], str], tmp_path: Path) -> None:
    key, data = f"{unique('parts')}/a", secrets.token_bytes(40 << 20)
    (tmp_path / "in").write_bytes(data)
    bucket.upload(tmp_path / "in", key, OLD)
    bucket.download(key, tmp_path / "out", OLD)
    assert (tmp_path / "out").read_bytes() == data
    bucket.copy(key, f"{key}2", OLD, NEW)
    assert bucket.get(f"{key}2", seal=NEW) == data
    bucket.delete([key, f"{key}2", f"{key}-never-there"])
    assert bucket.keys(key) == []


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"x" * 31).decode()])
def test_what_is_no_key_is_refused(settings: Settings, text: str) -> None:
    wrong = settings.model_copy(update={"encryption_keys": {"mine": text}})
    with pytest.raises(DashError, match="DASH_ENCRYPTION_KEYS: mine: not 32 bytes in base64"):
        keyring(wrong)


def test_the_first_key_encrypts_and_the_others_read(settings: Settings) -> None:
    texts = {name: base64.b64encode(os.urandom(32)).decode() for name in ("2026", "2025")}
    ring = keyring(settings.model_copy(update={"encryption_keys": texts}))
    assert ring.current is ring.named("2026")
    assert ring.named("2025") is not None
    assert ring.named("") is None
    with pytest.raises(DashError, match="no key named 2024"):
        ring.named("2024")


def test_the_local_stack_has_a_key(settings: Settings) -> None:
    assert keyring(settings).current is not None
