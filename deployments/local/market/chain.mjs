// The node: JSON-RPC, accounts with their nonces, and time. Knows nothing of markets.
import { ethers } from 'ethers';

const GWEI = 10n ** 9n;
const MAX_FEE_PER_GAS = 100n * GWEI;

/** Transactions need a gas limit of their own: estimates are made against state that is stale when they are mined. */
export const GAS = {
  deploy: 8_000_000n,
  createPool: 6_000_000n,
  liquidity: 500_000n,
  trade: 450_000n,
  transfer: 100_000n,
  approve: 80_000n,
};

/** Calls a method of the node at `url`; throws when the node says no. */
export function connect(url) {
  let id = 0;
  return async function rpc(method, ...params) {
    const body = JSON.stringify({ jsonrpc: '2.0', id: ++id, method, params });
    const reply = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    const answer = await reply.json();
    if (answer.error) throw new Error(`${method}: ${JSON.stringify(answer.error)}`);
    return answer.result;
  };
}

/** A chain that mines when told to, with blocks `spacing` seconds apart from `start` on. */
export class Chain {
  static async open(url, { start, spacing }) {
    const rpc = connect(url);
    const chain = new Chain(rpc, await rpc('eth_accounts'), start, spacing);
    chain.id = Number(await rpc('eth_chainId'));
    return chain;
  }

  constructor(rpc, accounts, start, spacing) {
    this.rpc = rpc;
    this.accounts = accounts.map((address) => ({ address, nonce: 0 }));
    this.timestamp = start;
    this.spacing = spacing;
    this.transactions = 0;
  }

  /** The timestamp that the block mined next will have. */
  get nextTimestamp() {
    return this.timestamp + this.spacing;
  }

  /** Puts a transaction into the next block, behind the ones before it; returns its hash. `to` null deploys. */
  async send(account, to, data, { value = 0n, gas = GAS.trade, tip = GWEI } = {}) {
    const hash = await this.rpc('eth_sendTransaction', {
      from: account.address,
      to,
      data,
      nonce: ethers.toQuantity(account.nonce),
      value: ethers.toQuantity(value),
      gas: ethers.toQuantity(gas),
      maxFeePerGas: ethers.toQuantity(MAX_FEE_PER_GAS),
      maxPriorityFeePerGas: ethers.toQuantity(tip),
    });
    account.nonce += 1;
    this.transactions += 1;
    return hash;
  }

  /** Deploys code in the next block; returns the address it will have. */
  async deploy(account, data) {
    const address = ethers.getCreateAddress({ from: account.address, nonce: account.nonce });
    await this.send(account, null, data, { gas: GAS.deploy });
    return address;
  }

  /** Asks a contract, as of a block (a number, or the newest). */
  async call(to, data, block = 'latest') {
    return this.rpc('eth_call', { to, data }, block === 'latest' ? block : ethers.toQuantity(block));
  }

  /** Mines the transactions sent so far into one block. */
  async mine() {
    this.timestamp = this.nextTimestamp;
    await this.rpc('evm_setNextBlockTimestamp', this.timestamp);
    await this.rpc('evm_mine');
  }
}
