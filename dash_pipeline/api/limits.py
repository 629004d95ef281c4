"""Who asks, and how much he may: keys, tiers, token buckets.

Belongs here: the decision. Does not belong here: HTTP (`app.py`), SQL (`dash_pipeline/storage/api_keys.py`).

Buckets are in this process: with several replicas a key may ask each of them as much.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dash_pipeline.errors import Unavailable
from dash_pipeline.settings import ApiTier
from dash_pipeline.storage.api_keys import digest

ANONYMOUS = "anonymous"
# Keys and addresses that are remembered: what is forgotten first has asked nothing for the longest time.
_REMEMBERED = 20_000


@dataclass(frozen=True)
class Decision:
    """Whether a request is let in: `remaining` more may follow at once; `wait_s` seconds until the next one may (0 when
    this one may)."""

    tier: str
    policy: ApiTier
    remaining: int
    wait_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers), and Retry-After when it is refused."""
        policy = self.policy
        full_s = math.ceil(policy.burst / policy.rate)
        found = [
            (b"ratelimit-policy", f'"{self.tier}";q={policy.burst};w={full_s}'.encode()),
            (b"ratelimit", f'"{self.tier}";r={self.remaining};t={full_s}'.encode()),
        ]
        if self.wait_s:
            found.append((b"retry-after", str(math.ceil(self.wait_s)).encode()))
        return found


class Buckets:
    """A token bucket for each key or address, for as long as it asks."""

    def __init__(self, tiers: Mapping[str, ApiTier], clock: Callable[[], float] = time.monotonic) -> None:
        self._tiers, self._clock = tiers, clock
        # who -> tokens, and when there were so many
        self._filled: OrderedDict[bytes | str, tuple[float, float]] = OrderedDict()

    def take(self, who: bytes | str, tier: str) -> Decision:
        """A request of `who`. A tier that the settings no longer have counts as anonymous."""
        if tier not in self._tiers:
            tier = ANONYMOUS
        policy, now = self._tiers[tier], self._clock()
        tokens, at = self._filled.pop(who, (float(policy.burst), now))
        tokens = min(policy.burst, tokens + (now - at) * policy.rate)
        wait_s = 0.0
        if tokens >= 1:
            tokens -= 1
        else:
            wait_s = (1 - tokens) / policy.rate
        self._filled[who] = tokens, now
        if len(self._filled) > _REMEMBERED:
            self._filled.popitem(last=False)
        return Decision(tier, policy, int(tokens), wait_s)


class Keys:
    """The tiers of keys, each asked for at most once in `cache_s` seconds: for so long a revoked key is still taken.

    While the database is away keys are as they last were: nobody can revoke one then.
    """

    def __init__(
        self,
        find: Callable[[bytes], Awaitable[str | None]],
        cache_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._cache_s, self._clock = find, cache_s, clock
        self._known: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()

    async def tier(self, key: str) -> tuple[bytes, str | None]:
        """The key's hash, and its tier, or None for one that is unknown or revoked. Raises Unavailable when the
        database does not answer and the key was never seen."""
        hash_ = digest(key)
        tier, until = self._known.get(hash_, (None, -math.inf))
        if self._clock() >= until:
            try:
                tier = await self._find(hash_)
            except Unavailable:
                if until == -math.inf:
                    raise
            self._known.pop(hash_, None)
            self._known[hash_] = tier, self._clock() + self._cache_s
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return hash_, tier
