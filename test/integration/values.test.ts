import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { KvClient } from '../../src/index.js';
import { Child } from '../support/child.js';
import { stagesOf, startServer, type TestServer } from '../support/commands.js';
import { FULL, roomyDirectory } from '../support/mode.js';
import { type TempDir, tempDir } from '../support/temp-dir.js';
import { crcText, crcTextOfFile, writeValueFile } from '../support/values.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;
const THRESHOLD = 32 * KIB;

/** 0 B, 1 B, the threshold with its neighbours, and what takes one and several extents. */
const ALL_SIZES = [0, 1, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, MIB + 7, 16 * MIB + 1, 100 * MIB, GIB];
const SIZES = FULL ? ALL_SIZES : [0, THRESHOLD + 1, 16 * MIB + 1];
/** By a path that the size would not take by itself. In the short form cli-client.test.ts has the edges, and inline-latency.test.ts moves 1 GiB inline. */
const FORCED_SIZES = { max: FULL ? ALL_SIZES : [MIB + 7], 0: FULL ? ALL_SIZES : [1, GIB] };

const RUN_TIMEOUT_MS = 60_000;

type Path = 'inline' | 'rdma';

/** How a path is demanded; undefined leaves it to the server's thresholds. */
type Threshold = 'max' | '0' | undefined;

function expectedPath(length: number, threshold: Threshold, own: number): Path {
  if (length === 0 || threshold === 'max') return 'inline';
  if (threshold === '0') return 'rdma';
  return length <= own ? 'inline' : 'rdma';
}

