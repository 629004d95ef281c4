"""A model's life, step by step: labels kept, trained, compared, promoted, rolled back, watched for drift.

Belongs here: the order of steps and what each answers; assets and the command line call these. Does not belong here:
how a step works (`labels.py`, `training.py`, `registry.py`, `drift.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.models.catalogue import spec_of
from dash_pipeline.models.labels import Labels
from dash_pipeline.models.spec import Spec
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.pool_history import newest_pools, pool_history

SAMPLES = Path(__file__).parents[2] / "deployments" / "local" / "market" / "labels"
OUTLOOK = "liquidity_outlook"
OWN_HISTORY = "own history"
# Pools of a chain whose history the outlook is trained on at most, those with the newest events.
_POOLS = 2_000
# Read and labelled at a time: what bounds memory. Rows of all of them.
_POOLS_AT_ONCE = 50
_ROWS = 200_000
# Less of a chain than that holds too few hours with an outcome.
_LEAST_HISTORY_S = 3 * 3600
# Of the newest predictions so many are compared with the training data, if there are so many at least.
_NEWEST, _LEAST = 5_000, 200


# ---------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class Stored:
    """Labelled data as it is kept: `key` in the bucket, `source` where it came from."""

    model: str
    rows: int
    positives: int
    sha256: str
    source: str
    key: str


def source_of(settings: Settings, model: str) -> str:
    """Where a model's labels come from: the setting, else the sample that comes with the project, else own history."""
    if configured := settings.labels.get(model):
        return configured
    sample = SAMPLES / f"{model}.csv"
    return str(sample) if model != OUTLOOK else OWN_HISTORY


def store_labels(settings: Settings, model: str, source: str = "") -> Stored:
    """Read labelled data, check it, and keep it in the bucket under its hash, as the newest of the model.

    Raises DashError with row and column where the data is not as the schema says, and keeps nothing then.
    """
    from dash_pipeline.models.labels import read_labels
    from dash_pipeline.storage import s3

    spec, source = spec_of(model), source or source_of(settings, model)
    labels = own_history(settings, spec) if source == OWN_HISTORY else read_labels(spec, source, settings)
    key = f"labels/{model}/{labels.sha256}.parquet"
    stored = Stored(model, labels.frame.height, int(labels.frame["label"].sum()), labels.sha256, labels.source, key)
    content = io.BytesIO()
    labels.frame.write_parquet(content, compression="zstd")
    bucket = s3.bucket(settings)
    bucket.put(key, content.getvalue())
    about = vars(stored) | {"stored_at": datetime.now(UTC).isoformat()}
    bucket.put(f"labels/{model}/current.json", json.dumps(about).encode())
    return stored


def kept_labels(settings: Settings, model: str) -> Labels:
    """The labelled data that `store_labels` kept last. Raises DashError when it never did, and when that is damaged."""
    from dash_pipeline.storage import s3

    bucket, key = s3.bucket(settings), f"labels/{model}/current.json"
    about = bucket.get(key)
    if about is None:
        raise DashError(f"labels of {model}: none are kept yet; materialise labels/{model} first")
    try:
        stored = Stored(**{name: value for name, value in json.loads(about).items() if name in Stored.__annotations__})
        key = stored.key
        content = bucket.get(key)
        if content is None:
            raise DashError(f"labels of {model}: {key} is gone from the bucket; materialise labels/{model} again")
        return Labels(pl.read_parquet(io.BytesIO(content)), stored.sha256, stored.source)
    except (ValueError, TypeError, AttributeError, OSError, pl.exceptions.PolarsError):
        raise DashError(f"labels of {model}: {key} is damaged; materialise labels/{model} again") from None


def own_history(settings: Settings, spec: Spec) -> Labels:
    """Labelled rows of every chain, made by looking forward at its hot and archived history. Raises Unavailable when an
    archived object cannot be read, and DashError when there is no history long enough."""
    from dash_pipeline.models.liquidity_outlook import outlook_dataset

    registry, pieces = load_chains(settings.chains_file), []
    with db.connect(settings) as conn:
        for chain, tip in _chains_with_history(conn):
            quotes = registry[chain].quotes if chain in registry else ()
            # Neighbours by address lie together in archived objects.
            pools = sorted(newest_pools(conn, chain, _POOLS, settings))
            for first in range(0, len(pools), _POOLS_AT_ONCE):
                some = pools[first : first + _POOLS_AT_ONCE]
                history = pool_history(conn, chain, some, tip, quotes, settings)
                most = _ROWS * len(some) // len(pools)
                pieces.append(outlook_dataset(history, tip, market=chain, most=most))
    if not sum(piece.height for piece in pieces):
        raise DashError(f"labels of {spec.name}: no chain has {_LEAST_HISTORY_S / 3600:g} hours of blocks yet")
    frame = pl.concat(pieces).sort("id")
    content = io.BytesIO()
    frame.write_parquet(content)
    return Labels(frame, hashlib.sha256(content.getvalue()).hexdigest(), OWN_HISTORY)


