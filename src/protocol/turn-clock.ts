/**
 * The time, as exactly as a turn of the event loop needs it: to ask performance.now() at every stage of every small operation
 * would cost more than what is measured.
 */

let turnMs = 0;
let isKnown = false;
const forget = (): void => {
  isKnown = false;
};

/**
 * When this turn began, or some later moment of it; milliseconds on performance.now()'s clock. A turn that takes long makes
 * it that much too old, so it is not for measuring what happens within one.
 */
export function turnNowMs(): number {
  if (!isKnown) {
    isKnown = true;
    turnMs = performance.now();
    queueMicrotask(forget);
  }
  return turnMs;
}
