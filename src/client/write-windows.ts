/**
 * The write windows that the server has offered to one session, and which writes are in flight to each.
 */

import { type PeerId, type Rail, type RemoteRegionId, remoteAddress, remoteKey } from '../fabric/index.js';
import { FabricKvError } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { WindowOffer__Output } from '../protocol/generated/fabrickv/v1/WindowOffer.js';
import { toBigInt, toSafeInteger } from '../protocol/wire.js';

/** The most windows that are kept: 256 GiB of them. Past it, the oldest one that is not written to is forgotten. */
const WINDOWS_MAX = 16_384;

interface Window {
  readonly offer: WindowOffer__Output;
  readonly length: number;
  /** Entered into the rail's table when it is first written to. */
  remote: RemoteRegionId | undefined;
  writes: number;
  revoked: boolean;
}

/** Offered windows by id. */
export class WriteWindows {
  readonly #windows = new Map<number, Window>();

  constructor(
    private readonly rail: Rail,
    private readonly send: (message: ClientMessage) => void,
  ) {}

  /**
   * The server offers a window.
   *
   * @throws ERR_FABRICKV_PROTOCOL when it offers one twice, or without a key
   */
  offered(offer: WindowOffer__Output): void {
    if (this.#windows.has(offer.windowId) || offer.rails.length === 0) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `window ${offer.windowId} was offered before, or without a key`);
    }
    if (this.#windows.size >= WINDOWS_MAX) this.#forgetOldest();
    this.#windows.set(offer.windowId, {
      offer,
      length: toSafeInteger(offer.length, 'window length'),
      remote: undefined,
      writes: 0,
      revoked: false,
    });
  }

  /** The server takes a window back; it is told when no write is in flight. */
  revoked(windowId: number): void {
    const window = this.#windows.get(windowId);
    if (window === undefined) {
      this.send({ operationId: 0, windowEnded: { windowId } });
      return;
    }
    window.revoked = true;
    this.#endIfQuiet(windowId, window);
  }

  /**
   * The rail's name for a window that is about to be written to. Each call needs a {@link written} when the write is over.
   *
   * @throws ERR_FABRICKV_GRANT_ENDED when the window was taken back, ERR_FABRICKV_PROTOCOL when the range is not in any
   */
  beginWrite(peer: PeerId, windowId: number, offset: number, length: number): RemoteRegionId {
    const window = this.#windows.get(windowId);
    if (window === undefined || window.revoked) {
      throw new FabricKvError('ERR_FABRICKV_GRANT_ENDED', `the server took window ${windowId} back`);
    }
    if (offset + length > window.length) {
      throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `the grant leaves window ${windowId}`);
    }
    const [key] = window.offer.rails;
    if (key === undefined) throw new FabricKvError('ERR_FABRICKV_PROTOCOL', `window ${windowId} has no key`);
    window.remote ??= this.rail.defineRemote({
      peer,
      address: remoteAddress(toBigInt(key.address)),
      key: remoteKey(toBigInt(key.rkey)),
      length: window.length,
    });
    window.writes += 1;
    return window.remote;
  }

  /** A write that was begun is over. */
  written(windowId: number): void {
    const window = this.#windows.get(windowId);
    if (window === undefined) return;
    window.writes -= 1;
    if (window.revoked) this.#endIfQuiet(windowId, window);
  }

  #endIfQuiet(windowId: number, window: Window): void {
    if (window.writes > 0) return;
    if (window.remote !== undefined) this.rail.forgetRemote(window.remote);
    this.#windows.delete(windowId);
    this.send({ operationId: 0, windowEnded: { windowId } });
  }

  #forgetOldest(): void {
    for (const [windowId, window] of this.#windows) {
      if (window.writes > 0) continue;
      if (window.remote !== undefined) this.rail.forgetRemote(window.remote);
      this.#windows.delete(windowId);
      return;
    }
  }

  /** The session is over. */
  close(): void {
    for (const window of this.#windows.values()) {
      if (window.remote !== undefined) this.rail.forgetRemote(window.remote);
    }
    this.#windows.clear();
  }
}
