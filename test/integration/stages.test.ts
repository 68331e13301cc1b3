import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { CLIENT_STAGES, SERVER_STAGES } from '../../src/protocol/stages.js';
import type { LogRecord } from '../support/child.js';
import { type ClientRun, stagesOf, startServer, type TestServer } from '../support/commands.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { waitFor } from '../support/wait-for.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** Fits the sink that a client names for a key that it does not know, so that one request is enough. */
const RDMA_BYTES = 512 * KIB;
const SMALL_BYTES = 1000;

const SERVER_GET = ['get.received', 'get.lookup', 'get.found'];
const SERVER_GET_RDMA = ['get.transfer.created', 'get.write.submitted', 'get.write.completed', 'get.done'];
const CLIENT_GET = ['get.start', 'get.request.sent', 'get.response.received', 'get.done'];
const CLIENT_GET_RDMA = [
  'get.start',
  'get.buffer.allocated',
  'get.location.created',
  'get.request.sent',
  'get.response.received',
  'get.done',
];
const CLIENT_PUT_RDMA = [
  'put.start',
  'put.grant.requested',
  'put.grant.received',
  'put.write.submitted',
  'put.write.completed',
  'put.commit.sent',
  'put.done',
];
const SERVER_PUT_GRANTED = [
  'put.received',
  'put.allocated',
  'put.granted',
  'put.commit.received',
  'put.verified',
  'put.published',
  'put.done',
];

interface Case {
  readonly name: string;
  readonly bytes: number;
  readonly threshold: 'max' | '0';
  readonly clientPut: readonly string[];
  readonly serverPut: readonly string[];
  readonly clientGet: readonly string[];
  readonly serverGet: readonly string[];
}

const CASES: readonly Case[] = [
  {
    name: 'by RDMA',
    bytes: RDMA_BYTES,
    threshold: '0',
    clientPut: CLIENT_PUT_RDMA,
    serverPut: SERVER_PUT_GRANTED,
    clientGet: CLIENT_GET_RDMA,
    serverGet: [...SERVER_GET, ...SERVER_GET_RDMA],
  },
  {
    name: 'inline in one message',
    bytes: SMALL_BYTES,
    threshold: 'max',
    clientPut: ['put.start', 'put.done'],
    serverPut: ['put.received', 'put.verified', 'put.published', 'put.done'],
    clientGet: CLIENT_GET,
    serverGet: [...SERVER_GET, 'get.done'],
  },
  {
    name: 'inline in pieces',
    bytes: RDMA_BYTES,
    threshold: 'max',
    clientPut: ['put.start', 'put.grant.requested', 'put.grant.received', 'put.commit.sent', 'put.done'],
    serverPut: SERVER_PUT_GRANTED,
    clientGet: CLIENT_GET,
    serverGet: [...SERVER_GET, 'get.transfer.created', 'get.done'],
  },
];

