"""The notifier as sensors see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.errors import DashError, first_line
from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.notify.notice import Notice
    from dash_pipeline.notify.tell import Sent
    from dash_pipeline.storage.health import ChainHealth


class NotifierResource(ConfigurableResource[Any]):
    """Tells operators of `DASH_OWNER_ROUTES`; see `dash_pipeline.notify`."""

    def tell(self, raised: Iterable[Notice], resolved: Mapping[str, str] | None = None) -> Sent:
        """Queue notices, close those that are over (key -> why), and deliver what is due. Raises Unavailable when the
        database is away."""
        from dash_pipeline.notify import tell
        from dash_pipeline.storage import timescale

        with timescale.session(settings()) as conn:
            for notice in raised:
                tell.tell(conn, settings(), notice)
            for key, text in (resolved or {}).items():
                tell.resolve(conn, settings(), key, text)
        return tell.deliver(settings())

    def tell_at_least_once(self, notice: Notice) -> list[str]:
        """`tell`, and past the database when that is away, for what may be the news of just that. Returns a line for
        each channel that did not take it then."""
        import psycopg

        from dash_pipeline.notify import tell

        try:
            self.tell([notice])
        except (DashError, psycopg.Error) as error:
            return [f"not remembered: {first_line(error)}", *tell.send_at_once(settings(), notice)]
        return []

    def state(self, chains: list[str]) -> tuple[dict[str, ChainHealth], frozenset[str]]:
        """How these chains do, and the keys of open notices. Raises Unavailable when the database is away."""
        from dash_pipeline.storage import health, notices, timescale

        with timescale.session(settings()) as conn:
            return health.chains(conn, chains), frozenset(notices.open_titles(conn))
