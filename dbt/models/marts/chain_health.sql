with hot as (
    select chain, min(block_number) as first_block, max(block_number) as last_block, count(*) as blocks
    from {{ source('chain', 'blocks') }} group by 1
),
reorgs as (
    select chain, count(*) as reorgs, max(depth) as deepest, max(at) as newest
    from {{ source('ops', 'reorgs') }} where at > now() - interval '24 hours' group by 1
),
letters as (
    select chain, count(*) as dead_letters from {{ source('ops', 'dead_letters') }}
    where seen_at > now() - interval '24 hours' group by 1
),
waiting as (
    select chain, count(*) as hours from {{ source('ops', 'changed_hours') }} group by 1
)
select
    c.chain,
    c.tip_number as newest_block,
    c.tip_ts as newest_block_time,
    c.finalised_number as finalised_block,
    extract(epoch from now() - c.tip_ts)::float8 as lag_s,
    extract(epoch from now() - c.updated_at)::float8 as quiet_s,
    coalesce(h.blocks, 0) as hot_blocks,
    coalesce(h.last_block - h.first_block + 1 - h.blocks, 0) as missing_blocks,
    coalesce(r.reorgs, 0) as reorgs_24h,
    r.deepest as deepest_reorg_24h,
    coalesce(l.dead_letters, 0) as dead_letters_24h,
    coalesce(w.hours, 0) as hours_to_come
from {{ source('ops', 'chains') }} c
left join hot h on h.chain = c.chain
left join reorgs r on r.chain = c.chain
left join letters l on l.chain = c.chain
left join waiting w on w.chain = c.chain
where c.tip_number is not null
