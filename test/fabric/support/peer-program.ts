import { mapMemory, openRail, type PeerId } from '../../../src/fabric/index.js';

/** What a {@link PeerProcess} asks of this program; it answers every request with one message. */
export type PeerRequest =
  | { readonly kind: 'insert'; readonly address: string }
  | { readonly kind: 'crc'; readonly offset: number; readonly length: number }
  | { readonly kind: 'fill'; readonly byte: number }
  | { readonly kind: 'countOther'; readonly byte: number }
  | { readonly kind: 'revokeAndFill'; readonly byte: number }
  | { readonly kind: 'finish' };

/** The first message: what a writer needs to know. */
export interface Introduction {
  readonly address: string;
  readonly remoteAddress: string;
  readonly key: string;
}

// The target of the tests: a rail of its own, and one mapping that is open for remote writes.
const sizeBytes = Number(process.argv[2]);
const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
const mapping = await mapMemory({ sizeBytes, prefault: true });
const region = await rail.register({ mapping, offset: 0, length: sizeBytes, access: 'remote-write' });
const view = mapping.buffer(0, sizeBytes);
let writer: PeerId | undefined;

async function answer(request: PeerRequest): Promise<number> {
  switch (request.kind) {
    case 'insert':
      writer = await rail.insertPeer(Buffer.from(request.address, 'hex'));
      return writer;
    case 'crc':
      return mapping.crc32c({ offset: request.offset, length: request.length });
    case 'fill':
      view.fill(request.byte);
      return 0;
    case 'countOther':
      return view.reduce((count, byte) => (byte === request.byte ? count : count + 1), 0);
    case 'revokeAndFill':
      await rail.deregister(region);
      await rail.prove();
      view.fill(request.byte);
      return 0;
    case 'finish':
      await rail.close();
      return 0;
  }
}

process.on('message', (request: PeerRequest) => {
  answer(request).then(
    (value) => {
      process.send?.(value);
      if (request.kind === 'finish') process.disconnect();
    },
    (error: unknown) => {
      throw error;
    },
  );
});
const introduction: Introduction = {
  address: rail.info.address.toString('hex'),
  remoteAddress: region.address.toString(),
  key: region.key.toString(),
};
process.send?.(introduction);
