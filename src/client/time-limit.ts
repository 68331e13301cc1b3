/**
 * Waiting with an end.
 */

/** Settles as the promise does, or rejects with `late()` when that takes longer. What the promise does then is dropped. */
export async function withTimeLimit<T>(promise: Promise<T>, limitMs: number, late: () => Error): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(late()), limitMs);
  });
  try {
    return await Promise.race([promise, limit]);
  } finally {
    clearTimeout(timer);
  }
}
