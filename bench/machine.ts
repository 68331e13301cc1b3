import { arch, availableParallelism, cpus, release, totalmem } from 'node:os';
import { formatSize } from '../src/protocol/units.js';

/** The machine in a line: what a reader needs to compare numbers with their own. */
export function describeMachine(): string {
  const model = cpus()[0]?.model.trim() ?? arch();
  return `${model}, ${availableParallelism()} CPUs, ${formatSize(totalmem())}, Linux ${release()}, Node.js ${process.version}`;
}