describe('stages', () => {
  let server: TestServer;
  let dir: TempDir;

  before(async () => {
    dir = await tempDir();
    server = await startServer();
  });
  after(async () => {
    await server?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  async function traced(args: readonly string[], stdin: Uint8Array | string = ''): Promise<ClientRun> {
    return server.client([...args, '--log-level', 'debug', '--log-format', 'json'], { stdin });
  }

  /** Both sides' stages of the one operation of a run, with every line checked. */
  async function bothSides(run: ClientRun, op: string): Promise<{ client: string[]; server: string[] }> {
    const requestIds = new Set(run.records.filter((record) => record.op === op).map((record) => record.requestId));
    assert.equal(requestIds.size, 1, 'one operation has one request id, also when it asks again');
    const [requestId] = requestIds;
    assert.ok(requestId !== undefined, `the client logged no ${op}: ${run.stderr}`);
    assert.match(requestId, /^[0-9a-f]{16}-\d+$/);
    const end = new RegExp(`^${op}\\.(done|failed)$`);
    await waitFor(() => server.records.some((record) => isStage(record, requestId, end)), {
      what: `the server's last stage of ${requestId}`,
    });
    checkLines(run.records, requestId, CLIENT_STAGES);
    checkLines(server.records, requestId, SERVER_STAGES);
    return { client: stagesOf(run.records, requestId), server: server.stages(requestId) };
  }

  for (const { name, bytes, threshold, clientPut, serverPut, clientGet, serverGet } of CASES) {
    test(`PUT and GET ${name}`, async () => {
      const key = `stages of ${name}`;
      const put = await traced(['put', key, '-', '--inline-threshold', threshold], Buffer.alloc(bytes, name));
      assert.equal(put.code, 0, put.stderr);
      assert.deepEqual(await bothSides(put, 'put'), { client: clientPut, server: serverPut });

      const get = await traced(['get', key, '--inline-threshold', threshold]);
      assert.equal(get.code, 0, get.stderr);
      const seen = await bothSides(get, 'get');
      const isInline = threshold === 'max';
      // A client that cannot know the path beforehand may have prepared a sink for nothing.
      const client = isInline ? seen.client.filter((stage) => CLIENT_GET.includes(stage)) : seen.client;
      assert.deepEqual({ client, server: seen.server }, { client: clientGet, server: serverGet });
    });
  }

  test('a large transfer says at info that it is done, a small one at debug', async () => {
    const put = await traced(['put', 'large', '-'], Buffer.alloc(4 * MIB, 7));
    assert.equal(put.code, 0, put.stderr);
    const { client } = await bothSides(put, 'put');
    assert.deepEqual(client, CLIENT_PUT_RDMA);
    const get = await traced(['get', 'large']);
    assert.equal(get.code, 0, get.stderr);
    const seen = await bothSides(get, 'get');
    assert.deepEqual(seen.client.slice(-3), ['get.request.sent', 'get.response.received', 'get.done']);
    assert.deepEqual(seen.server.slice(-4), SERVER_GET_RDMA);
    const levels = [...put.records, ...get.records, ...server.records]
      .filter(({ stage, key }) => stage?.endsWith('.done') === true && key === 'large')
      .map(({ level }) => level);
    assert.deepEqual(levels, ['info', 'info', 'info', 'info']);
    const small = server.records.filter(({ stage, bytes }) => stage === 'get.done' && bytes === SMALL_BYTES);
    assert.deepEqual([...new Set(small.map(({ level }) => level))], ['debug']);
  });

  const others = [
    {
      op: 'stat',
      args: ['stat', 'large'],
      code: 0,
      client: ['stat.start', 'stat.done'],
      server: ['stat.received', 'stat.done'],
    },
    {
      op: 'exists',
      args: ['exists', 'large'],
      code: 0,
      client: ['exists.start', 'exists.done'],
      server: ['exists.received', 'exists.done'],
    },
    {
      op: 'delete',
      args: ['delete', 'large'],
      code: 0,
      client: ['delete.start', 'delete.done'],
      server: ['delete.received', 'delete.done'],
    },
    {
      op: 'ping',
      args: ['ping'],
      code: 0,
      client: ['ping.start', 'ping.done'],
      server: ['ping.received', 'ping.done'],
    },
    {
      op: 'get',
      args: ['get', 'never stored'],
      code: 1,
      client: undefined,
      server: ['get.received', 'get.lookup', 'get.done'],
    },
  ] as const;
  for (const { op, args, code, client, server: expected } of others) {
    test(args.join(' '), async () => {
      const run = await traced(args);
      assert.equal(run.code, code, run.stderr);
      const seen = await bothSides(run, op);
      if (client !== undefined) assert.deepEqual(seen.client, client);
      else assert.deepEqual([seen.client.at(0), seen.client.at(-1)], [`${op}.start`, `${op}.done`]);
      assert.deepEqual(seen.server, expected);
    });
  }

  test('at the default level nothing is logged of small operations, and a failure names its stage', async () => {
    await using quiet = await startServer({ args: ['--log-level', 'info', '--max-value', '1MiB'] });
    const put = await quiet.client(['put', 'k', 'v']);
    assert.equal(put.code, 0);
    assert.equal(put.stderr, '');
    const file = dir.file('too-large');
    const refused = await quiet.client(['put', 'k', '-', '--inline-threshold', '0', '--json'], {
      stdin: Buffer.alloc(2 * MIB),
    });
    assert.equal(refused.code, 4, `${file} ${refused.stderr}`);
    const { error } = JSON.parse(refused.stderr) as { error: Record<string, unknown> };
    assert.equal(error['code'], 'ERR_FABRICKV_VALUE_TOO_LARGE');
    assert.equal(error['outcome'], 'not-applied');
    assert.match(String(error['stage']), /^put\./);
    assert.deepEqual(stagesOf(quiet.records), []);
  });
});

function isStage(record: LogRecord, requestId: string, stage: RegExp): boolean {
  return record.requestId === requestId && record.stage !== undefined && stage.test(record.stage);
}

/** Every line of an operation has its fields, its words, and a clock that does not run backwards. */
function checkLines(
  records: readonly LogRecord[],
  requestId: string,
  messages: Readonly<Record<string, string>>,
): void {
  let elapsedUs = 0;
  for (const record of records.filter((one) => one.requestId === requestId && one.stage !== undefined)) {
    const text = JSON.stringify(record);
    assert.equal(record.msg, messages[String(record.stage)], text);
    assert.equal(record.op, String(record.stage).split('.')[0], text);
    if (record.op !== 'ping') assert.equal(typeof record['key'], 'string', text);
    assert.equal(record['provider'], 'tcp', text);
    assert.equal(record['rail'], 0, text);
    assert.match(String(record['peer']), /127\.0\.0\.1/, text);
    const now = Number(record['elapsedUs']);
    // The server's clock begins anew with each request of the operation.
    if (String(record.stage).endsWith('.received')) elapsedUs = 0;
    assert.ok(now >= elapsedUs, text);
    elapsedUs = now;
  }
}
