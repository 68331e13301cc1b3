import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import {
  type FabricError,
  type Mapping,
  mapMemory,
  openRail,
  type PeerId,
  type Rail,
  remoteAddress,
  remoteKey,
} from '../../src/fabric/index.js';
import { FabricKvError, KvClient } from '../../src/index.js';
import type { WindowOffer__Output } from '../../src/protocol/generated/fabrickv/v1/WindowOffer.js';
import { toBigInt, toSafeInteger } from '../../src/protocol/wire.js';
import { Child } from '../support/child.js';
import { startServer, type TestServer } from '../support/commands.js';
import { countersWhen, isQuiet } from '../support/counters.js';
import { FULL } from '../support/mode.js';
import { checkStamped, stamp } from '../support/stamped.js';
import { randomFrom, testSeed } from '../support/values.js';
import { waitFor } from '../support/wait-for.js';
import { WireClient, type WireSession } from '../unit/support/session-client.js';

const SECRET_WRITER = fileURLToPath(new URL('../support/secret-writer.js', import.meta.url));
const MIB = 1024 * 1024;
const ARENA_MIB = 96;
/** Others' values: with one of the attacker's they fill the arena, so that whatever goes astray hits one of them. */
const VICTIMS = 9;
const VICTIM_BYTES = 8 * MIB;
const OWN_BYTES = 16 * MIB;
const ROUNDS = FULL ? 300 : 30;
const GARBAGE = 0xbd;

interface Window {
  readonly id: number;
  readonly address: bigint;
  readonly key: bigint;
  readonly length: number;
}

/** Somebody who speaks the protocol, and writes with the native layer whatever he likes. */
class Attacker implements AsyncDisposable {
  private operations = 0;
  private readonly extraRails: Rail[] = [];

  private constructor(
    private readonly wire: WireClient,
    readonly session: WireSession,
    readonly rail: Rail,
    private readonly mapping: Mapping,
    private readonly serverAddress: Buffer,
    readonly peer: PeerId,
  ) {}

  static async enter(server: TestServer): Promise<Attacker> {
    const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
    const mapping = await mapMemory({ sizeBytes: 2 * OWN_BYTES, prefault: true });
    mapping.buffer(0, 2 * OWN_BYTES).fill(GARBAGE);
    const wire = new WireClient(server.addr);
    const { address, addressFormat: format } = rail.info;
    const session = await wire.connect({ providers: [{ name: 'tcp', rails: [{ address, format }] }] });
    const [first] = (await session.welcome()).rails;
    assert(first !== undefined);
    return new Attacker(wire, session, rail, mapping, first.address, await rail.insertPeer(first.address));
  }

  nextOperation(): number {
    this.operations += 1;
    return this.operations;
  }

  /** Opens a PUT in the right way, and gives the window of its grant. */
  async openPut(length = OWN_BYTES): Promise<{ operationId: number; window: Window; offset: number }> {
    const operationId = this.nextOperation();
    const result = await this.session.call(operationId, {
      putOpen: { key: Buffer.from('attacker'), length, path: 'RDMA', deadlineMs: 20_000 },
    });
    assert(result.grant !== null && result.grant !== undefined, JSON.stringify(result.failure));
    const [extent] = result.grant.extents;
    assert(extent !== undefined);
    const offer = await this.session.find('WindowOffer', ({ windowOffer }) =>
      windowOffer?.windowId === extent.windowId ? windowOffer : undefined,
    );
    return {
      operationId,
      window: windowOf(offer),
      offset: toSafeInteger(extent.windowOffset, 'window_offset'),
    };
  }

  /** Another endpoint, which no handshake has told the server of. */
  async secretRail(): Promise<{ rail: Rail; peer: PeerId }> {
    const rail = await openRail({ provider: 'tcp', sourceAddress: '127.0.0.1' });
    this.extraRails.push(rail);
    return { rail, peer: await rail.insertPeer(this.serverAddress) };
  }

