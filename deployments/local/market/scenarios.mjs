// What a pool's people do beside the trade: the part that a detector has to tell apart.
import { UNIT } from './uniswap.mjs';

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

// --- kinds beyond the recorded market's, for judging detectors on what they were not made for

/** Little enough of a token's supply that its developer can give others many times as much. */
const few = (chance) => BigInt(chance.whole(60, 150)) * 1000n * UNIT;

/** What a pool of a kind has of its own: further fields, or others than a plan's usual ones. */
export const PLANS = {
  rug_gradual: (_, chance) => ({ steps: chance.whole(3, 6), blocksBetween: chance.whole(2, 8) }),
  rug_after_exit: (_, chance) => ({ blocksBetween: chance.whole(15, 60) }),
  rug_majority: (_, chance) => ({ tokens: few(chance), othersShare: chance.whole(200, 400) }),
  rug_dump_wallets: (_, chance) => ({
    tokens: few(chance),
    steps: chance.whole(3, 6),
    blocksBetween: chance.whole(1, 4),
  }),
  rug_young: ({ opensAt }, chance) => ({ eventAt: opensAt + chance.whole(3, 8) }),
  rug_churn: (_, chance) => ({ tokens: few(chance), blocksBetween: chance.whole(15, 30) }),
  whale: (_, chance) => ({ blocksBetween: chance.whole(1, 100), size: BigInt(chance.whole(10, 40)) }),
  migration: (_, chance) => ({ blocksBetween: chance.whole(5, 20) }),
  just_in_time: (_, chance) => ({ tokens: few(chance), blocksBetween: chance.whole(8, 30) }),
  provider_leaves: (_, chance) => ({
    tokens: few(chance),
    blocksBetween: chance.whole(20, 80),
    size: BigInt(chance.whole(10, 40)),
  }),
  heavy: () => ({ heat: 1, extraTrades: 3 }),
  heavy_rug: () => ({ heat: 1, extraTrades: 3 }),
  donations: (_, chance) => ({ blocksBetween: chance.whole(10, 40) }),
};

/** Every so many blocks from a pool's first trade on. */
const everyFew = (pool, block) => block > pool.tradesFrom && (block - pool.tradesFrom) % pool.blocksBetween === 0;

/** Thousandths of what is left that take equal parts of the whole in so many steps. */
const equalPart = (step, steps) => Math.ceil(ALL / (steps - step));

/** Rug pull in three to six equal steps, minutes from the first to the last. */
async function pullGradually(market, pool, block) {
  const step = (block - pool.eventAt) / pool.blocksBetween;
  if (!Number.isInteger(step) || step < 0 || step >= pool.steps) return;
  const thousandths = step === pool.steps - 1 ? ALL : equalPart(step, pool.steps);
  await market.withdraw(pool, pool.developer, thousandths, { rug: true, step: step + 1 });
  if (step === pool.steps - 1) pool.diesAt = block;
}

/** Rug pull: an exit like an honest one, and later all the rest. */
async function pullAfterExit(market, pool, block) {
  if (block === pool.eventAt) {
    await market.withdraw(pool, pool.developer, market.chance.whole(100, 350));
  } else if (block === pool.eventAt + pool.blocksBetween) {
    await market.withdraw(pool, pool.developer, ALL, { rug: true });
    pool.diesAt = block;
  }
}

/** Rug pull by a developer beside whom another holds 20 to 40 % of the shares, and keeps them. */
async function pullMajority(market, pool, block) {
  const [partner] = market.partnersOf(pool, 1);
  const eth = (pool.eth * BigInt(pool.othersShare)) / BigInt(ALL - pool.othersShare);
  if (block === pool.tradesFrom) await market.join(pool, partner, { eth });
  if (block !== pool.eventAt) return;
  await market.withdraw(pool, pool.developer, ALL, { rug: true });
  pool.diesAt = block;
}

/** Rug pull: what the developer kept is sold by several wallets, one after the other. */
async function dumpThroughWallets(market, pool, block) {
  const sellers = market.partnersOf(pool, pool.steps);
  if (block === pool.tradesFrom) {
    const kept = await market.uniswap.balance(pool.token, pool.developer);
    const share = kept / BigInt(pool.steps);
    for (const seller of sellers) await market.uniswap.transfer(pool.developer, pool.token, seller, share);
  }
  const step = (block - pool.eventAt) / pool.blocksBetween;
  if (!Number.isInteger(step) || step < 0 || step >= pool.steps) return;
  await market.dump(pool, sellers[step], { step: step + 1 });
  if (step === pool.steps - 1) pool.diesAt = block;
}

