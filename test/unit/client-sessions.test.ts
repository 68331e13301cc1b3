import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { Core } from '../../src/client/client-core.js';
import { Counters } from '../../src/client/counters.js';
import { DataPlane } from '../../src/client/data-plane.js';
import { GetIntoOperation } from '../../src/client/get-into.js';
import { type CallOptions, parseCallOptions, parseClientOptions } from '../../src/client/options.js';
import { RangedRead } from '../../src/client/ranged-read.js';
import { UserRegion } from '../../src/client/region.js';
import type { ValueInfo } from '../../src/client/value.js';
import { RegionMemory } from '../../src/client/value-memory.js';
import {
  crc32c,
  type Fabric,
  FabricError,
  type LocalRegion,
  mapMemory,
  type Rail,
  type RailInfo,
} from '../../src/fabric/index.js';
import { FabricKvError, KvClient } from '../../src/index.js';
import type { ClientMessage__Output } from '../../src/protocol/generated/fabrickv/v1/ClientMessage.js';
import { OperationTrace } from '../../src/protocol/stages.js';
import { waitFor } from '../support/wait-for.js';
import { type PeerSession, TestPeer } from './client-test-peer.js';
import { ClientRail } from './support/client-rail.js';

const MIB = 1024 * 1024;
const VALUE = Buffer.from('the value');

/** The part of a rail that a client without writes uses; nothing ever lands by it. */
class TestRail {
  readonly state = 'open';
  readonly info: Partial<RailInfo>;
  registrations = 0;
  openRegions = 0;
  /** The first registration that fails, counted from 1. */
  refusesFrom = Number.POSITIVE_INFINITY;
  /** What the next registration waits for. */
  #held: Promise<void> | undefined;

  constructor(quiescence: RailInfo['quiescence'], more: Partial<RailInfo> = {}) {
    this.info = {
      provider: 'tcp',
      address: Buffer.from('address'),
      addressFormat: 'FI_SOCKADDR_IN',
      maxRegionBytes: 1024 * MIB,
      needsLocalRegistration: false,
      quiescence,
      ...more,
    };
  }

  /** Makes the next registration wait for the call of what is returned. */
  holdRegister(): () => void {
    let release = (): void => undefined;
    this.#held = new Promise((resolve) => {
      release = resolve;
    });
    return release;
  }

  insertPeer(): Promise<number> {
    return Promise.resolve(1);
  }

  removePeer(): Promise<void> {
    return Promise.resolve();
  }

  prove(): Promise<void> {
    return this.info.quiescence === 'close-endpoint'
      ? Promise.reject(new FabricError({ code: 'UNPROVABLE', call: 'prove', text: 'as the test wants it' }))
      : Promise.resolve();
  }

  async register({ length }: { length: number }): Promise<unknown> {
    const held = this.#held;
    this.#held = undefined;
    this.registrations += 1;
    await held;
    if (this.registrations >= this.refusesFrom) throw new FabricKvError('ERR_FABRICKV_REGISTRATION', 'no more');
    this.openRegions += 1;
    return { id: this.registrations, address: 0n, key: BigInt(this.registrations), length };
  }

  deregister(_region: LocalRegion): Promise<void> {
    this.openRegions -= 1;
    return Promise.resolve();
  }
}

/** A client whose rails are a test's. */
class RailClient implements AsyncDisposable {
  private constructor(
    readonly core: Core,
    readonly region: UserRegion,
  ) {}

  static async connect(peer: TestPeer, rail: TestRail): Promise<RailClient> {
    const fabric: Fabric = {
      choice: 'auto',
      considered: [],
      providers: [{ name: 'tcp', rails: [rail as unknown as Rail] }],
      libfabric: undefined,
      missing: undefined,
      replaceRail: () => Promise.reject(new Error('no client replaces a rail')),
      close: () => Promise.resolve(),
    };
    const core = new Core(parseClientOptions({ serverAddr: peer.addr, receiveMemory: 16 * MIB }), fabric);
    await core.connection.connectFirst();
    const mapping = await mapMemory({ sizeBytes: MIB, prefault: false });
    return new RailClient(core, new UserRegion(mapping, core, () => undefined));
  }

  getInto(options: CallOptions = {}): Promise<ValueInfo | undefined> {
    const call = parseCallOptions(options, this.core.settings);
    return new GetIntoOperation(this.core, Buffer.from('k'), this.region, call).start();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const operation of this.core.operations.toArray()) operation.fail(new FabricKvError('ERR_FABRICKV_CLOSED'));
    await this.core.connection.close();
    this.core.close();
    this.region.close();
  }
}

