"""The keys that objects are encrypted with (AES-256), as the settings name them.

Belongs here: reading the keys, and which one is used now. Does not belong here: the requests that carry them (`s3.py`).

The store encrypts, with a key that comes with each request and that it does not keep (SSE-C, which AWS S3, MinIO and
SeaweedFS have): a Parquet file stays one that ranges of bytes are read from, which encrypting it here would end. Who
stores an object also stores the name of its key; a name that the settings no longer have is an object nobody can read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings

_BYTES = 32


@dataclass(frozen=True)
class Key:
    """A named AES-256 key; `secret` is 32 bytes."""

    name: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.name})"

    def request(self) -> dict[str, Any]:
        """What a request of boto3 carries to write or read an object under this key."""
        return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": self.secret}

    def source(self) -> dict[str, Any]:
        """What a copy carries to read its source under this key."""
        return {f"CopySource{name}": value for name, value in self.request().items()}


@dataclass(frozen=True)
class Keyring:
    """The keys of the settings by name; new objects are encrypted with the first."""

    keys: Mapping[str, Key]

    @property
    def current(self) -> Key | None:
        """The key of new objects; None leaves encryption to the bucket's own default."""
        return next(iter(self.keys.values()), None)

    def named(self, name: str) -> Key | None:
        """The key with this name; none for the empty name, which is that of objects written without one.

        Raises DashError when the settings do not have it."""
        if not name:
            return None
        try:
            return self.keys[name]
        except KeyError:
            raise DashError(
                f"DASH_ENCRYPTION_KEYS: no key named {name}, which objects are encrypted with; add it behind the others"
            ) from None


def keyring(settings: Settings) -> Keyring:
    """The keys of the settings. Raises DashError with the name of the first that is no key."""
    return Keyring({name: Key(name, _secret(name, text)) for name, text in settings.encryption_keys.items()})


def _secret(name: str, text: str) -> bytes:
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != _BYTES:
        raise DashError(
            f"DASH_ENCRYPTION_KEYS: {name}: not {_BYTES} bytes in base64; `openssl rand -base64 {_BYTES}` makes a key"
        )
    return secret
