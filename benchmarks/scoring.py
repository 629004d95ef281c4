"""Scoring: a champion's time for one row and for fifty, from raw columns to calibrated probabilities and to reasons.

A model without a champion in the stack's registry is trained here, on made-up rows and labels of its own columns, with
its own parameters, rounds and boosters: as large as a champion, and harder than one, since noise makes branches that no
processor foresees.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.registry import Registry
from dash_pipeline.models.scorer import Scorer
from dash_pipeline.models.spec import Floats, Raw, Spec
from dash_pipeline.stack import Stack

ROWS = (1, 50)
TIMES, EXPLAINED_TIMES = 1_000, 20
TRAINED_ON = 3_000


def run(stack: Stack) -> dict[str, object]:
    """Each model's size, and its times in ms."""
    registry = Registry(stack.settings())
    return {name: measure(spec, *_model(registry, spec)) for name, spec in MODELS.items()}


def measure(spec: Spec, artifact: Artifact, version: str) -> dict[str, object]:
    """How long a scorer takes to be made, to score, and to explain."""
    started = time.perf_counter()
    scorer = Scorer(spec, artifact, version)
    made = time.perf_counter() - started
    pools = {rows: [_rows(spec, rows, seed) for seed in range(20)] for rows in ROWS}
    return {
        "version": version,
        "features": len(artifact.features),
        "boosters": len(artifact.boosters),
        "trees": sum(text.count("\nTree=") for text in artifact.boosters),
        "ready_after_ms": round(1000 * made, 1),
        "score_ms": {rows: _percentiles(scorer.score, raws, TIMES) for rows, raws in pools.items()},
        "explain_ms": {rows: _percentiles(scorer.explain, raws, EXPLAINED_TIMES) for rows, raws in pools.items()},
    }


def _percentiles(work: Callable[[Raw], object], raws: list[dict[str, Floats]], times: int) -> dict[str, float]:
    taken = []
    for i in range(-5, times):
        started = time.perf_counter()
        work(raws[i % len(raws)])
        taken.append(1000 * (time.perf_counter() - started))
    return {f"p{p}": round(float(np.percentile(taken[5:], p)), 3) for p in (50, 99)}


def _model(registry: Registry, spec: Spec) -> tuple[Artifact, str]:
    champion = registry.champion(spec.name)
    if champion:
        return registry.load(spec.name, champion.version), champion.version
    return _trained(spec), "made up"


def _trained(spec: Spec) -> Artifact:
    import lightgbm

    raw, random = _rows(spec, TRAINED_ON, 1_000), np.random.default_rng(0)
    features = spec.derive(raw)
    matrix = np.column_stack(list(features.values()))
    # The sum of where each row stands in some of the columns, and as much noise.
    places = np.argsort(np.argsort(np.column_stack(list(raw.values())), axis=0), axis=0) / TRAINED_ON
    odds = places[:, ::2].sum(axis=1) - places[:, 1::2].sum(axis=1)
    label = odds + random.normal(0, odds.std(), TRAINED_ON) > np.median(odds)
    texts = []
    for bag in range(spec.bags):
        params = {"objective": "binary", "num_threads": 1, "verbose": -1, **spec.params, "seed": bag}
        booster = lightgbm.train(params, lightgbm.Dataset(matrix, label.astype(int)), spec.rounds)
        texts.append(booster.model_to_string())
    return Artifact(spec.name, list(features), texts, ([0.0, 1.0], [0.0, 1.0]), 0.5, {}, {})


def _rows(spec: Spec, count: int, seed: int) -> dict[str, Floats]:
    random = np.random.default_rng(seed)
    raw = {name: random.lognormal(2, 2, count) for name in spec.columns}
    for values in raw.values():
        values[random.random(count) < 0.05] = np.nan
    return raw
