"""Model wallet_risk: is this account illicit, judged by its transactions and token transfers.

Belongs here: the raw columns of the labelled file, and the features made of them. Does not belong here: computing the
columns live (`wallet_features.py`).

The labelled file is the published set "Ethereum fraud detection" (4,681 accounts, or 9,841 with more normal ones).
What is in it and must not be learnt:
- Blank token cells: only illicit accounts have them. They become 0 (`blank`), here as in labels, and `derive` makes 0
  of NaN in these columns, so that a blank cannot be told from an account without tokens.
- `Index` and the order of rows follow the label. `Address` says nothing. None is a column.
- The most sent and received token's name: text, blank in three ways that differ by label. Left out.
- Columns that the set's program left at 0 for every account: the four average times between token transfers, and the
  smallest, largest and mean amount sent to a token's contract. Left out.
- Accounts without any history are all illicit, because of how they were found; live they are not scored.

What helps beyond the columns is how round amounts are: people send 0.5 and 10, programs that empty a wallet send
0.998741. `places_*` is the number of decimals of an amount.
"""

from __future__ import annotations

import numpy as np

from dash_pipeline.models.spec import Floats, Raw, RawColumn, Spec

_TX, _TOKENS = "chain.transactions", "chain.token_transfers"


def _names(header: str) -> tuple[str, ...]:
    # One file of the set has underscores, the other spaces, some of them at the ends.
    spaced = header.replace("_", " ")
    return header, spaced, f" {spaced}", f"{spaced} "


def _ether(header: str, about: str, *more: str) -> RawColumn:
    return RawColumn(about, _TX, names=(*_names(header), *more))


def _erc20(header: str, about: str, *more: str) -> RawColumn:
    return RawColumn(about, _TOKENS, blank=0.0, names=(*_names(header), *more))


_SINCE = "mean minutes from the account's transaction before, sent or received, to a {} one; 0 with less than two such"
_CREATION = "transactions that create a contract: the account's own, and the one that created it, if it is a contract"
_AMOUNT = "amounts are divided by 1e18 whatever the token's decimals"

#: Ether is 1e18 wei; failed transactions count, with their value. Amounts min, max, avg have six places, times two.
COLUMNS: dict[str, RawColumn] = {
    "avg_min_between_sent": _ether("Avg_min_between_sent_tnx", _SINCE.format("sent")),
    "avg_min_between_received": _ether("Avg_min_between_received_tnx", _SINCE.format("received")),
    "lifetime_min": _ether("Time_Diff_between_first_and_last_(Mins)", "minutes from the first transaction to the last"),
    "sent": _ether("Sent_tnx", "transactions sent"),
    "received": _ether("Received_Tnx", "transactions received"),
    "created_contracts": _ether("Number_of_Created_Contracts", _CREATION),
    "uniq_received_from": _ether("Unique_Received_From_Addresses", "different senders"),
    "uniq_sent_to": _ether("Unique_Sent_To_Addresses", "different receivers; all creations of contracts are one"),
    "min_received": _ether("min_value_received", "smallest amount received, ether; 0 if none"),
    "max_received": _ether("max_value_received", "largest amount received, ether; 0 if none"),
    "avg_received": _ether("avg_val_received", "mean amount received, ether; 0 if none"),
    "min_sent": _ether("min_val_sent", "smallest amount sent, ether; 0 if none"),
    "max_sent": _ether("max_val_sent", "largest amount sent, ether; 0 if none"),
    "avg_sent": _ether("avg_val_sent", "mean amount sent, ether; 0 if none"),
    "min_sent_contract": _ether("min_value_sent_to_contract", "smallest amount of `created_contracts`, ether"),
    "max_sent_contract": _ether("max_val_sent_to_contract", "largest amount of `created_contracts`, ether"),
    "avg_sent_contract": _ether("avg_value_sent_to_contract", "mean amount of `created_contracts`, ether"),
    "total_txs": _ether(
        "total_transactions_(including_tnx_to_create_contract)",
        "sent + received + created_contracts",
        "total transactions (including tnx to create contract",
    ),
    "ether_sent": _ether("total_Ether_sent", "sum of the amounts sent, ether"),
    "ether_received": _ether("total_ether_received", "sum of the amounts received, ether"),
    "ether_sent_contracts": _ether("total_ether_sent_contracts", "sum of the amounts of `created_contracts`, ether"),
    "ether_balance": _ether(
        "total_ether_balance", "ether_received - ether_sent - ether_sent_contracts; without fees and internal calls"
    ),
    "erc20_txs": _erc20("Total_ERC20_tnxs", "token transfers: received + sent + those of the account's own token"),
    "erc20_received": _erc20("ERC20_total_Ether_received", f"sum of all tokens received; {_AMOUNT}"),
    "erc20_sent": _erc20("ERC20_total_ether_sent", f"sum of all tokens sent; {_AMOUNT}"),
    "erc20_sent_contract": _erc20(
        "ERC20_total_Ether_sent_contract", f"sum of transfers of the token that the account itself is; {_AMOUNT}"
    ),
    "erc20_uniq_sent_to": _erc20("ERC20_uniq_sent_addr", "different receivers of tokens sent"),
    "erc20_uniq_received_from": _erc20("ERC20_uniq_rec_addr", "different senders of tokens received"),
    # The header has ERC20_uniq_sent_addr twice: readers call the second one by one of these names.
    "erc20_uniq_sent_contract": _erc20(
        "ERC20_uniq_sent_addr_duplicated_0",
        "different receivers of the token that the account itself is (the second column of this name in the file)",
        "ERC20_uniq_sent_addr.1",
        " ERC20 uniq sent addr_duplicated_0",
        " ERC20 uniq sent addr.1",
    ),
    "erc20_uniq_received_contract": _erc20("ERC20_uniq_rec_contract_addr", "different tokens received, by contract"),
    "erc20_min_received": _erc20("ERC20_min_val_rec", f"smallest amount of tokens received; {_AMOUNT}"),
    "erc20_max_received": _erc20("ERC20_max_val_rec", f"largest amount of tokens received; {_AMOUNT}"),
    "erc20_avg_received": _erc20("ERC20_avg_val_rec", f"mean amount of tokens received; {_AMOUNT}"),
    "erc20_min_sent": _erc20("ERC20_min_val_sent", f"smallest amount of tokens sent; {_AMOUNT}"),
    "erc20_max_sent": _erc20("ERC20_max_val_sent", f"largest amount of tokens sent; {_AMOUNT}"),
    "erc20_avg_sent": _erc20("ERC20_avg_val_sent", f"mean amount of tokens sent; {_AMOUNT}"),
    "erc20_tokens_sent": _erc20("ERC20_uniq_sent_token_name", "different names of tokens sent"),
    "erc20_tokens_received": _erc20("ERC20_uniq_rec_token_name", "different names of tokens received"),
}

