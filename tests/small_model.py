"""A model small enough to be trained in a test: three raw columns, four features, a label they explain in part.

Belongs here: its description, rows and artifacts for tests of scoring, registry and champions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import lightgbm
import numpy as np

from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.drift import SCORE, histogram
from dash_pipeline.models.spec import Floats, Raw, RawColumn, Spec

COLUMNS = ("reserve", "trades", "age_s")


def derive(raw: Raw) -> dict[str, Floats]:
    """The raw columns as they are, and one that is made of two."""
    with np.errstate(all="ignore"):
        return {**{name: raw[name] for name in COLUMNS}, "trades_per_s": raw["trades"] / raw["age_s"]}


SPEC = Spec(
    name="small",
    title="Small",
    subject="pool",
    id_column="id",
    label_column="label",
    columns={name: RawColumn(name, "a test") for name in COLUMNS},
    derive=derive,
    bags=3,
)


def spec(name: str, derive: Callable[[Raw], dict[str, Floats]] = derive) -> Spec:
    """The same under another name."""
    return replace(SPEC, name=name, derive=derive)


def rows(count: int, seed: int = 0) -> dict[str, Floats]:
    """Raw columns of so many rows, a tenth of each unknown."""
    random = np.random.default_rng(seed)
    raw = {name: random.lognormal(3, 2, count) for name in COLUMNS}
    for values in raw.values():
        values[random.random(count) < 0.1] = np.nan
    return raw


def artifact(spec: Spec = SPEC, seed: int = 0, rounds: int = 20) -> Artifact:
    """A model of `spec`, trained on 600 rows; another seed, another model."""
    raw, random = rows(600, seed), np.random.default_rng(seed)
    matrix = np.column_stack(list(spec.derive(raw).values()))
    known = np.nan_to_num(raw["reserve"]) - np.nan_to_num(raw["trades"])
    label = (known + random.normal(0, 20, 600) > 0).astype(int)
    texts = []
    for bag in range(spec.bags):
        params = {"objective": "binary", "num_leaves": 15, "seed": bag, "bagging_fraction": 0.7, "bagging_freq": 1}
        booster = lightgbm.train({**params, "verbose": -1, "num_threads": 1}, lightgbm.Dataset(matrix, label), rounds)
        texts.append(booster.model_to_string())
    scores = np.mean([lightgbm.Booster(model_str=text).predict(matrix) for text in texts], axis=0)
    return Artifact(
        model=spec.name,
        features=list(spec.derive(raw)),
        boosters=texts,
        calibration=([0.0, 0.3, 0.7, 1.0], [0.01, 0.2, 0.8, 0.99]),
        threshold=0.5,
        reference={SCORE: histogram(scores), **{name: histogram(v) for name, v in spec.derive(raw).items()}},
        card={"metrics": {"auc": 0.9 + seed / 1000}, "seed": seed},
    )