  /** A process with such an endpoint that does nothing but write into a window. */
  secretWriter({ address, key, length }: Window): { child: Child; readonly text: string } & AsyncDisposable {
    let text = '';
    const child = new Child(process.execPath, {
      args: [SECRET_WRITER, this.serverAddress.toString('hex'), String(address), String(key), String(length)],
      onStdout: (chunk) => {
        text += chunk.toString();
      },
    });
    return {
      child,
      get text() {
        return text;
      },
      [Symbol.asyncDispose]: () => child[Symbol.asyncDispose](),
    };
  }

  /** Writes garbage; resolves with the error, or undefined when the server has taken it. */
  write(
    { address, key }: Window,
    offset: number,
    length: number,
    { rail, peer }: { rail: Rail; peer: PeerId } = this,
  ): Promise<FabricError | undefined> {
    const region = rail.defineRemote({
      peer,
      address: remoteAddress(address),
      key: remoteKey(key),
      length: offset + length,
    });
    return new Promise((resolve) => {
      rail.write({
        peer,
        segments: [
          { mappingId: this.mapping.id, localOffset: 0, remoteRegionId: region, remoteOffset: offset, length },
        ],
        onDone: (error) => {
          rail.forgetRemote(region);
          resolve(error);
        },
      });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.wire[Symbol.dispose]();
    for (const rail of [this.rail, ...this.extraRails]) await rail.close();
    this.mapping.close();
  }
}

function windowOf({ windowId, length, rails: [rail] }: WindowOffer__Output): Window {
  assert(rail !== undefined);
  return {
    id: windowId,
    address: toBigInt(rail.address),
    key: toBigInt(rail.rkey),
    length: toSafeInteger(length, 'length'),
  };
}

function onlyCapacity(error: unknown): undefined {
  if (!(error instanceof FabricKvError && error.code === 'ERR_FABRICKV_CAPACITY')) throw error;
}

describe('I2, I3: a hostile client that posts what it likes', () => {
  let server: TestServer;
  let victim: KvClient;

  before(async () => {
    server = await startServer({ args: ['--memory', `${ARENA_MIB}MiB`, '--log-level', 'info'] });
    victim = await KvClient.connect({ serverAddr: server.addr, provider: 'tcp', inlineThreshold: 0 });
    for (let index = 0; index < VICTIMS; index++) await putVictim(index, 0);
  });
  after(async () => {
    await victim?.close();
    await server?.[Symbol.asyncDispose]();
  });

  async function putVictim(index: number, sequence: number, length = VICTIM_BYTES): Promise<void> {
    const bytes = Buffer.alloc(length);
    stamp(bytes, { writer: index, sequence });
    // Memory that has just been taken from somebody is there when it is proved to be safe.
    await waitFor(() => victim.put(`victim-${index}`, bytes).catch(onlyCapacity), { what: `room for victim-${index}` });
  }

  /** Every byte of every other's value is its own. */
  async function assertUnharmed(count = VICTIMS): Promise<void> {
    for (let index = 0; index < count; index++) {
      const value = await victim.get(`victim-${index}`, { verify: true });
      assert(value !== undefined, `victim-${index} has gone`);
      assert.equal(checkStamped(value.bytes).writer, index);
      value.release();
    }
  }

  const settled = (sessions: number): Promise<unknown> =>
    countersWhen(
      async () => (await victim.ping()).counters,
      (now) => isQuiet(now, sessions),
      { what: "the attacker's windows to end" },
    );

  test('a wrong key, a key of nobody, and a write beyond the window are refused', async () => {
    await using attacker = await Attacker.enter(server);
    for (let round = 0; round < 5; round++) {
      const { operationId, window, offset } = await attacker.openPut();
      const attacks: readonly (readonly [string, Window, number, number])[] = [
        ['a neighbouring key', { ...window, key: window.key + 1n }, offset, 4096],
        ['a random key', { ...window, key: randomBytes(8).readBigUInt64LE() }, 0, MIB],
        ['over the end', window, window.length - 4096, 8192],
        ['beyond the end', window, window.length, MIB],
        ['far beyond it', window, 64 * MIB, MIB],
        ['before its beginning', { ...window, address: 2n ** 64n - 8192n }, 0, 4096],
      ];
      for (const [what, target, at, length] of attacks) {
        assert.notEqual(await attacker.write(target, at, length), undefined, `${what}: the write was taken`);
      }
      attacker.session.send({ operationId, putAbort: {} });
    }
    await assertUnharmed();
  });

  test('a write into a window that is sealed is refused, and its memory is unharmed in the hands of others', async () => {
    await using attacker = await Attacker.enter(server);
    const { operationId, window } = await attacker.openPut();
    assert.equal(await attacker.write(window, 0, OWN_BYTES), undefined, 'an open window takes writes');
    attacker.session.send({ operationId, putAbort: {} });
    await settled(2);
    await putVictim(VICTIMS, 0, OWN_BYTES);
    for (let round = 0; round < 5; round++) {
      assert.notEqual(await attacker.write(window, 0, OWN_BYTES), undefined, 'a sealed window takes writes');
      const secret = await attacker.secretRail();
      assert.notEqual(await attacker.write(window, 0, OWN_BYTES, secret), undefined, 'from another endpoint');
    }
    await assertUnharmed(VICTIMS + 1);
    await victim.delete(`victim-${VICTIMS}`);
  });

  test('writes that are in flight when the window is sealed never land in what comes next', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    await using attacker = await Attacker.enter(server);
    const secret = await attacker.secretRail();
    const outcomes = { landed: 0, refused: 0 };
    for (let round = 0; round < ROUNDS; round++) {
      const { operationId, window } = await attacker.openPut();
      // From the announced endpoint and from the secret one, all over the window, while it is taken away.
      const writing = Array.from({ length: 6 }, (_, i) =>
        attacker.write(window, 0, OWN_BYTES, i % 2 === 0 ? attacker : secret),
      );
      if (random() < 0.7) await sleep(random() * 8);
      if (random() < 0.5) attacker.session.send({ operationId, putAbort: {} });
      else attacker.session.send({ operationId, putCommit: { crc32c: 1, length: OWN_BYTES } });
      // The arena has no other room: this takes the memory of the window, as soon as it is safe.
      await putVictim(VICTIMS, round, OWN_BYTES);
      for (const error of await Promise.all(writing)) outcomes[error === undefined ? 'landed' : 'refused'] += 1;
      await assertUnharmed(VICTIMS + 1);
      await victim.delete(`victim-${VICTIMS}`);
    }
    t.diagnostic(`writes taken before the seal: ${outcomes.landed}, refused: ${outcomes.refused}`);
    assert.ok(outcomes.refused > 0, 'no write met a sealed window');
  });

  test('a writer on another endpoint, stopped in the middle of a write, lands nothing when it goes on', async (t) => {
    const seed = testSeed();
    t.diagnostic(`FABRICKV_TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    await using attacker = await Attacker.enter(server);
    for (let round = 0; round < ROUNDS / 5; round++) {
      const { operationId, window } = await attacker.openPut();
      await using writer = attacker.secretWriter(window);
      await waitFor(() => writer.text.includes('landed'), { what: 'the first write to land' });
      await sleep(random() * 20);
      writer.child.kill('SIGSTOP');
      attacker.session.send({ operationId, putAbort: {} });
      await putVictim(VICTIMS, round, OWN_BYTES);
      writer.child.kill('SIGCONT');
      const { code, stderr } = await writer.child.waitForEnd(20_000);
      assert.equal(code, 0, stderr);
      assert.match(writer.text, /refused/);
      await assertUnharmed(VICTIMS + 1);
      await victim.delete(`victim-${VICTIMS}`);
    }
  });

  test('after it all the server holds nothing of the attacker', async () => {
    await settled(1);
    await assertUnharmed();
    assert.equal((await victim.ping()).counters['railPeers'], 1);
  });
});
