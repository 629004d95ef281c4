{{ config(
    materialized='incremental', incremental_strategy='changed', changed_keys='token_periods',
    indexes=[{'columns': ['token', 'period', 'period_start', 'chain'], 'unique': true}]
) }}
with keys as materialized (
    select
        k.chain, k.token, k.period, k.period_start,
        k.period_start + case k.period when '1h' then interval '1 hour' when '24h' then interval '1 day'
            else interval '7 days' end as period_end
    from ({{ changed_token_periods(this if is_incremental() else none) }}) k
),
pools as materialized (
    select
        k.chain, k.token, k.period, k.period_start, k.period_end, h.pool, h.other, h.priced, h.quote_registered,
        (array_agg(h.open order by h.hour) filter (where h.open is not null))[1] as open,
        max(h.high) as high,
        min(h.low) as low,
        (array_agg(h.close order by h.hour desc) filter (where h.close is not null))[1] as close,
        sum(h.volume) as volume,
        sum(h.volume_other) as volume_other,
        sum(h.trades) as trades,
        max(h.last_event) as last_event
    from keys k
    join {{ ref('int_token_hours') }} h
        on h.chain = k.chain and h.token = k.token and h.hour >= k.period_start and h.hour < k.period_end
    group by 1, 2, 3, 4, 5, 6, 7, 8, 9
),
-- Where the token has its price: as in the search documents, but of this period's trades.
main as materialized (
    select distinct on (p.chain, p.token, p.period, p.period_start) p.*
    from pools p where p.priced
    order by p.chain, p.token, p.period, p.period_start, p.quote_registered desc, p.trades desc, p.last_event desc,
        p.pool
),
totals as (
    select
        p.chain, p.token, p.period, p.period_start, p.period_end,
        sum(p.volume) as volume_raw,
        sum(p.trades)::int8 as trades,
        sum(p.volume) filter (where p.priced and p.other = m.other) as volume_base,
        sum(p.volume_other) filter (where p.priced and p.other = m.other) as volume_quote
    from pools p
    left join main m on m.chain = p.chain and m.token = p.token and m.period = p.period
        and m.period_start = p.period_start
    group by 1, 2, 3, 4, 5
)
select
    t.chain,
    t.token,
    d.symbol,
    t.period,
    t.period_start,
    t.period_end,
    m.pool as main_pool,
    m.other as quote,
    q.symbol as quote_symbol,
    m.open * u.price_unit as open,
    m.high * u.price_unit as high,
    m.low * u.price_unit as low,
    m.close * u.price_unit as close,
    (t.volume_quote / nullif(t.volume_base, 0))::float8 * u.price_unit as vwap,
    t.volume_raw,
    {{ scaled('t.volume_raw', 'd.decimals') }} as volume,
    {{ scaled('t.volume_quote', 'q.decimals') }} as volume_quote,
    t.trades,
    (select count(distinct w.trader) from {{ ref('int_token_traders') }} w
        where w.chain = t.chain and w.token = t.token and w.hour >= t.period_start and w.hour < t.period_end
    ) as unique_traders,
    2 * l.reserve * 10::float8 ^ -q.decimals as liquidity,
    m.close / nullif(coalesce(b.close, m.open), 0) - 1 as change
from totals t
left join main m on m.chain = t.chain and m.token = t.token and m.period = t.period and m.period_start = t.period_start
{{ described('d', 't.chain', 't.token') }}
{{ described('q', 'm.chain', 'm.other') }}
cross join lateral (select 10::float8 ^ -(q.decimals - d.decimals) as price_unit) u
-- The newest price before the period, as far back as the search documents look.
left join lateral (
    select h.close from {{ ref('int_token_hours') }} h
    where h.chain = m.chain and h.token = m.token and h.pool = m.pool and h.hour < m.period_start
        and h.hour >= m.period_start - interval '30 days' and h.close is not null
    order by h.hour desc limit 1
) b on true
left join lateral (
    select sum(reserve_other) as reserve from (
        select distinct on (h.pool) h.reserve_other from {{ ref('int_token_hours') }} h
        where h.chain = m.chain and h.token = m.token and h.other = m.other and h.priced and h.hour < m.period_end
            and h.hour >= m.period_end - interval '30 days' and h.reserve_other is not null
        order by h.pool, h.hour desc
    ) r
) l on true
