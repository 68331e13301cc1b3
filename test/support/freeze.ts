import { readdir, readFile } from 'node:fs/promises';
import { waitFor } from './wait-for.js';

/** Stops a process (SIGSTOP), and waits until each of its threads has: the signal is sent before the last one heeds it. */
export async function freeze({ pid }: { readonly pid?: number | undefined }): Promise<void> {
  if (pid === undefined) throw new Error('a process that was not started is to be stopped');
  process.kill(pid, 'SIGSTOP');
  const tasks = `/proc/${pid}/task`;
  await waitFor(
    async () => {
      const stats = await Promise.all((await readdir(tasks)).map((id) => readFile(`${tasks}/${id}/stat`, 'utf8')));
      return stats.every((stat) => stat.slice(stat.lastIndexOf(')') + 2).startsWith('T'));
    },
    { what: `process ${pid} to be stopped`, intervalMs: 1 },
  );
}
