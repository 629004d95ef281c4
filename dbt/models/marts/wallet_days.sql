{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='wallet_days',
    indexes=[{'columns': ['wallet', 'day', 'chain'], 'unique': true}, {'columns': ['day', 'chain']}]
) }}
with keys as materialized ({{ changed_wallet_days() }}),
sent as materialized (
    select
        chain, block_hash, tx_hash, date_trunc('day', ts, 'UTC') as day, {{ hex('from_address') }} as sender,
        {{ hex('to_address') }} as receiver, receipt_status is not distinct from 0 as failed,
        coalesce(receipt_gas_used, 0) as gas_used,
        case when receipt_status is not distinct from 0 then 0 else value end as value,
        coalesce(receipt_gas_used::numeric * coalesce(receipt_effective_gas_price, gas_price), 0) as fee
    from {{ changed_rows('transactions', ['chain', 'ts', 'block_hash', 'tx_hash', 'from_address', 'to_address', 'value',
        'receipt_status', 'receipt_gas_used', 'receipt_effective_gas_price', 'gas_price'], grain='day') }} t
),
transfers as materialized (
    select
        chain, date_trunc('day', ts, 'UTC') as day, {{ hex('token_address') }} as token,
        {{ hex('from_address') }} as sender, {{ hex('to_address') }} as receiver
    from {{ changed_rows('token_transfers', ['chain', 'ts', 'token_address', 'from_address', 'to_address'], grain='day') }} x
),
swaps as materialized (
    select
        t.chain, t.day, t.sender as wallet, p.base, p.quote, p.quote_registered,
        case when p.base = p.token0 then -e.amount0 else -e.amount1 end as base_change,
        case when p.base = p.token0 then -e.amount1 else -e.amount0 end as quote_change
    from {{ changed_rows('pool_events', ['chain', 'ts', 'block_hash', 'tx_hash', 'pool', 'amount0', 'amount1'], grain='day', where="event = 'swap'") }} e
    join sent t on t.chain = e.chain and t.block_hash = e.block_hash and t.tx_hash = e.tx_hash
    left join {{ ref('int_pools') }} p on p.chain = e.chain and p.pool = {{ hex('e.pool') }}
),
moves as (
    select
        chain, day, sender as wallet, 1 as tx_sent, failed::int4 as tx_failed, 0 as tx_received, gas_used, fee,
        value as value_out, 0::numeric as value_in, 0 as transfers_in, 0 as transfers_out, null::text as token,
        null::text as other, 0 as swaps
    from sent
    union all
    select chain, day, receiver, 0, 0, 1, 0, 0, 0, value, 0, 0, null, null, 0 from sent where receiver is not null
    union all
    select chain, day, sender, 0, 0, 0, 0, 0, 0, 0, 0, 1, token, receiver, 0 from transfers
    union all
    select chain, day, receiver, 0, 0, 0, 0, 0, 0, 0, 1, 0, token, sender, 0 from transfers
    union all
    select chain, day, wallet, 0, 0, 0, 0, 0, 0, 0, 0, 0, null, null, 1 from swaps
),
sums as (
    select
        m.chain, m.wallet, m.day, sum(tx_sent) as tx_sent, sum(tx_failed) as tx_failed, sum(tx_received) as tx_received,
        sum(gas_used) as gas_used, sum(fee) as fee, sum(value_out) as value_out, sum(value_in) as value_in,
        sum(transfers_in) as transfers_in, sum(transfers_out) as transfers_out, count(distinct token) as tokens,
        count(distinct other) as counterparties, sum(swaps) as swaps
    from moves m
    join keys k on k.chain = m.chain and k.wallet = m.wallet and k.day = m.day
    group by 1, 2, 3
),
-- What was bought and sold again on the same day, at the day's average prices of this wallet.
round_trips as (
    select
        chain, wallet, day, base, quote, count(*) as swaps,
        sum(base_change) filter (where base_change > 0) as bought,
        -sum(quote_change) filter (where base_change > 0) as paid,
        -sum(base_change) filter (where base_change < 0) as sold,
        sum(quote_change) filter (where base_change < 0) as got
    from swaps where quote_registered
    group by 1, 2, 3, 4, 5
),
profits as (
    select
        r.chain, r.wallet, r.day, r.quote, q.rank, q.symbol, sum(r.swaps) as swaps,
        sum({{ scaled('coalesce(least(r.bought, r.sold) * (r.got / nullif(r.sold, 0) - r.paid / nullif(r.bought, 0)), 0)', 'q.decimals') }}) as profit
    from round_trips r
    join {{ source('ops', 'quote_tokens') }} q on q.chain = r.chain and q.token = r.quote
    group by 1, 2, 3, 4, 5, 6
),
preferred as (
    select distinct on (chain, wallet, day) * from profits order by chain, wallet, day, rank
)
select
    s.chain,
    s.wallet,
    s.day,
    s.tx_sent,
    s.tx_failed,
    s.tx_received,
    s.gas_used,
    s.fee,
    s.value_out,
    s.value_in,
    s.transfers_in,
    s.transfers_out,
    s.tokens,
    s.counterparties,
    s.swaps,
    coalesce(p.swaps, 0)::int8 as swaps_in_estimate,
    p.quote as profit_quote,
    p.symbol as profit_quote_symbol,
    p.profit as profit_estimate
from sums s
left join preferred p on p.chain = s.chain and p.wallet = s.wallet and p.day = s.day
