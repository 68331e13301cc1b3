/**
 * Spins the event loop instead of letting it sleep, where what is awaited comes sooner than a CPU wakes up.
 */

import { nativeAddonIfBuilt } from './addon.js';

/** Keeps the event loop awake for a short time after each {@link EventLoopSpin.begin}. A core is busy meanwhile. */
export class EventLoopSpin {
  #untilMs = 0;
  #isSpinning = false;
  readonly #turn = (): void => this.#spin();

  /**
   * @param spinUs for how long; 0 is not at all
   * @param isWanted asked in each turn, because a loop that spins while there is much to do takes time from those who do it
   */
  constructor(
    private readonly spinUs: number,
    private readonly isWanted: () => boolean,
  ) {}

  /** Something is awaited from now on. */
  begin(): void {
    if (this.spinUs === 0 || !this.isWanted()) return;
    this.#untilMs = performance.now() + this.spinUs / 1000;
    if (this.#isSpinning) return;
    this.#isSpinning = true;
    setImmediate(this.#turn);
  }

  #spin(): void {
    if (!this.isWanted() || performance.now() > this.#untilMs) {
      this.#isSpinning = false;
      return;
    }
    // The other side may share this core.
    nativeAddonIfBuilt()?.yieldCpu();
    setImmediate(this.#turn);
  }
}
