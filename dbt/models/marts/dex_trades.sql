-- Bought and sold as Spellbook has them: what the pool paid out is bought, what it got is sold.
with swaps as (
    select
        e.chain, e.protocol, e.ts, e.block_number, e.tx_hash, e.log_index, e.recipient, t.from_address, t.to_address,
        p.pool, p.token0, p.token1, p.quote,
        case when e.amount0_out is not null then e.amount0_out else greatest(-e.amount0, 0) end as out0,
        case when e.amount1_out is not null then e.amount1_out else greatest(-e.amount1, 0) end as out1,
        case when e.amount0_out is not null then e.amount0 + e.amount0_out else greatest(e.amount0, 0) end as in0,
        case when e.amount1_out is not null then e.amount1 + e.amount1_out else greatest(e.amount1, 0) end as in1
    from {{ source('chain', 'pool_events') }} e
    join {{ ref('int_pools') }} p on p.chain = e.chain and p.pool = {{ hex('e.pool') }}
    left join {{ source('chain', 'transactions') }} t
        on t.block_hash = e.block_hash and t.tx_hash = e.tx_hash and t.chain = e.chain and t.ts = e.ts
    where e.event = 'swap'
),
sided as (
    select
        s.*,
        case when s.out0 = 0 then s.token1 else s.token0 end as bought,
        case when s.out0 = 0 then s.out1 else s.out0 end as bought_raw,
        case when s.in0 = 0 or s.out1 = 0 then s.token1 else s.token0 end as sold,
        case when s.in0 = 0 or s.out1 = 0 then s.in1 else s.in0 end as sold_raw
    from swaps s
),
measured as (
    select
        s.*, b.symbol as bought_symbol, d.symbol as sold_symbol, b.stable as bought_stable, d.stable as sold_stable,
        {{ scaled('s.bought_raw', 'b.decimals') }} as bought_amount,
        {{ scaled('s.sold_raw', 'd.decimals') }} as sold_amount
    from sided s
    {{ described('b', 's.chain', 's.bought') }}
    {{ described('d', 's.chain', 's.sold') }}
)
select
    m.chain as blockchain,
    split_part(m.protocol, '_', 1) as project,
    substr(split_part(m.protocol, '_', 2), 2) as version,
    date_trunc('month', m.ts, 'UTC')::date as block_month,
    (m.ts at time zone 'UTC')::date as block_date,
    m.ts as block_time,
    m.block_number,
    m.bought_symbol as token_bought_symbol,
    m.sold_symbol as token_sold_symbol,
    case when m.bought_symbol < m.sold_symbol then m.bought_symbol || '-' || m.sold_symbol
        else m.sold_symbol || '-' || m.bought_symbol end as token_pair,
    m.bought_amount as token_bought_amount,
    m.sold_amount as token_sold_amount,
    m.bought_raw as token_bought_amount_raw,
    m.sold_raw as token_sold_amount_raw,
    case when m.bought_stable then m.bought_amount when m.sold_stable then m.sold_amount
        else case when m.bought = m.quote then m.bought_amount else m.sold_amount end * u.close end as amount_usd,
    m.bought as token_bought_address,
    m.sold as token_sold_address,
    {{ hex('m.recipient') }} as taker,
    m.pool as maker,
    m.pool as project_contract_address,
    {{ hex('m.tx_hash') }} as tx_hash,
    {{ hex('m.from_address') }} as tx_from,
    {{ hex('m.to_address') }} as tx_to,
    m.log_index as evt_index
from measured m
left join lateral (
    select p.close from {{ ref('token_performance') }} p
    join {{ source('ops', 'quote_tokens') }} q on q.chain = p.chain and q.token = p.quote and q.stable
    where p.chain = m.chain and p.token = m.quote and p.period = '1h'
        and p.period_start = date_trunc('hour', m.ts, 'UTC')
) u on true
