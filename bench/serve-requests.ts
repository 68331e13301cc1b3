/**
 * The client process's end of the channel that `ClientProcess` asks over.
 */

import type { FailedReply } from './client-process.js';

/** Answers one request after the other, and ends the process with the benchmark. */
export function serveRequests<Request, Reply>(answer: (request: Request) => Promise<Reply>): void {
  let work: Promise<void> = Promise.resolve();
  process.on('message', (request: Request) => {
    work = work.then(async () => {
      const reply = await answer(request).catch(
        (error: unknown): FailedReply => ({
          kind: 'failed',
          message: error instanceof Error ? error.message : String(error),
        }),
      );
      process.send?.(reply);
    });
  });
  // The benchmark has ended.
  process.on('disconnect', () => process.exit(0));
  // Ctrl-C goes to all processes of the terminal: the benchmark's own end is what ends this one.
  process.on('SIGINT', () => undefined);
}
