/**
 * Which clients there are on one provider's rails, however many sessions each has.
 */

import type { Logger } from 'pino';
import { Peer } from './peers.js';
import type { ServerRail } from './server-rail.js';

/** The peers of one provider's rails, by their addresses. */
export class PeerTable {
  private readonly peers = new Map<string, Peer>();
  private readonly inserting = new Map<string, Promise<Peer>>();
  private readonly removing = new Map<string, Promise<void>>();

  constructor(
    readonly rails: readonly ServerRail[],
    private readonly mappingId: number,
    private readonly logger: Logger,
  ) {}

  /** A session begins to use a client's addresses. @throws FabricError when one cannot be inserted */
  async acquire(addresses: readonly Buffer[]): Promise<Peer> {
    const name = addresses.map((address) => `${address.length}:${address.toString('latin1')}`).join('');
    let inserting = this.inserting.get(name);
    if (inserting === undefined) {
      // Counted in this turn: its last other session may end in the next.
      const existing = this.peers.get(name);
      if (existing !== undefined) return use(existing);
      inserting = this.insert(name, addresses);
      this.inserting.set(name, inserting);
    }
    return use(await inserting);
  }

  /** A session has ended: with the last one the peer goes. Never rejects. */
  async release(peer: Peer): Promise<void> {
    peer.references -= 1;
    if (peer.references > 0) return;
    if (this.peers.get(peer.name) === peer) this.peers.delete(peer.name);
    const removing = peer.leave();
    this.removing.set(peer.name, removing);
    await removing;
    if (this.removing.get(peer.name) === removing) this.removing.delete(peer.name);
  }

  /** A rail of this table has been replaced. */
  async moved(serverRail: ServerRail): Promise<void> {
    await Promise.all([...this.peers.values()].map((peer) => peer.moved(serverRail)));
  }

  private async insert(name: string, addresses: readonly Buffer[]): Promise<Peer> {
    try {
      // Removing an address ends every connection to it: one that is just being removed is waited for.
      await this.removing.get(name);
      const peer = await Peer.insert(name, addresses, this.rails, this.mappingId, this.logger);
      this.peers.set(name, peer);
      // A rail that was replaced meanwhile did not find it in the table.
      await Promise.all(this.rails.filter((rail) => peer.isBehind(rail)).map((rail) => peer.moved(rail)));
      return peer;
    } finally {
      this.inserting.delete(name);
    }
  }
}

function use(peer: Peer): Peer {
  peer.references += 1;
  return peer;
}
