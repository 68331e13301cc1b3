/**
 * A process that ends at a stage of a client's life: `node lifecycle.js ADDR STAGE ENDING`. The parent looks at how it
 * ended. Prints the stage when it has got there. `natural` closes the client there, since an open one keeps its process
 * alive, and then has nothing more to do.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { KvClient, type Region } from '../../src/index.js';

const [addr = '', stage = '', ending = ''] = process.argv.slice(2);
const LENGTH = 64 * 1024 * 1024;

/** Ends the process now, or lets it go on to end by itself. */
function end(): void {
  process.stdout.write(`${stage}\n`);
  if (ending === 'exit') process.exit(7);
  if (ending === 'throw') {
    setImmediate(() => {
      throw new Error('thrown on purpose');
    });
  }
  if (ending === 'kill-self') process.kill(process.pid, 'SIGTERM');
}

/** What is in flight at the end may be rejected then. */
function background(promise: Promise<unknown>): void {
  promise.catch(() => undefined);
}

async function put(client: KvClient, region: Region): Promise<void> {
  await client.put(`lifecycle-${process.pid}`, region);
}

if (stage === 'imported') {
  end();
} else {
  const connecting = KvClient.connect({ serverAddr: addr, provider: 'tcp', timeoutMs: 3000 });
  if (stage === 'connecting') {
    background(connecting);
    await nextTurn();
    end();
    if (ending === 'natural') await (await connecting).close();
  } else {
    const client = await connecting;
    const region = await client.allocate(LENGTH);
    switch (stage) {
      case 'connected':
        break;
      case 'getting':
        background(client.getInto('value', region));
        background(client.get('value'));
        await nextTurn();
        break;
      case 'putting':
        background(put(client, region));
        background(client.put(`lifecycle-${process.pid}`, Buffer.alloc(LENGTH)));
        await nextTurn();
        await nextTurn();
        break;
      case 'holding a result':
        // The finalizers of these run when the environment is torn down.
        Object.assign(globalThis, { held: [await client.get('value'), region, region.buffer] });
        break;
      case 'aborted': {
        const controller = new AbortController();
        background(client.getInto('value', region, { signal: controller.signal }));
        await nextTurn();
        controller.abort();
        break;
      }
      case 'closing':
        background(client.get('value'));
        background(client.close());
        break;
      case 'closed':
        await client.close();
        break;
      default:
        throw new Error(`no stage ${stage}`);
    }
    end();
    if (ending === 'natural') await client.close();
  }
}