#: Amounts whose decimals are counted, and how many there can be.
_PLACES = {
    "min_received": 6, "max_received": 6, "avg_received": 6, "min_sent": 6, "max_sent": 6, "avg_sent": 6,
    "erc20_min_received": 6, "erc20_max_received": 6, "ether_sent": 8, "ether_received": 8, "ether_balance": 8,
}  # fmt: skip
# The file was rounded to so many digits on its way; live amounts are looked at in the same way.
_DIGITS = 10
_MOST = max(_PLACES.values())
_POWERS = 10.0 ** np.arange(1, _MOST + 1)
_LIMITS = np.array(list(_PLACES.values()), np.float64)[:, None]
_BLANKS = frozenset(name for name, column in COLUMNS.items() if column.blank is not None)


def derive(raw: Raw) -> dict[str, Floats]:
    """Features of wallet_risk: the raw columns, blanks as 0, and `places_*`. Never NaN where the raw column is not."""
    features = {
        name: np.where(np.isnan(raw[name]), 0.0, raw[name]) if name in _BLANKS else raw[name] for name in COLUMNS
    }
    amounts = np.stack([features[name] for name in _PLACES])
    return features | dict(zip((f"places_{name}" for name in _PLACES), _decimals(amounts), strict=True))


def _decimals(amounts: Floats) -> Floats:
    """How many decimals each amount needs, of those that ten digits leave it: 0.5 has 1, 3 has 0. NaN and infinities
    have none. A row per column of amounts."""
    size = np.abs(np.where(np.isfinite(amounts), amounts, 0.0))
    whole = np.floor(np.log10(np.maximum(size, 1.0))) + 1
    known = np.clip(_DIGITS - whole, 0.0, _LIMITS)
    # The largest is 10^308: scaled only where decimals are left, so nothing overflows.
    scaled = np.rint(np.where(known > 0, size, 0.0) * 10.0**known)
    zeros = (scaled % _POWERS[:, None, None] == 0).sum(axis=0)
    decimals: Floats = np.maximum(known - zeros, 0.0)
    return decimals


SPEC = Spec(
    name="wallet_risk",
    title="Is this account illicit?",
    subject="wallet",
    id_column="Address",
    label_column="FLAG",
    columns=COLUMNS,
    derive=derive,
    # Bins that are fine enough for single amounts, and no regularisation of leaves: either helps here, see docs.
    params={
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 20,
        "feature_fraction": 0.3,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "max_bin": 1023,
        "min_data_in_bin": 1,
    },
    rounds=400,
    bags=2,
)