def _chains_with_history(conn: db.Connection) -> list[tuple[str, datetime]]:
    rows = conn.execute(
        "SELECT chain, tip_ts FROM ops.chains c WHERE tip_ts - (SELECT ts FROM ops.block_tree b WHERE"
        " b.chain = c.chain AND b.status = 'canonical' ORDER BY block_number LIMIT 1) >= %s * interval '1 second'"
        " ORDER BY chain",
        (_LEAST_HISTORY_S,),
    ).fetchall()
    return [(chain, tip) for chain, tip in rows]


# ---------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Training:
    """What a training made, how good it is, and whether it is the champion now."""

    model: str
    version: str
    rows: int
    positives: int
    labels_sha256: str
    metrics: Mapping[str, float]
    card: Mapping[str, Any]
    plots: Mapping[str, bytes]
    champion_before: str | None
    promoted: bool
    verdict: str


def train(
    settings: Settings, model: str, *, trials: int = 0, say: Callable[[str], None] = lambda text: None
) -> Training:
    """Train on the kept labels, keep the version, and make it the champion if it beats the present one on the rows that
    neither was trained on. With `trials`, LightGBM's parameters are searched first.

    Raises DashError when the labels are too few or wrong; nothing is kept then, and the champion stays.
    """
    from dash_pipeline.models import training
    from dash_pipeline.models.plots import figures
    from dash_pipeline.models.registry import Registry

    spec, labels, registry = spec_of(model), kept_labels(settings, model), Registry(settings)
    if trials:
        say(f"{model}: {trials} trials")
        spec = training.tune(spec, labels, trials, progress=say)
    say(f"{model}: training on {labels.frame.height:,} rows of {labels.source}")
    trained = training.train(spec, labels, progress=say)
    plots = figures(trained.curves, model)
    version = registry.save(trained.artifact, plots)
    before = registry.champion(model)
    try:
        champion = registry.load(model, before.version) if before else None
    except Unavailable:
        raise
    except DashError as error:
        verdict = training.Verdict(True, f"the champion cannot be loaded: {error}")
    else:
        verdict = training.compare(spec, labels, trained.artifact, champion)
    if verdict.better:
        # Who was promoted meanwhile was not compared with this one.
        registry.promote(model, version, expect=before.version if before else None, by="training")
    say(f"{model}: {version}: {verdict.reason}")
    return Training(
        model,
        version,
        labels.frame.height,
        int(labels.frame["label"].sum()),
        labels.sha256,
        trained.metrics,
        trained.artifact.card,
        plots,
        before.version if before else None,
        verdict.better,
        verdict.reason,
    )


def promote(settings: Settings, model: str, version: str) -> str:
    """Make a version the champion; says what it replaced. Raises DashError when there is no such version, or when
    somebody else promoted at the same moment. A damaged pointer is replaced like none."""
    from dash_pipeline.models.registry import Registry

    before = Registry(settings).promote(spec_of(model).name, version).previous
    return f"{model}: {version} is the champion, in place of {before[0].version if before else 'none'}"


def rollback(settings: Settings, model: str) -> str:
    """Make the champion before this one the champion again. Raises DashError when there was none."""
    from dash_pipeline.models.registry import Registry

    after = Registry(settings).rollback(spec_of(model).name)
    return f"{model}: {after.version} is the champion again, in place of {after.previous[0].version}"


def evaluate(settings: Settings, model: str, source: str, version: str = "") -> dict[str, Any]:
    """How good the champion, or a version, is on labelled rows: `model`, `version`, and the metrics by name.

    Raises DashError without a champion, without such a version, and for labels that are wrong.
    """
    from dash_pipeline.models import evaluation
    from dash_pipeline.models.labels import read_labels
    from dash_pipeline.models.registry import Registry

    spec, registry = spec_of(model), Registry(settings)
    champion = registry.champion(model)
    version = version or (champion.version if champion else "")
    if not version:
        raise DashError(f"{model}: no champion yet; `dash-pipeline models train {model}` makes one")
    metrics = evaluation.evaluate(spec, registry.load(model, version), read_labels(spec, source, settings))
    return {"model": model, "version": version, "labels": source, **metrics.as_dict()}


