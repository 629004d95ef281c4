{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='wallet_days',
    indexes=[{'columns': ['wallet', 'day', 'token', 'chain'], 'unique': true}, {'columns': ['day', 'chain']}]
) }}
with keys as materialized ({{ changed_wallet_days() }}),
transfers as materialized (
    select
        chain, date_trunc('day', ts, 'UTC') as day, ts, {{ hex('token_address') }} as token,
        {{ hex('from_address') }} as sender, {{ hex('to_address') }} as receiver, value
    from {{ changed_rows('token_transfers', ['chain', 'ts', 'token_address', 'from_address', 'to_address', 'value'], grain='day') }} x
),
moves as (
    select chain, day, ts, token, sender as wallet, receiver as other, 0::numeric as came, value as went, false as inward
    from transfers
    union all
    select chain, day, ts, token, receiver, sender, value, 0, true from transfers
)
select
    m.chain,
    m.wallet,
    m.day,
    m.token,
    sum(m.came) as amount_in,
    sum(m.went) as amount_out,
    sum(m.came)::float8 as amount_in_f,
    sum(m.went)::float8 as amount_out_f,
    count(*) filter (where m.inward) as transfers_in,
    count(*) filter (where not m.inward) as transfers_out,
    count(distinct m.other) as counterparties,
    min(m.ts) as first_seen,
    max(m.ts) as last_seen
from moves m
join keys k on k.chain = m.chain and k.wallet = m.wallet and k.day = m.day
group by 1, 2, 3, 4
