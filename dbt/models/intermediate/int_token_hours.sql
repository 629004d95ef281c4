-- Each pool's hour as each of its two tokens sees it: prices are of the token in the other one, in smallest units.
select
    h.chain, p.token0 as token, h.hour, h.pool, p.token1 as other, p.base = p.token0 as priced, p.quote_registered,
    h.open, h.high, h.low, h.close, h.volume0 as volume, h.volume1 as volume_other, h.trades,
    h.reserve1_f as reserve_other, h.last_event
from {{ ref('int_pool_hours') }} h
join {{ ref('int_pools') }} p on p.chain = h.chain and p.pool = h.pool
union all
select
    h.chain, p.token1, h.hour, h.pool, p.token0, p.base = p.token1, p.quote_registered,
    1 / nullif(h.open, 0), 1 / nullif(h.low, 0), 1 / nullif(h.high, 0), 1 / nullif(h.close, 0), h.volume1, h.volume0,
    h.trades, h.reserve0_f, h.last_event
from {{ ref('int_pool_hours') }} h
join {{ ref('int_pools') }} p on p.chain = h.chain and p.pool = h.pool
