select distinct t.chain, s.token, t.hour, t.trader
from {{ ref('int_pool_traders') }} t
join {{ ref('int_pools') }} p on p.chain = t.chain and p.pool = t.pool
cross join lateral (values (p.token0), (p.token1)) s(token)