# ---------------------------------------------------------------------------------------------- watching


@dataclass(frozen=True)
class State:
    """A model as the training sensor sees it. `labels`: hash of what it would be trained on now, None where that is
    made anew each time; `problem`: why it cannot be trained, if so."""

    champion: str | None
    labels: str | None
    problem: str | None


def state(settings: Settings, model: str) -> State:
    """The champion, and whether the model could be trained."""
    from dash_pipeline.models.registry import Registry

    champion, source = Registry(settings).champion(model), source_of(settings, model)
    labels = problem = None
    if source == OWN_HISTORY:
        with db.connect(settings) as conn:
            if not _chains_with_history(conn):
                problem = f"no chain has {_LEAST_HISTORY_S / 3600:g} hours of blocks yet"
    elif not source.startswith("s3://"):
        try:
            labels = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        except OSError as error:
            problem = f"labels of {model}: {source}: {error.strerror}"
    return State(champion.version if champion else None, labels, problem)


def sound(settings: Settings, model: str, stage: str) -> tuple[bool, str]:
    """Whether what is kept of a stage (`labels`, the newest `version`, its `evaluation`) is sound, and what was found;
    what was never made is sound.

    Raises DashError when it cannot be read or is not what its hash says, Unavailable when S3 does not answer.
    """
    from dash_pipeline.models.registry import Registry
    from dash_pipeline.storage import s3

    if stage == "labels":
        if s3.bucket(settings).get(f"labels/{model}/current.json") is None:
            return True, "none are kept yet"
        label = kept_labels(settings, model).frame["label"]
        return 0 < label.sum() < label.len(), f"{label.len():,} rows, {label.sum():,} of them positive"
    registry = Registry(settings)
    newest = next(iter(registry.versions(model)), None)
    if newest is None:
        return True, "there is no version yet"
    if stage == "version":
        registry.load(model, newest.version)
        return True, newest.version
    auc = float(newest.card["metrics"]["auc"])
    return auc > 0.5, f"{newest.version}: ROC AUC {auc:.4f}"


@dataclass(frozen=True)
class Drifted:
    """How far what the champion scored lately is from its training data: PSI by feature, the score's first."""

    rows: int
    psi: Mapping[str, float]
    drifted: bool
    summary: str


def drift(settings: Settings, model: str) -> Drifted:
    """Compare the newest predictions of the champion with what it was trained on; too few are no drift."""
    from dash_pipeline.models import drift as measure
    from dash_pipeline.models.registry import Registry

    spec, registry = spec_of(model), Registry(settings)
    champion = registry.champion(model)
    if champion is None:
        return Drifted(0, {}, False, "no champion yet")
    with db.connect(settings) as conn:
        rows = conn.execute(
            "SELECT features, score FROM intel.predictions WHERE model = %s AND version = %s AND score IS NOT NULL"
            " ORDER BY predicted_at DESC LIMIT %s",
            (model, champion.version, _NEWEST),
        ).fetchall()
    if len(rows) < _LEAST:  # where anomalies are few, those of a week say nothing
        rows = _archived_and_hot(settings, model, champion.version)
    if len(rows) < _LEAST:
        return Drifted(len(rows), {}, False, f"{len(rows)} rows scored by {champion.version}; {_LEAST} are compared")
    raw = {name: np.array([features.get(name) for features, _ in rows], np.float64) for name in spec.columns}
    report = measure.drift(registry.load(model, champion.version), spec, raw, np.array([s for _, s in rows]))
    psi = {column.name: column.psi for column in report.columns}
    moved = [column.name for column in report.columns if column.level == "drifted"]
    return Drifted(len(rows), psi, report.drifted, f"drifted: {', '.join(moved)}" if moved else "no drift")


def _archived_and_hot(settings: Settings, model: str, version: str) -> list[tuple[dict[str, Any], float]]:
    """Features and scores of the newest predictions of a version, wherever they are."""
    found = collect(
        history(settings, "predictions")
        .filter((pl.col("model") == model) & (pl.col("version") == version) & pl.col("score").is_not_null())
        .select("features", "score", "predicted_at")
    ).top_k(_NEWEST, by="predicted_at")
    return [(json.loads(features), score) for features, score, _ in found.iter_rows()]
