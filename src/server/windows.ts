/**
 * Write windows: the only memory of the server that a client can write to. Each is an MR of its own over one extent,
 * for one session and one PUT. A window that was closed protects its extent until it is proved that no write of the
 * client can land there (I2, I3).
 */

import type { Logger } from 'pino';
import { FabricError, type LocalRegion, type Mapping } from '../fabric/index.js';
import type { ServerCounters } from './counters.js';
import type { Peer, ProofWaiter } from './peers.js';
import type { Extent, WriteBarrier } from './store/arena.js';

/**
 * `registering` → `open` → `closing` → `sealed` → `proven`. A window whose registration fails is proven at once: nobody
 * ever had its key.
 */
type WindowState = 'registering' | 'open' | 'closing' | 'sealed' | 'proven';

const TRANSITIONS: Readonly<Record<WindowState, readonly WindowState[]>> = {
  registering: ['open', 'proven'],
  open: ['closing'],
  closing: ['sealed', 'proven'],
  sealed: ['proven'],
  proven: [],
};

/** One extent, open to the writes of one client. */
export class WriteWindow implements WriteBarrier, ProofWaiter {
  private state: WindowState = 'registering';
  private region: LocalRegion | undefined;
  private readonly callbacks: (() => void)[] = [];

  private constructor(
    readonly id: number,
    readonly extent: Extent,
    private readonly peer: Peer,
    private readonly counters: ServerCounters,
    private readonly logger: Logger,
  ) {}

  /**
   * Registers an extent for the writes of a peer. From this call on the extent has a barrier.
   *
   * @throws FabricError `REGISTRATION_FAILED`; the extent is safe to free then
   */
  static async open(
    id: number,
    extent: Extent,
    mapping: Mapping,
    peer: Peer,
    counters: ServerCounters,
    logger: Logger,
  ): Promise<WriteWindow> {
    const window = new WriteWindow(id, extent, peer, counters, logger);
    extent.barrier = window;
    peer.windowOpened();
    try {
      window.region = await peer.rail.register({
        mapping,
        offset: extent.offset,
        length: extent.length,
        access: 'remote-write',
      });
    } catch (error) {
      window.become('proven');
      peer.windowClosed();
      throw error;
    }
    window.become('open');
    counters.windowsOpened += 1;
    counters.windowsOpen += 1;
    return window;
  }

  get proven(): boolean {
    return this.state === 'proven';
  }

  /** Whether the extent has been freed and waits. */
  get wanted(): boolean {
    return this.callbacks.length > 0;
  }

  /** Address and remote key, for the client. */
  get remote(): { readonly address: bigint; readonly key: bigint } {
    if (this.region === undefined) throw new Error('a window without a region is offered');
    return this.region;
  }

  /** Closes the window for new writes. The proof follows when it is wanted. Idempotent; never rejects. */
  seal(): Promise<void> {
    const { region } = this;
    if (this.state !== 'open' || region === undefined) return Promise.resolve();
    this.become('closing');
    this.counters.windowsOpen -= 1;
    const closing = this.close(region);
    this.peer.windowClosing(closing);
    return closing;
  }

  private async close(region: LocalRegion): Promise<void> {
    const { rail } = this.peer;
    try {
      await rail.deregister(region);
      if (rail.info.quiescence === 'close-region') {
        this.become('proven');
      } else {
        this.become('sealed');
        if (rail.info.quiescence === 'remove-peer') this.peer.awaitProof(this);
      }
    } catch (error) {
      // The MR may still be open: its memory stays in quarantine until the rail is closed.
      const level = error instanceof FabricError && error.code === 'RAIL_CLOSED' ? 'debug' : 'error';
      this.logger[level]({ err: error }, 'A write window could not be closed');
    } finally {
      this.peer.windowClosed();
    }
  }

  prove(): void {
    if (this.state !== 'sealed') throw new Error(`a window that is ${this.state} is proved`);
    this.become('proven');
  }

  whenProven(callback: () => void): void {
    if (this.proven) callback();
    else this.callbacks.push(callback);
  }

  private become(next: WindowState): void {
    if (!TRANSITIONS[this.state].includes(next)) throw new Error(`a window goes from ${this.state} to ${next}`);
    this.state = next;
    if (next === 'proven') for (const callback of this.callbacks.splice(0)) callback();
  }
}
