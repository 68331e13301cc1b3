/**
 * The last resort for memory that nothing else proves safe, and for a rail that has failed: another endpoint takes its
 * place, the clients move, and the old one is closed.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Fabric, Rail } from '../fabric/index.js';
import { toFabricKvError } from '../protocol/errors.js';
import type { ServerCounters } from './counters.js';
import type { PeerTable } from './peer-table.js';
import type { ServerRail } from './server-rail.js';
import type { SessionWindows } from './session-windows.js';

/** A rail's place gets another endpoint at most this often. */
const INTERVAL_MS_MIN = 60_000;

/** What is in flight on the old endpoint is given this long. */
const DRAIN_MS = 1000;

/** What a replacement needs of the data plane. */
export interface ReplacementParts {
  readonly fabric: Fabric;
  /** Makes a new endpoint able to read the arena. */
  readonly registerArena: (rail: Rail) => Promise<void>;
  /** The windows of all sessions. */
  readonly windows: ReadonlySet<SessionWindows>;
  readonly counters: ServerCounters;
  readonly logger: Logger;
  /** For tests; milliseconds, as in {@link DRAIN_MS}. */
  readonly drainMs?: number;
}

/** Gives rails' places other endpoints. */
export class RailReplacement {
  private readonly lastMs = new Map<ServerRail, number>();
  /** The rail that the fabric has in a place; another than the place's own after a replacement that failed half-way. */
  private readonly inFabric = new Map<ServerRail, Rail>();
  private readonly running = new Set<Promise<void>>();
  private stopped = false;

  constructor(private readonly parts: ReplacementParts) {}

  /** Replaces a rail's endpoint, unless that was done less than a minute ago. @returns whether it begins */
  request(table: PeerTable, serverRail: ServerRail, reason: string): boolean {
    const nowMs = performance.now();
    const lastMs = this.lastMs.get(serverRail) ?? Number.NEGATIVE_INFINITY;
    if (this.stopped || nowMs - lastMs < INTERVAL_MS_MIN) return false;
    this.lastMs.set(serverRail, nowMs);
    const { provider } = serverRail.rail.info;
    this.parts.logger.warn({ provider, rail: serverRail.index, reason }, 'A rail is opened anew');
    const running = this.replace(table, serverRail).catch((error: unknown) =>
      this.parts.logger.error(
        { err: toFabricKvError(error), provider, rail: serverRail.index },
        'A rail could not be opened anew',
      ),
    );
    this.running.add(running);
    void running.then(() => this.running.delete(running));
    return true;
  }

  /** Nothing is replaced any more; resolves when what was begun is over. */
  async stop(): Promise<void> {
    this.stopped = true;
    await Promise.all(this.running);
  }

  private async replace(table: PeerTable, serverRail: ServerRail): Promise<void> {
    const { fabric, registerArena, windows, counters, drainMs = DRAIN_MS } = this.parts;
    const old = serverRail.rail;
    const fresh = await fabric.replaceRail(this.inFabric.get(serverRail) ?? old);
    this.inFabric.set(serverRail, fresh);
    try {
      await registerArena(fresh);
    } catch (error) {
      await fresh.close();
      throw error;
    }
    const concerned = [...windows].filter(({ rails }) => rails.includes(serverRail));
    const reason = "the server's rail is opened anew";
    for (const sessionWindows of concerned) sessionWindows.sealAll(reason);
    const oldIsClosed = serverRail.replace(fresh);
    counters.railsReplaced += 1;
    await table.moved(serverRail);
    for (const sessionWindows of concerned) {
      // What was opened on the fresh endpoint meanwhile was offered before the client can know of that one: it takes every
      // window that it knows for void, and would never write to those.
      sessionWindows.sealAll(reason);
      sessionWindows.announce(serverRail);
    }
    if (old.state === 'open' && !this.stopped) await sleep(drainMs, undefined, { ref: false });
    serverRail.retire(old);
    await old.close();
    oldIsClosed();
  }
}
