{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='pool_hours',
    indexes=[{'columns': ['pool', 'hour', 'chain'], 'unique': true}, {'columns': ['hour', 'chain']}]
) }}
with keys as materialized (
    select distinct h.chain, h.pool, h.hour
    from ({{ changed_pools(this if is_incremental() else none) }}) c
    join (
        select chain, pool, hour from {{ ref('int_pool_hours') }}
        union all select chain, pool, hour from {{ ref('int_share_flows') }}
    ) h on h.chain = c.chain and h.pool = c.pool and h.hour >= c.since
)
select
    k.chain,
    k.pool,
    k.hour,
    p.protocol,
    p.token0,
    p.token1,
    r.reserve0,
    r.reserve1,
    r.reserve0_f,
    r.reserve1_f,
    s.shares,
    s.holders,
    (s.largest / s.shares)::float8 as largest_share,
    (s.three_largest / s.shares)::float8 as top3_share
from keys k
join {{ ref('int_pools') }} p on p.chain = k.chain and p.pool = k.pool
left join lateral (
    select h.reserve0, h.reserve1, h.reserve0_f, h.reserve1_f from {{ ref('int_pool_hours') }} h
    where h.chain = k.chain and h.pool = k.pool and h.hour <= k.hour and h.reserve0_f is not null
    order by h.hour desc limit 1
) r on true
left join lateral (
    select
        nullif(sum(held), 0) as shares, count(*) as holders, max(held) as largest,
        sum(held) filter (where place <= 3) as three_largest
    from (
        select sum(f.change) as held, row_number() over (order by sum(f.change) desc) as place
        from {{ ref('int_share_flows') }} f
        where f.chain = k.chain and f.pool = k.pool and f.hour <= k.hour
        group by f.holder having sum(f.change) > 0
    ) h
    where p.protocol = 'uniswap_v2' having p.protocol = 'uniswap_v2'
) s on true
