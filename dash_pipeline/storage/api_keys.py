"""Keys of the read API in the database.

Belongs here: making, revoking and finding them. Does not belong here: what a tier may do
(`dash_pipeline/api/limits.py`).

A key is 32 random bytes as text. Kept is its SHA-256: a long random key needs no slow hash, and the sum is the one that
the load balancer's `keys.map` has.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg.errors import UniqueViolation

from dash_pipeline.errors import DashError
from dash_pipeline.storage.timescale import Connection

#: The tier of a key's hash, unless it is revoked; parameters: hash.
FIND = "SELECT tier FROM ops.api_keys WHERE hash = %s AND revoked_at IS NULL"

_PREFIX = "dash_"


@dataclass(frozen=True)
class Key:
    """A key as it is listed; `hash` is its SHA-256 in hex, times are UTC."""

    name: str
    tier: str
    hash: str
    created_at: datetime
    revoked_at: datetime | None


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def add(conn: Connection, name: str, tier: str, tiers: Collection[str]) -> str:
    """Make a key and return it: it can be shown this once. Raises DashError for a tier that is none of `tiers`, or a
    name that a key which is not revoked has."""
    if tier not in tiers:
        raise DashError(f"--tier: {tier} is not one of {', '.join(tiers)} (DASH_API_TIERS)")
    if not name.strip():
        raise DashError("NAME: say whose key it is")
    key = _PREFIX + secrets.token_urlsafe(32)
    try:
        conn.execute("INSERT INTO ops.api_keys (hash, name, tier) VALUES (%s, %s, %s)", (digest(key), name, tier))
    except UniqueViolation:
        raise DashError(f"NAME: there is a key {name} already; revoke it first, or choose another name") from None
    return key


def keys(conn: Connection) -> list[Key]:
    """All keys, the newest first; those that can be used before those that are revoked."""
    rows = conn.execute(
        "SELECT name, tier, encode(hash, 'hex'), created_at, revoked_at FROM ops.api_keys"
        " ORDER BY revoked_at IS NOT NULL, created_at DESC"
    ).fetchall()
    return [Key(*row) for row in rows]


def revoke(conn: Connection, name: str) -> None:
    """The key of this name is no longer taken. Raises DashError when there is none."""
    done = conn.execute(
        "UPDATE ops.api_keys SET revoked_at = clock_timestamp() WHERE name = %s AND revoked_at IS NULL", (name,)
    )
    if not done.rowcount:
        raise DashError(f"NAME: no key {name} that is not revoked; `dash-pipeline api-keys list` shows all")
