import { loadLibfabric, mapMemory, openRail } from '../../../src/fabric/index.js';

// Gets as far as argv[2] says and then ends as argv[3] says, leaving everything as it is.
const [stage, ending] = process.argv.slice(2);
const MIB = 2 ** 20;

function end(): void {
  if (ending === 'exit') process.exit(7);
  if (ending === 'interrupt') process.kill(process.pid, 'SIGINT');
  if (ending === 'throw') {
    setImmediate(() => {
      throw new Error('on purpose');
    });
  }
}

function ignore(promise: Promise<unknown>): void {
  promise.catch(() => undefined);
}

async function run(): Promise<void> {
  if (stage === 'mapping') {
    ignore(mapMemory({ sizeBytes: 512 * MIB, prefault: true }));
    return;
  }
  const mapping = await mapMemory({ sizeBytes: 64 * MIB, prefault: true });
  const loan = mapping.lend({ offset: 0, length: MIB, onReturned: () => undefined });
  const view = mapping.buffer(MIB, MIB);
  if (loan.arrayBuffer.byteLength !== view.length) throw new Error('impossible');
  if (stage === 'mapped') return;
  if (stage === 'copying') return ignore(mapping.crc32c({ offset: 0, length: 64 * MIB }));
  loadLibfabric();
  if (stage === 'loaded') return;
  const opening = openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
  if (stage === 'opening') return ignore(opening);
  const rail = await opening;
  const other = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
  if (stage === 'open') return;
  const registering = other.register({ mapping, offset: 0, length: 32 * MIB, access: 'remote-write' });
  if (stage === 'registering') return ignore(registering);
  const { address, key, length } = await registering;
  const peer = await rail.insertPeer(other.info.address);
  const remoteRegionId = rail.defineRemote({ peer, address, key, length });
  const write = (onDone: () => void): void => {
    const segment = { mappingId: mapping.id, localOffset: 32 * MIB, remoteRegionId, remoteOffset: 0, length };
    rail.write({ peer, segments: [segment], onDone });
  };
  if (stage === 'connecting') return write(() => undefined);
  await new Promise<void>((resolve) => write(resolve));
  if (stage === 'writing') return write(() => undefined);
  const closing = [rail.close(), other.close()];
  if (stage === 'closing') return ignore(Promise.all(closing));
  await Promise.all(closing);
}

await run();
end();
