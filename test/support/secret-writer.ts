/**
 * A process that writes garbage over a window without end, from an endpoint that the server was never told of:
 * `node secret-writer.js SERVER_ADDRESS_HEX WINDOW_ADDRESS KEY LENGTH`. Prints "landed" after its first write, and "refused" when
 * one fails, with which it ends.
 */

import { type FabricError, mapMemory, openRail, remoteAddress, remoteKey } from '../../src/fabric/index.js';

const [serverAddress = '', address = '0', key = '0', lengthText = '0'] = process.argv.slice(2);
const length = Number(lengthText);

const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
const mapping = await mapMemory({ sizeBytes: length, prefault: true });
mapping.buffer(0, length).fill(0xbd);
const peer = await rail.insertPeer(Buffer.from(serverAddress, 'hex'));
const region = rail.defineRemote({
  peer,
  address: remoteAddress(BigInt(address)),
  key: remoteKey(BigInt(key)),
  length,
});

function write(): Promise<FabricError | undefined> {
  return new Promise((resolve) => {
    rail.write({
      peer,
      segments: [{ mappingId: mapping.id, localOffset: 0, remoteRegionId: region, remoteOffset: 0, length }],
      onDone: resolve,
    });
  });
}

for (let landed = 0; (await write()) === undefined; landed++) if (landed === 0) process.stdout.write('landed\n');
process.stdout.write('refused\n');
await rail.close();
