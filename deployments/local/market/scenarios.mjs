// What a pool's people do beside the trade: the part that a detector has to tell apart.

/** Shares are given in thousandths of what the person holds. */
const ALL = 1000;
const BLOCKS_BETWEEN_DRAINS = 25;
const FIRST_DRAIN_AGE = 10;
const BLOCKS_BETWEEN_BURNS = 3;
const PARTNERS = 2;

const nothing = async () => {};

/** An owner takes out a part that an owner may: 5 to 35 %. */
async function partialExit(market, pool, block) {
  if (block === pool.eventAt) await market.withdraw(pool, pool.developer, market.chance.whole(50, 350));
}

/** Others add liquidity; later the developer takes out 30 % of his own. */
async function manyProviders(market, pool, block) {
  const partners = market.partnersOf(pool, PARTNERS);
  const share = pool.tokens / 20n;
  for (const partner of partners) {
    if (block === pool.tradesFrom) await market.uniswap.transfer(pool.developer, pool.token, partner, share);
    if (block === pool.tradesFrom + 2) await market.uniswap.addLiquidity(partner, pool.token, share, pool.eth / 5n);
  }
  if (block === pool.eventAt) await market.withdraw(pool, pool.developer, 300);
}

/** 8 % of what is left, every five minutes: much in the end, never much at once. */
async function slowDrain(market, pool, block) {
  const age = block - pool.opensAt;
  if (age > FIRST_DRAIN_AGE && age % BLOCKS_BETWEEN_DRAINS === 0) await market.withdraw(pool, pool.developer, 80);
}

/** Rug pull: the developer, who holds all shares, burns them in one transaction. */
async function pullAtOnce(market, pool, block) {
  if (block !== pool.eventAt) return;
  await market.withdraw(pool, pool.developer, ALL, { rug: true });
  pool.diesAt = block;
}

/** Rug pull: more than half first, the rest some blocks later. */
async function pullInSteps(market, pool, block) {
  if (block === pool.eventAt) {
    await market.withdraw(pool, pool.developer, market.chance.whole(500, 700), { rug: true, step: 1 });
  } else if (block === pool.eventAt + BLOCKS_BETWEEN_BURNS) {
    await market.withdraw(pool, pool.developer, ALL, { rug: true, step: 2 });
    pool.diesAt = block;
  }
}

/** Rug pull: the developer kept most of the supply, and sells it into the pool. */
async function dumpTokens(market, pool, block) {
  if (block !== pool.eventAt) return;
  await market.dump(pool, pool.developer);
  pool.diesAt = block;
}

/** kind -> what happens at one block. */
export const SCENARIOS = {
  honest: nothing,
  partial_exit: partialExit,
  many_lps: manyProviders,
  slow_drain: slowDrain,
  rug_burn: pullAtOnce,
  rug_steps: pullInSteps,
  rug_swap: dumpTokens,
};

/** The kinds of a market's pools, in turn. */
export const MIX = [
  'honest', 'rug_burn', 'honest', 'partial_exit', 'rug_swap', 'many_lps',
  'rug_steps', 'honest', 'slow_drain', 'honest', 'partial_exit',
];
