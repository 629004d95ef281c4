"""`dash-pipeline score`: one pool or wallet, now, and why.

Belongs here: telling pools from wallets, and what is shown. Does not belong here: scoring (`predict.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError
from dash_pipeline.models.champions import PATIENT_S, Champions
from dash_pipeline.predictions.predict import score_pools, score_wallets
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.predictions import Prediction

_TOP = 8
_ADDRESS = re.compile("(0x)?[0-9a-fA-F]{40}")


def explain(settings: Settings, chain: str, address: str) -> list[Prediction]:
    """What each champion that knows such a subject says of it, as of the chain's newest block.

    Raises DashError when the address is none, or the chain is unknown or empty.
    """
    chains = load_chains(settings.chains_file)
    if chain not in chains:
        raise DashError(f"--chain: no {chain} in the registry (known: {', '.join(chains)})")
    if not _ADDRESS.fullmatch(address):
        raise DashError(f"{address} is no address: 0x and 40 hex digits are")
    subject = bytes.fromhex(address.removeprefix("0x"))
    with db.connect(settings) as conn, Champions(settings, first_look_s=PATIENT_S) as champions:
        tip = db.chain_state(conn, chain).tip_at
        if tip is None:
            raise DashError(f"{chain}: no block is stored yet; `dash-pipeline feed` brings some")
        pool = conn.execute(
            "SELECT EXISTS (SELECT FROM chain.pools WHERE address = %(a)s AND chain = %(c)s) OR EXISTS (SELECT FROM"
            " chain.pool_events WHERE pool = %(a)s AND chain = %(c)s AND event <> 'transfer') OR EXISTS (SELECT FROM"
            " rollup.pool_candles WHERE pool = %(a)s AND chain = %(c)s)",
            {"a": subject, "c": chain},
        ).fetchone() == (True,)
        return (score_pools if pool else score_wallets)(conn, chains[chain], champions, [subject], tip, settings)


def as_json(said: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The predictions as JSON."""
    return [
        {
            "model": one.model,
            "version": one.version,
            "chain": one.chain,
            one.subject_kind: f"0x{one.subject.hex()}",
            "as_of": one.as_of.isoformat(),
            "score": one.score,
            "reason": one.reason,
            "contributions": dict(one.contributions),
            "features": dict(one.features),
        }
        for one in said
    ]


def text(one: Prediction) -> Group:
    """A prediction, with what moved it most: SHAP values in log-odds."""
    subject = f"{one.subject_kind} 0x{one.subject.hex()}"
    if one.score is None:
        return Group(f"{one.model} of {subject}: no score: {one.reason}")
    shown = Table("feature", Column("contribution, log-odds", justify="right"), box=None, pad_edge=False)
    for name, value in list(one.contributions.items())[:_TOP]:
        shown.add_row(name, f"{value:+.3f}")
    note = [one.reason] if one.reason else []
    return Group(f"{one.model} of {subject}: {one.score:.1%} ({one.version})", *note, shown)