describe('a value goes into one process and comes back in another, byte for byte', () => {
  let server: TestServer;
  let dir: TempDir;
  /** For what is asked again and again around the commands; it moves no values. */
  let observer: KvClient;

  before(async () => {
    dir = await tempDir({ parent: roomyDirectory() });
    server = await startServer({ args: ['--memory', '1280MiB'] });
    observer = await KvClient.connect({ serverAddr: server.addr, provider: 'none' });
  });
  after(async () => {
    await observer?.close();
    await server?.[Symbol.asyncDispose]();
    await dir?.[Symbol.asyncDispose]();
  });

  /** put, stat, get in three processes, everything compared; then the value is deleted. */
  async function roundTrip(length: number, threshold: Threshold): Promise<void> {
    const key = `value-${length}-${threshold ?? 'default'}`;
    const source = dir.file('source');
    const target = dir.file('target');
    await writeValueFile(source, length, length + 1);
    const crc32c = await crcTextOfFile(source);
    const force = threshold === undefined ? [] : ['--inline-threshold', threshold];
    const common = [...force, '--json', '--log-level', 'debug', '--log-format', 'json', '--provider', 'tcp'];
    const before = (await observer.ping()).counters;

    const put = await server.client(['put', key, '--file', source, ...common], { timeoutMs: RUN_TIMEOUT_MS });
    assert.equal(put.code, 0, put.stderr);
    const putPath = expectedPath(length, threshold, THRESHOLD);
    const stored = put.json() as Record<string, unknown>;
    assert.deepEqual(
      { path: stored['path'], bytes: stored['bytes'], crc32c: stored['crc32c'] },
      { path: putPath, bytes: length, crc32c },
    );
    assert.equal(stagesOf(put.records).includes('put.write.submitted'), putPath === 'rdma', put.stderr);

    const stat = await observer.stat(key);
    assert.deepEqual(
      { length: stat?.length, version: String(stat?.version), crc32c: crcText(stat?.crc32c ?? -1) },
      { length, version: stored['version'], crc32c },
    );

    const get = await server.client(['get', key, '--out', target, ...common], { timeoutMs: RUN_TIMEOUT_MS });
    assert.equal(get.code, 0, get.stderr);
    const getPath = expectedPath(length, threshold, THRESHOLD);
    const got = get.json() as Record<string, unknown>;
    assert.deepEqual(
      { path: got['path'], bytes: got['bytes'], crc32c: got['crc32c'], version: got['version'] },
      { path: getPath, bytes: length, crc32c, version: stored['version'] },
    );
    const compared = await new Child('cmp', { args: [source, target] }).waitForEnd(RUN_TIMEOUT_MS);
    assert.equal(compared.code, 0, `cmp: ${compared.stdout.toString()}${compared.stderr}`);

    const requestId = get.records.find(({ stage }) => stage === 'get.done')?.requestId;
    assert.ok(requestId !== undefined, 'the client logged no get.done');
    const serverStages = server.stages(requestId);
    assert.equal(serverStages.includes('get.write.completed'), getPath === 'rdma', serverStages.join(' '));

    const after = (await observer.ping()).counters;
    const grown = (name: string): number => (after[name] ?? 0) - (before[name] ?? 0);
    assert.deepEqual(
      {
        putsInline: grown('putsInline'),
        putsRdma: grown('putsRdma'),
        bytesWrittenInline: grown('bytesWrittenInline'),
        bytesWrittenRdma: grown('bytesWrittenRdma'),
        getsInline: grown('getsInline'),
        getsRdma: grown('getsRdma'),
        bytesReadInline: grown('bytesReadInline'),
        bytesReadRdma: grown('bytesReadRdma'),
        railBytesWritten: grown('railBytesWritten'),
        keys: grown('keys'),
        valueBytes: grown('valueBytes'),
      },
      {
        putsInline: putPath === 'inline' ? 1 : 0,
        putsRdma: putPath === 'rdma' ? 1 : 0,
        bytesWrittenInline: putPath === 'inline' ? length : 0,
        bytesWrittenRdma: putPath === 'rdma' ? length : 0,
        getsInline: getPath === 'inline' ? 1 : 0,
        getsRdma: getPath === 'rdma' ? 1 : 0,
        bytesReadInline: getPath === 'inline' ? length : 0,
        bytesReadRdma: getPath === 'rdma' ? length : 0,
        railBytesWritten: getPath === 'rdma' ? length : 0,
        keys: 1,
        valueBytes: length,
      },
    );
    assert.equal(await observer.delete(key), true);
    await rm(target);
  }

  for (const length of SIZES) {
    test(`${length} bytes by the path of its size`, () => roundTrip(length, undefined));
  }
  for (const threshold of ['max', '0'] as const) {
    for (const length of FORCED_SIZES[threshold]) {
      test(`${length} bytes with --inline-threshold ${threshold}`, () => roundTrip(length, threshold));
    }
  }
  test('stat shows length, version and CRC-32C; ping --json the counters', async () => {
    const put = await server.client(['put', 'k', '123456789', '--json']);
    const stat = await server.client(['stat', 'k', '--json']);
    assert.equal(stat.code, 0, stat.stderr);
    const { bytes, version, crc32c, storedAt } = stat.json() as Record<string, unknown>;
    assert.deepEqual({ bytes, crc32c }, { bytes: 9, crc32c: 'e3069283' });
    assert.equal(version, (put.json() as Record<string, unknown>)['version']);
    assert.ok(Math.abs(Date.parse(String(storedAt)) - Date.now()) < 60_000);
    const counters = await server.counters();
    assert.deepEqual([counters['keys'], counters['valueBytes']], [1, 9]);
    assert.equal((await server.client(['delete', 'k'])).code, 0);
    assert.equal((await server.client(['stat', 'k'])).code, 1);
  });

  test('afterwards the store holds nothing, and reports it', async () => {
    const counters = await server.counters();
    assert.deepEqual(
      {
        keys: counters['keys'],
        valueBytes: counters['valueBytes'],
        memoryUsedBytes: counters['memoryUsedBytes'],
        windowsOpen: counters['windowsOpen'],
        failures: counters['failures'],
      },
      { keys: 0, valueBytes: 0, memoryUsedBytes: 0, windowsOpen: 0, failures: 0 },
    );
    const { memoryTotalBytes, memoryFreeBytes, memoryQuarantinedBytes } = counters;
    assert.equal((memoryFreeBytes ?? 0) + (memoryQuarantinedBytes ?? 0), memoryTotalBytes);
  });
});
