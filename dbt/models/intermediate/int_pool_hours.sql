{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='hours',
    indexes=[{'columns': ['pool', 'hour', 'chain'], 'unique': true}, {'columns': ['hour', 'chain']}]
) }}
select
    b.chain,
    b.pool,
    b.hour,
    (array_agg(b.open order by b.minute) filter (where b.open is not null))[1] as open,
    max(b.high) as high,
    min(b.low) as low,
    (array_agg(b.close order by b.minute desc) filter (where b.close is not null))[1] as close,
    sum(b.volume0) as volume0,
    sum(b.volume1) as volume1,
    sum(b.trades)::int8 as trades,
    (array_agg(b.reserve0 order by b.minute desc) filter (where b.reserve0 is not null))[1] as reserve0,
    (array_agg(b.reserve1 order by b.minute desc) filter (where b.reserve1 is not null))[1] as reserve1,
    (array_agg(b.reserve0_f order by b.minute desc) filter (where b.reserve0_f is not null))[1] as reserve0_f,
    (array_agg(b.reserve1_f order by b.minute desc) filter (where b.reserve1_f is not null))[1] as reserve1_f,
    max(b.last_event) as last_event
from {{ ref('pool_bars') }} b
join {{ source('ops', 'mart_batch') }} c on c.chain = b.chain and c.hour = b.hour
group by 1, 2, 3
