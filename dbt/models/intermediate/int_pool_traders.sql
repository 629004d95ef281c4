{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='hours',
    indexes=[{'columns': ['pool', 'hour', 'trader', 'chain'], 'unique': true}, {'columns': ['hour', 'chain']}]
) }}
-- Who signed the swap's transaction; while that has not arrived, who got what was bought.
select distinct
    e.chain,
    {{ hex('e.pool') }} as pool,
    date_trunc('hour', e.ts, 'UTC') as hour,
    {{ hex('coalesce(t.from_address, e.recipient)') }} as trader
from {{ changed_rows('pool_events', ['chain', 'ts', 'block_hash', 'tx_hash', 'pool', 'recipient'], where="event = 'swap'") }} e
left join {{ changed_rows('transactions', ['chain', 'ts', 'block_hash', 'tx_hash', 'from_address']) }} t
    on t.block_hash = e.block_hash and t.tx_hash = e.tx_hash and t.chain = e.chain
where coalesce(t.from_address, e.recipient) is not null
