"""The champions in memory: looked for at the start, then every few seconds by a thread; never waited for.

Belongs here: when a model is loaded and when it is replaced. Does not belong here: where it is kept (`registry.py`),
how it scores (`scorer.py`).

What is in use is replaced only by a model that was loaded, held to its hash, and has scored a row. While the store does
not answer, or what it holds is damaged or made for other features, the last good one stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dash_pipeline.errors import DashError
from dash_pipeline.models.registry import Registry
from dash_pipeline.models.scorer import Scorer
from dash_pipeline.models.spec import Spec
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3

log = logging.getLogger(__name__)

#: How long the first `get` may wait for the first look: in a lane, and where somebody asked for a score.
FIRST_LOOK_S, PATIENT_S = 5.0, 15.0


@dataclass
class _Place:
    """A model's champion. `seen`: the pointer that `scorer` was loaded by."""

    spec: Spec
    scorer: Scorer | None = None
    problem: str | None = "not looked for yet"
    seen: s3.Object | None = None


class Champions:
    """Scorers of the champions, for several threads.

    `models`: name -> description, those of the catalogue without; `refresh_s`: seconds between looks, the setting's
    without; `first_look_s`: how long the first `get` may wait for the first look.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, Spec] | None = None,
        refresh_s: float | None = None,
        first_look_s: float = FIRST_LOOK_S,
    ) -> None:
        if models is None:
            from dash_pipeline.models.catalogue import MODELS

            models = MODELS
        self._places = {name: _Place(spec) for name, spec in models.items()}
        self._settings = settings
        self._refresh_s = settings.champion_refresh_s if refresh_s is None else refresh_s
        self._looked, self._stop = threading.Event(), threading.Event()
        self._first_look_s, self._wait_until = first_look_s, 0.0
        self._thread = threading.Thread(target=self._run, name="champions", daemon=True)

    def __enter__(self) -> Champions:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to look."""
        self._wait_until = time.monotonic() + self._first_look_s
        self._thread.start()

    def close(self) -> None:
        """Look no more; what was found can still be used."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(FIRST_LOOK_S)

    def get(self, model: str) -> Scorer | None:
        """The champion; None when there is none. Waits until the first look is over, but not longer than
        `first_look_s` after the start; never after that."""
        self._looked.wait(max(0.0, self._wait_until - time.monotonic()))
        return self._places[model].scorer

    def problem(self, model: str) -> str | None:
        """Why there is no champion, or why not the one that the registry names; None when all is well."""
        return self._places[model].problem

    def _run(self) -> None:
        registry: Registry | None = None
        while not self._stop.is_set():
            for name, place in self._places.items():
                try:
                    registry = registry or Registry(self._settings)
                    self._look(registry, name, place)
                except DashError as error:
                    self._set_problem(name, place, str(error))
                except Exception as error:  # the thread must go on: it is what brings the next champion
                    self._set_problem(name, place, f"{type(error).__name__}: {error}", error)
            self._looked.set()
            self._stop.wait(self._refresh_s)

    def _look(self, registry: Registry, name: str, place: _Place) -> None:
        found, champion = registry.look(name, place.seen)
        if champion is None:
            raise DashError(f"{name}: no champion yet; `dash-pipeline models train {name}` makes one")
        if found is not place.seen:
            if place.scorer is None or place.scorer.version != champion.version:
                place.scorer = Scorer(place.spec, registry.load_champion(name, champion), champion.version)
                log.info("%s: %s is in use", name, champion.version)
            place.seen = found
        place.problem = None

    def _set_problem(self, name: str, place: _Place, problem: str, error: Exception | None = None) -> None:
        """Say it once, not at every look."""
        if problem != place.problem:
            stays = f"; {place.scorer.version} stays in use" if place.scorer else ""
            log.warning("champion of %s: %s%s", name, problem, stays, exc_info=error)
        place.problem = problem
