{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='hours',
    indexes=[{'columns': ['pool', 'hour', 'holder', 'chain'], 'unique': true}, {'columns': ['hour', 'chain']}]
) }}
-- Shares are ERC-20 transfers of the pool itself. Nobody holds what lies at the zero address.
select
    chain, pool, hour, holder, sum(amount) as change
from (
    select
        e.chain, {{ hex('e.pool') }} as pool, date_trunc('hour', e.ts, 'UTC') as hour,
        {{ hex('m.holder') }} as holder, m.amount
    from {{ changed_rows('pool_events', ['chain', 'ts', 'pool', 'sender', 'recipient', 'amount0'], where="event = 'transfer'") }} e
    join {{ ref('int_pools') }} p on p.pool = {{ hex('e.pool') }} and p.chain = e.chain and p.protocol = 'uniswap_v2'
    cross join lateral (values (e.sender, -e.amount0), (e.recipient, e.amount0)) m(holder, amount)
) moves
where holder <> '0x0000000000000000000000000000000000000000'
group by 1, 2, 3, 4
