"""pool_risk: is this Uniswap V2 pool a rug pull.

Belongs here: what the labelled file's columns mean, and the features made of them. Does not belong here: computing the
columns from the platform's tables (`pool_features.py`).

The columns are those of the published set "Uniswap V2 rug pulls" (kangmyoungseok/RugPull-Prediction-AI): 18 numbers of
a pair's history, up to just before the rug pull or, for others, up to their last event. They are rates and shares, but
of one history: together they give back the numbers they were made of. From `swap_rate = buys / (sells + 1)` and the two
rates per week follows the length of the "week", from that every count, and from the counts, which are whole numbers,
the age to the second. A pool of 20 trades in an hour and one of 20,000 in a year differ more in those than in shares.
"""

from __future__ import annotations

import numpy as np

from dash_pipeline.models.spec import Floats, Raw, RawColumn, Spec

WEEK_S = 7 * 24 * 3600.0
# Shares of a supply: the file's carry noise of floats (-7.9e-11) where the platform's are exact.
_SHARE_DIGITS = 6
_FAR = 1e12

_EVENTS = "chain.pool_events: mint, burn, swap"
_SHARES = "chain.pool_events: transfer of the pool's shares"
_TOKEN = "chain.pool_events: transfer of the token"
_WEEKS = "per week, where a week is the time from the first mint to the last event, in weeks, plus one"
_MEAN = "mean time after the first mint, per time from the first mint to the last event; 0 where there is none"

COLUMNS: dict[str, RawColumn] = {
    "mint_count_per_week": RawColumn(f"mints {_WEEKS}", _EVENTS),
    "burn_count_per_week": RawColumn(f"burns {_WEEKS}", _EVENTS),
    "mint_ratio": RawColumn("mints per mints, burns and swaps together", _EVENTS),
    "swap_ratio": RawColumn("swaps per mints, burns and swaps together", _EVENTS),
    "burn_ratio": RawColumn("burns per mints, burns and swaps together", _EVENTS),
    "mint_mean_period": RawColumn(f"mints: {_MEAN}", _EVENTS),
    "swap_mean_period": RawColumn(f"swaps: {_MEAN}", _EVENTS),
    "burn_mean_period": RawColumn(f"burns: {_MEAN}", _EVENTS),
    "swap_in_per_week": RawColumn(
        f"swaps in which the quote token came in (buys), {_WEEKS}", _EVENTS, names=("swapIn_per_week",)
    ),
    "swap_out_per_week": RawColumn(
        f"swaps in which it did not (sells), {_WEEKS}", _EVENTS, names=("swapOut_per_week",)
    ),
    "swap_rate": RawColumn("buys / (sells + 1)", _EVENTS),
    "lp_avg": RawColumn("100 / holders: mean percentage of the shares that one of them has", _SHARES),
    "lp_std": RawColumn(
        "standard deviation of the percentages of the shares; holders are who minted and did not burn",
        _SHARES,
        names=("LP_stdev",),
    ),
    "lp_creator_holding_ratio": RawColumn(
        "what the first minter really holds of the shares, as a part of all that were minted and not burned",
        _SHARES,
        names=("LPCreator_holding_ratio",),
    ),
    "lp_lock_ratio": RawColumn(
        "what he minted, did not burn and does not hold, as a part of the same: locked, or passed on",
        _SHARES,
        names=("Lock_ratio",),
    ),
    "token_burn_ratio": RawColumn("tokens sent to a burn address, per supply", _TOKEN),
    "token_creator_holding_ratio": RawColumn(
        "what the token's creator (receiver of its first supply) holds, per supply",
        _TOKEN,
        names=("Creator_token_holding_ratio",),
    ),
    "number_of_token_creation_of_creator": RawColumn(
        "tokens with a pool that he made, this one counted", "chain.transactions, chain.pools"
    ),
}
_OF_A_SUPPLY = ("lp_creator_holding_ratio", "lp_lock_ratio", "token_burn_ratio", "token_creator_holding_ratio")


def derive(raw: Raw) -> dict[str, Floats]:
    """The features: the raw columns, and the counts and seconds they were made of (see above), NaN where those cannot
    be told, as of a pool that nobody has bought from."""
    features = {name: np.asarray(raw[name], np.float64) for name in COLUMNS}
    with np.errstate(all="ignore"):
        for name in _OF_A_SUPPLY:
            features[name] = np.round(features[name], _SHARE_DIGITS)
        mint_rate, burn_rate = features["mint_count_per_week"], features["burn_count_per_week"]
        buy_rate, sell_rate = features["swap_in_per_week"], features["swap_out_per_week"]
        every = mint_rate + burn_rate + buy_rate + sell_rate
        # buys / week - swap_rate * sells / week = swap_rate / week
        events = np.round(every * features["swap_rate"] / (buy_rate - features["swap_rate"] * sell_rate))
        weeks = events / every
        mints, burns, buys, sells = (np.round(rate * weeks) for rate in (mint_rate, burn_rate, buy_rate, sell_rate))
        age = np.round((weeks - 1) * WEEK_S)
        minted, swapped, burned = (features[f"{kind}_mean_period"] * age for kind in ("mint", "swap", "burn"))
        holders = np.round(100 / features["lp_avg"])
        features |= {
            "events": events,
            "mints": mints,
            "burns": burns,
            "buys": buys,
            "sells": sells,
            "age_s": age,
            "mint_mean_s": minted,
            "swap_mean_s": swapped,
            "burn_mean_s": burned,
            "lp_holders": holders,
            "net_buys": buys - sells,
            "buy_share": buys / (buys + sells),
            "event_gap_s": age / np.maximum(events - 1, 1),
            "mint_mean_to_end_s": age - minted,
            "swap_mean_to_end_s": age - swapped,
            "burn_mean_to_end_s": age - burned,
            "swaps_after_mints_s": swapped - minted,
            "burns_after_mints_s": burned - minted,
            "later_mints_mean_s": minted * mints / np.maximum(mints - 1, 1),
            "mints_not_burned": mints - burns,
            "holders_per_mint": holders / mints,
            "lp_creator_minted_ratio": features["lp_creator_holding_ratio"] + features["lp_lock_ratio"],
            "token_burned_or_held": features["token_burn_ratio"] + features["token_creator_holding_ratio"],
        }
    return {name: np.clip(values, -_FAR, _FAR) for name, values in features.items()}


SPEC = Spec(
    name="pool_risk",
    title="Probability that a Uniswap V2 pool is a rug pull",
    subject="pool",
    id_column="id",
    label_column="Label",
    columns=COLUMNS,
    derive=derive,
    params={
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 10,
        "feature_fraction": 0.4,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 3.0,
        "max_bin": 63,
    },
    rounds=150,
    bags=4,
)