/** A provider comes with as much as there is and leaves again, again and again; in the end it is a rug pull. */
async function pullAfterChurn(market, pool, block) {
  if (block < pool.eventAt && everyFew(pool, block)) await comeOrGo(market, pool);
  await pullAtOnce(market, pool, block);
}

/** A trader buys one to four times the pool's ether worth, and later sells it back. */
async function whaleTrades(market, pool, block) {
  const [whale] = market.partnersOf(pool, 1);
  if (block === pool.eventAt) await market.uniswap.buy(whale, pool.token, (pool.eth * pool.size) / 10n);
  if (block === pool.eventAt + pool.blocksBetween) await market.dump(pool, whale, { rug: false });
}

/** An owner takes out more than most do: 35 to 45 %. */
async function largeExit(market, pool, block) {
  if (block === pool.eventAt) await market.withdraw(pool, pool.developer, market.chance.whole(350, 450));
}

/** All is taken out, and put back minutes later; meanwhile nobody trades. */
async function migrate(market, pool, block) {
  if (block === pool.eventAt) {
    await market.withdraw(pool, pool.developer, ALL);
    pool.restsUntil = block + pool.blocksBetween;
  } else if (block === pool.restsUntil) {
    await market.uniswap.addLiquidity(pool.developer, pool.token, pool.tokens, pool.eth);
  }
}

/** Again and again, a provider adds three times the pool for a block or two. */
async function justInTime(market, pool, block) {
  const [provider] = market.partnersOf(pool, 1);
  if (block < pool.eventAt) return;
  const since = (block - pool.eventAt) % pool.blocksBetween;
  if (since === 0) await market.join(pool, provider, { eth: 3n * pool.eth });
  if (since === 2) await market.withdraw(pool, provider, ALL);
}

/** A provider brings one to four times what is there, and leaves as he came. */
async function providerLeaves(market, pool, block) {
  const [provider] = market.partnersOf(pool, 1);
  if (block === pool.eventAt) await market.join(pool, provider, { eth: (pool.eth * pool.size) / 10n });
  if (block === pool.eventAt + pool.blocksBetween) await market.withdraw(pool, provider, ALL);
}

/** A provider who is in leaves, one who is out comes. */
async function comeOrGo(market, pool) {
  const [provider] = market.partnersOf(pool, 1);
  if (pool.providing) await market.withdraw(pool, provider, ALL);
  else await market.join(pool, provider, { eth: pool.eth });
  pool.providing = !pool.providing;
}

/** 10 % of the shares that are left, every five minutes. */
async function slowRug(market, pool, block) {
  const age = block - pool.opensAt;
  if (age > FIRST_DRAIN_AGE && age % BLOCKS_BETWEEN_DRAINS === 0) await market.withdraw(pool, pool.developer, 100);
}

/** Tokens are sent to the pool without a trade, and are taken out again or kept. */
async function donations(market, pool, block) {
  if (!everyFew(pool, block)) return;
  const kept = await market.uniswap.balance(pool.token, pool.developer);
  await market.uniswap.donate(pool.developer, pool.token, pool.pair, kept / 50n);
  await market.uniswap.settle(pool.developer, pool.pair, { keep: market.chance.happens(0.5) });
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
  rug_gradual: pullGradually,
  rug_after_exit: pullAfterExit,
  rug_majority: pullMajority,
  rug_dump_wallets: dumpThroughWallets,
  rug_young: pullAtOnce,
  rug_churn: pullAfterChurn,
  whale: whaleTrades,
  large_exit: largeExit,
  migration: migrate,
  just_in_time: justInTime,
  provider_leaves: providerLeaves,
  slow_rug: slowRug,
  heavy: nothing,
  heavy_rug: pullAtOnce,
  donations,
};

/** The kinds of a market's pools, in turn. */
export const MIXES = {
  default: [
    'honest', 'rug_burn', 'honest', 'partial_exit', 'rug_swap', 'many_lps',
    'rug_steps', 'honest', 'slow_drain', 'honest', 'partial_exit',
  ],
  /** Pulls that take their time, or do not take all. */
  sly: [
    'rug_gradual', 'honest', 'rug_after_exit', 'partial_exit', 'rug_majority', 'large_exit',
    'rug_dump_wallets', 'slow_rug', 'rug_young', 'honest', 'rug_churn',
  ],
  /** Much that looks like a pull and is none. */
  noisy: [
    'whale', 'large_exit', 'just_in_time', 'rug_burn', 'provider_leaves', 'slow_rug',
    'heavy', 'donations', 'heavy_rug', 'honest', 'rug_swap',
  ],
  /** Liquidity that leaves whole and comes back: at the moment it leaves, nothing tells it from a pull. */
  moving: ['migration', 'honest', 'rug_burn', 'large_exit', 'rug_gradual', 'many_lps'],
};
