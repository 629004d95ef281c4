// The published contracts, and the calls the market makes to them.
import { createRequire } from 'node:module';
import { ethers } from 'ethers';
import { GAS } from './chain.mjs';

const FAR_FUTURE = 99_999_999_999n;
const ANY_AMOUNT = 0n;
const LONG_AGO = 1n;
export const UNIT = 10n ** 18n;
export const TOKEN_SUPPLY = 1_000_000n * UNIT;

const load = createRequire(import.meta.url);
const artifact = (name, contract) => load(`@uniswap/${name}/build/${contract}.json`);
const ARTIFACTS = {
  factory: artifact('v2-core', 'UniswapV2Factory'),
  pair: artifact('v2-core', 'UniswapV2Pair'),
  router: artifact('v2-periphery', 'UniswapV2Router02'),
  weth: artifact('v2-periphery', 'WETH9'),
  token: artifact('v2-periphery', 'ERC20'),
};
const ABI = Object.fromEntries(Object.entries(ARTIFACTS).map(([name, { abi }]) => [name, new ethers.Interface(abi)]));

/** What to deploy for a contract with these arguments of its constructor. */
function creation(name, types = [], values = []) {
  const { bytecode } = ARTIFACTS[name];
  const code = bytecode.startsWith('0x') ? bytecode : `0x${bytecode}`;
  return ethers.concat([code, ethers.AbiCoder.defaultAbiCoder().encode(types, values)]);
}

/** One Uniswap V2 on one chain. What it sends lands in the next block; senders return the transaction's hash. */
export class Uniswap {
  /** Deploys factory, WETH and router. In this order, from anvil's first account, their addresses never change. */
  static async deploy(chain, owner) {
    const factory = await chain.deploy(owner, creation('factory', ['address'], [owner.address]));
    const weth = await chain.deploy(owner, creation('weth'));
    const router = await chain.deploy(owner, creation('router', ['address', 'address'], [factory, weth]));
    await chain.mine();
    return new Uniswap(chain, { factory, weth, router });
  }

  constructor(chain, addresses) {
    this.chain = chain;
    Object.assign(this, addresses);
    this.approved = new Set();
  }

  deployToken(owner) {
    return this.chain.deploy(owner, creation('token', ['uint256'], [TOKEN_SUPPLY]));
  }

  async pairOf(token) {
    return this.#read('factory', this.factory, 'getPair', [token, this.weth]);
  }

  /** What an account holds of a token, or of a pair's shares. */
  async balance(token, account) {
    return this.#read('token', token, 'balanceOf', [account.address]);
  }

  /** The WETH in a pool as of a block. */
  async wethReserve(pair, token, block) {
    const [, weth] = await this.reserves(pair, token, block);
    return weth;
  }

  /** The tokens and the WETH in a pool as of a block. */
  async reserves(pair, token, block) {
    const [first, second] = await this.#read('pair', pair, 'getReserves', [], block);
    return BigInt(token) < BigInt(this.weth) ? [first, second] : [second, first];
  }

  transfer(account, token, to, amount) {
    return this.#send(account, 'token', token, 'transfer', [to.address, amount], { gas: GAS.transfer });
  }

  async addLiquidity(account, token, tokens, eth, { createsPool = false } = {}) {
    await this.#approve(account, token);
    const gas = createsPool ? GAS.createPool : GAS.liquidity;
    const values = [token, tokens, ANY_AMOUNT, ANY_AMOUNT, account.address, FAR_FUTURE];
    return this.#send(account, 'router', this.router, 'addLiquidityETH', values, { value: eth, gas });
  }

  async removeLiquidity(account, token, pair, shares) {
    await this.#approve(account, pair);
    const values = [token, shares, ANY_AMOUNT, ANY_AMOUNT, account.address, FAR_FUTURE];
    return this.#send(account, 'router', this.router, 'removeLiquidityETH', values, { gas: GAS.liquidity });
  }

  buy(account, token, eth, { tip, deadline = FAR_FUTURE } = {}) {
    const values = [ANY_AMOUNT, [this.weth, token], account.address, deadline];
    return this.#send(account, 'router', this.router, 'swapExactETHForTokens', values, { value: eth, tip });
  }

  /** A purchase past its deadline: it is mined, and reverts. */
  buyTooLate(account, token, eth) {
    return this.buy(account, token, eth, { deadline: LONG_AGO });
  }

  async sell(account, token, amount, { tip } = {}) {
    await this.#approve(account, token);
    const values = [amount, ANY_AMOUNT, [token, this.weth], account.address, FAR_FUTURE];
    return this.#send(account, 'router', this.router, 'swapExactTokensForETH', values, { tip });
  }

  /** Sends tokens to a pair without trading for them. */
  donate(account, token, pair, amount) {
    return this.#send(account, 'token', token, 'transfer', [pair, amount], { gas: GAS.transfer });
  }

  /** Makes what was sent to a pair its own (`sync`), or pays it out again (`skim`). */
  settle(account, pair, { keep }) {
    const [method, values] = keep ? ['sync', []] : ['skim', [account.address]];
    return this.#send(account, 'pair', pair, method, values, { gas: GAS.trade });
  }

  /** Lets the router spend an account's tokens; once is enough. */
  async #approve(account, token) {
    const permission = `${account.address} ${token}`;
    if (this.approved.has(permission)) return;
    this.approved.add(permission);
    await this.#send(account, 'token', token, 'approve', [this.router, ethers.MaxUint256], { gas: GAS.approve });
  }

  #send(account, contract, address, method, values, options) {
    return this.chain.send(account, address, ABI[contract].encodeFunctionData(method, values), options);
  }

  async #read(contract, address, method, values, block = 'latest') {
    const answer = await this.chain.call(address, ABI[contract].encodeFunctionData(method, values), block);
    const decoded = ABI[contract].decodeFunctionResult(method, answer);
    return decoded.length === 1 ? decoded[0] : decoded;
  }
}