async function rejection(promise: Promise<unknown>): Promise<FabricKvError> {
  const [outcome] = await Promise.allSettled([promise]);
  assert.ok(outcome.status === 'rejected', 'it was fulfilled');
  assert.ok(outcome.reason instanceof FabricKvError, String(outcome.reason));
  return outcome.reason;
}

function answerInline(message: ClientMessage__Output, session: PeerSession): void {
  const { length } = VALUE;
  session.result(message, {
    get: { found: true, length, version: 1, crc32c: crc32c(VALUE), path: 'INLINE', value: VALUE },
  });
}

/** Answers every GET but those in the first session. */
async function peerFromSecondSession(): Promise<TestPeer> {
  const peer = await TestPeer.start((message, session) => {
    if (message.get && session !== peer.sessions[0]) answerInline(message, session);
  });
  peer.takesProvider = true;
  return peer;
}

describe('memory that a lost session may still write into', () => {
  test('nothing that comes inline is stored in a region that is not proved quiet', async () => {
    await using peer = await peerFromSecondSession();
    await using client = await RailClient.connect(peer, new TestRail('close-endpoint'));
    const pending = rejection(client.getInto({ timeoutMs: 800 }));
    await waitFor(() => peer.last.of('get').length === 1, { what: 'the request' });
    peer.takesProvider = false;
    peer.last.crash();
    await waitFor(() => client.core.connection.state === 'open' && peer.sessions.length === 2, {
      what: 'the next session',
    });
    const error = await pending;
    assert.deepEqual([error.code, error.stage], ['ERR_FABRICKV_DEADLINE', 'get.request.sent']);
    assert.equal(peer.last.of('get').length, 0);
    assert.ok(client.region.buffer.every((byte) => byte === 0));
    assert.equal(client.region.busy, true);
    const quiesced = client.region.quiesced();
    await client[Symbol.asyncDispose]();
    await quiesced;
    assert.equal(client.region.mapping.readSync(0, 1)[0], 0, 'it is mapped until the rails are closed');
    client.core.connection.railsClosed();
    assert.throws(() => client.region.mapping.readSync(0, 1));
  });
});

describe('a region that is a source of writes', () => {
  test('leaves no registration behind, neither when one fails nor when it is released', async () => {
    const rail = new TestRail('fence', { needsLocalRegistration: true, maxRegionBytes: MIB / 4 });
    const dataPlane = new DataPlane({
      provider: 'tcp',
      rails: [rail as unknown as Rail],
      serverRails: [],
      regionsMax: 0,
      send: () => undefined,
      counters: new Counters(),
      logger: pino({ level: 'silent' }),
    });
    const region = new UserRegion(await mapMemory({ sizeBytes: MIB, prefault: false }), rail, () => undefined);
    rail.refusesFrom = 3;
    assert.equal((await rejection(region.prepareSource(dataPlane))).message, 'no more');
    assert.deepEqual([rail.registrations, rail.openRegions], [3, 0]);
    rail.refusesFrom = Number.POSITIVE_INFINITY;
    await region.prepareSource(dataPlane);
    assert.equal(rail.openRegions, 4);
    await region.release();
    assert.equal(rail.openRegions, 0);
  });
});

describe('a rail of the server that moves', () => {
  test('leaves no peer behind, even when its new address cannot be entered', async () => {
    const rail = new ClientRail();
    const plane = new DataPlane({
      provider: 'tcp',
      rails: [rail.rail],
      serverRails: [{ address: Buffer.from('address'), format: 'FI_SOCKADDR_IN' }],
      regionsMax: 64,
      send: () => undefined,
      counters: new Counters(),
      logger: pino({ level: 'silent' }),
    });
    await plane.insertServer();
    const moved = { rail: 0, generation: 2, address: { address: Buffer.from('new'), format: 'FI_SOCKADDR_IN' } };
    rail.insertPeer = () =>
      Promise.reject(new FabricError({ code: 'BUSY', call: 'insert', text: 'as the test wants it' }));
    await assert.rejects(plane.onRailChanged(moved), { code: 'ERR_FABRICKV_RESOURCE_EXHAUSTED' });
    await plane.retire();
    assert.equal(rail.peers.size, 0);
  });
});

