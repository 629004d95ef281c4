"""How chains do, as assets see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import ConfigurableResource

from dash_pipeline.errors import DashError
from dash_pipeline.settings import settings

if TYPE_CHECKING:
    from dash_pipeline.storage.health import ChainHealth, Measured

# Numbers are of the last minutes, the picture of the last hours; a step of it holds several checkpoints.
_WINDOW_S, _HOURS, _STEP_S = 300.0, 6.0, 300.0


@dataclass(frozen=True)
class Health:
    """A chain that was ever ingested. `lag`: messages on Kafka that are not in the tables, None when Kafka did not
    answer; `notices`: the titles of open notices about it; `picture`: a PNG, empty without a checkpoint lately."""

    now: ChainHealth
    measured: Measured
    lag: int | None
    notices: list[str]
    picture: bytes


class HealthResource(ConfigurableResource[Any]):
    """What `ops.checkpoints`, `ops.stream_offsets` and `ops.notices` say; see `dash_pipeline.storage.health`."""

    def read(self, chains: list[str]) -> dict[str, Health]:
        """Those of these chains that anything was ever committed of. Raises Unavailable when the database is away."""
        from dash_pipeline.health_plot import picture
        from dash_pipeline.storage import health, notices, timescale

        found = {}
        with timescale.session(settings()) as conn:
            now = {name: one for name, one in health.chains(conn, chains).items() if one.commit_age_s is not None}
            lag, titles = _lag(now, timescale.committed_offsets(conn)), notices.open_titles(conn)
            for name, one in now.items():
                course = health.course(conn, name, _HOURS, _STEP_S)
                found[name] = Health(
                    one,
                    health.measured(conn, name, _WINDOW_S),
                    lag.get(name),
                    [title for key, title in titles.items() if key.endswith((f"/{name}", f"/ingest_{name}"))],
                    picture(course, f"{name}: the last {_HOURS:g} hours") if course.at else b"",
                )
        return found


def _lag(chains: Iterable[str], committed: dict[tuple[str, int], int]) -> dict[str, int]:
    """Chain -> messages that wait; empty when Kafka does not answer, which other sensors tell of."""
    from dash_pipeline.lag import ExtentReader
    from dash_pipeline.topics import chain_topics

    reader, lag = ExtentReader(settings()), Counter(dict.fromkeys(chains, 0))
    try:
        extent = reader.read([topic for name in chains for topic in chain_topics(name)])
    except DashError:
        return {}
    finally:
        reader.close()
    for (topic, _), messages in extent.lag(committed).items():
        lag[topic.split(".", 1)[0]] += messages
    return dict(lag)
