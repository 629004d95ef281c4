{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='hours',
    indexes=[{'columns': ['pool', 'minute', 'chain'], 'unique': true}, {'columns': ['hour', 'chain']}]
) }}
-- The prices and virtual reserves of the search rollups (rollup.pool_candles).
with events as (
    select
        chain, pool, event, ts, amount0, amount1, tick, liquidity, reserve0, reserve1, reserve0_f, reserve1_f,
        (block_number << 24) + log_index as place,
        case when sqrt_price_x96 > 0 then (sqrt_price_x96 / 79228162514264337593543950336)::float8 end as root
    from {{ changed_rows('pool_events',
        ['chain', 'pool', 'event', 'ts', 'amount0', 'amount1', 'tick', 'liquidity', 'reserve0', 'reserve1',
         'reserve0_f', 'reserve1_f', 'block_number', 'log_index', 'sqrt_price_x96'],
        where="event in ('swap', 'sync', 'mint', 'burn', 'initialize')") }} e
),
priced as (
    select
        *,
        case when event = 'sync' then reserve0_f when event = 'swap' and root > 0 then liquidity::float8 / root end
            as depth0,
        case when event = 'sync' then reserve1_f when event = 'swap' and root > 0 then liquidity::float8 * root end
            as depth1,
        case when event = 'sync' and reserve0_f > 0 and reserve1_f > 0 then reserve1_f / reserve0_f
            else root * root end as price
    from events
)
select
    chain,
    {{ hex('pool') }} as pool,
    date_trunc('hour', ts, 'UTC') as hour,
    date_trunc('minute', ts, 'UTC') as minute,
    (array_agg(price order by place) filter (where price is not null))[1] as open,
    max(price) as high,
    min(price) as low,
    (array_agg(price order by place desc) filter (where price is not null))[1] as close,
    coalesce(sum(abs(amount0)) filter (where event = 'swap'), 0) as volume0,
    coalesce(sum(abs(amount1)) filter (where event = 'swap'), 0) as volume1,
    coalesce(sum(amount0) filter (where event = 'swap'), 0) as net_amount0,
    coalesce(sum(amount1) filter (where event = 'swap'), 0) as net_amount1,
    coalesce(sum(greatest(amount0, 0)) filter (where event = 'swap'), 0) as in_amount0,
    coalesce(sum(greatest(amount1, 0)) filter (where event = 'swap'), 0) as in_amount1,
    count(*) filter (where event = 'swap') as trades,
    count(*) filter (where event = 'mint') as mints,
    count(*) filter (where event = 'burn') as burns,
    (array_agg(tick order by place) filter (where event = 'swap' and tick is not null))[1] as open_tick,
    max(tick) filter (where event = 'swap') as high_tick,
    min(tick) filter (where event = 'swap') as low_tick,
    (array_agg(tick order by place desc) filter (where event = 'swap' and tick is not null))[1] as close_tick,
    (array_agg(liquidity order by place desc) filter (where event = 'swap' and liquidity is not null))[1] as liquidity,
    (array_agg(reserve0 order by place desc) filter (where reserve0 is not null))[1] as reserve0,
    (array_agg(reserve1 order by place desc) filter (where reserve1 is not null))[1] as reserve1,
    (array_agg(depth0 order by place desc) filter (where depth0 is not null))[1] as reserve0_f,
    (array_agg(depth1 order by place desc) filter (where depth1 is not null))[1] as reserve1_f,
    max(ts) as last_event
from priced
group by 1, 2, 3, 4