describe('a value that is read in ranges', () => {
  test('names its memory again only when nothing of another version can land there any more', async () => {
    await using peer = await peerFromSecondSession();
    await using client = await RailClient.connect(peer, new TestRail('fence'));
    const { core, region } = client;
    const { session } = core.connection;
    assert.ok(session);
    region.hold('sink');
    const memory = new RegionMemory(region, () => region.unhold('sink'));
    await region.introduceTo(session.dataPlane ?? assert.fail());
    const key = Buffer.from('k');
    const never = (): never => assert.fail('nothing is answered');
    const read = new RangedRead({
      core,
      key,
      call: parseCallOptions({}, core.settings),
      memory,
      trace: new OperationTrace(core.trace, 'get', 1, key, 'get.start'),
      firstOperationId: 1,
      deadlineMs: () => 1000,
      events: { onDone: never, onAbsent: never, onTooLong: never, onFailed: never, onProgress: never },
    });
    read.start();
    await waitFor(() => peer.last.of('get').length === 1, { what: 'the first request' });
    peer.takesProvider = true;
    // The server's word is due, and does not come.
    const [get] = peer.last.of('get');
    assert.ok(get);
    peer.last.result(get, {
      failure: { code: 'ERR_FABRICKV_DATA_PLANE', message: 'as the test wants it', retryable: true, sinkBusy: true },
    });
    await sleep(300);
    assert.equal(peer.last.of('get').length, 1);
    peer.last.send({ operationId: get.operationId, quiesced: {} });
    await waitFor(() => peer.last.of('get').length === 2, { what: 'the second request' });
    read.stop();
    memory.free();
  });
});

describe('an operation that has sent nothing yet', () => {
  test('is tried again when its session ends while it registers its memory', async () => {
    await using peer = await peerFromSecondSession();
    const rail = new TestRail('fence');
    await using client = await RailClient.connect(peer, rail);
    const before = rail.registrations;
    const release = rail.holdRegister();
    const pending = client.getInto();
    await waitFor(() => rail.registrations > before, { what: 'the registration' });
    peer.last.crash();
    await waitFor(() => client.core.connection.state !== 'open', { what: 'the loss' });
    release();
    assert.equal((await pending)?.length, VALUE.length);
    assert.equal(peer.sessions.length, 2);
    assert.equal(peer.sessions[0]?.of('get').length, 0);
  });

  test('waits for the next session when its own has begun to drain', async () => {
    await using peer = await peerFromSecondSession();
    const rail = new TestRail('fence');
    await using client = await RailClient.connect(peer, rail);
    const before = rail.registrations;
    const release = rail.holdRegister();
    const pending = client.getInto();
    await waitFor(() => rail.registrations > before, { what: 'the registration' });
    peer.last.send({ goAway: { reason: 'test', drainMs: 5000 } });
    await waitFor(() => client.core.connection.state === 'draining', { what: 'draining' });
    release();
    assert.equal((await pending)?.length, VALUE.length);
    assert.equal(peer.sessions[0]?.of('get').length, 0);
    assert.equal(peer.sessions[0]?.of('bye').length, 1);
  });
});

describe('a PUT whose bytes are taken away', () => {
  for (const [what, length, bodies] of [
    ['while they are sent', 4 * MIB, ['putOpen']],
    ['before they are sent', 100, []],
  ] as const) {
    test(`fails ${what}, saying so, and nothing was applied`, async () => {
      const bytes = new Uint8Array(length);
      const detach = (): void => void structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
      await using peer = await TestPeer.start((message, session) => {
        if (!message.putOpen) return;
        detach();
        session.result(message, { grant: { extents: [], expiresInMs: 1000 } });
      });
      await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none', maxInFlight: 1 });
      const first = rejection(client.ping({ timeoutMs: 100 }));
      const put = rejection(client.put('k', bytes));
      if (bodies.length === 0) detach();
      await first;
      const error = await put;
      assert.deepEqual([error.code, error.outcome], ['ERR_FABRICKV_INVALID_ARGUMENT', 'not-applied']);
      const sent = peer.last.received.map(({ body }) => body).filter((body) => body?.startsWith('put'));
      assert.deepEqual(sent, bodies);
    });
  }
});

describe('a draining session', () => {
  test('a GET whose sink is too small is asked again in the next one', async () => {
    await using peer = await TestPeer.start((message, session) => {
      if (!message.get) return;
      if (session === peer.sessions[0]) {
        session.send({ goAway: { reason: 'test', drainMs: 5000 } });
        session.result(message, { sinkTooSmall: { length: VALUE.length, version: 1, crc32c: crc32c(VALUE) } });
      } else answerInline(message, session);
    });
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none', timeoutMs: 5000 });
    assert.ok((await client.get('k'))?.bytes.equals(VALUE));
    assert.deepEqual(
      peer.sessions.map((session) => session.of('get').length),
      [1, 1],
    );
  });

  test('a deadline in it is a deadline: there is a connection', async () => {
    await using peer = await TestPeer.start(() => undefined);
    await using client = await KvClient.connect({ serverAddr: peer.addr, provider: 'none' });
    const pending = rejection(client.get('k', { timeoutMs: 300 }));
    await waitFor(() => peer.last.of('get').length === 1, { what: 'the request' });
    peer.last.send({ goAway: { reason: 'test', drainMs: 5000 } });
    assert.equal((await pending).code, 'ERR_FABRICKV_DEADLINE');
  });
});
