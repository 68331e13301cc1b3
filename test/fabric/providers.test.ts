import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { isIP } from 'node:net';
import { test } from 'node:test';
import { promisify } from 'node:util';
import {
  defaultSourceAddress,
  errnoName,
  FabricError,
  listEndpoints,
  loadLibfabric,
  openFabric,
  selectProviders,
  sourceAddressFor,
} from '../../src/fabric/index.js';

const run = promisify(execFile);
const FACE = new URL('../../src/fabric/index.js', import.meta.url).href;

/** Runs a script in a process of its own, whose environment differs; gives what it prints, parsed. */
async function elsewhere(environment: Record<string, string>, script: string): Promise<unknown> {
  const source = `const fabric = await import(${JSON.stringify(FACE)}); ${script}`;
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', source], {
    env: { ...process.env, ...environment },
    timeout: 20_000,
  });
  return JSON.parse(stdout);
}

test('libfabric is loaded once, and described', () => {
  const info = loadLibfabric();
  assert.match(info.path, /libfabric/);
  assert.match(info.version, /^\d+\.\d+$/);
  assert.match(info.apiVersion, /^\d+\.\d+$/);
  assert.equal(info.removalFlushes, true);
  assert.equal(loadLibfabric({ environment: { FI_LOG_LEVEL: 'debug' } }), info);
  assert.equal(process.env['FI_LOG_LEVEL'], undefined);
});

test('endpoints are listed, for everything or for one provider', async () => {
  const all = await listEndpoints();
  assert.ok(all.some((entry) => entry.provider === 'tcp;ofi_rxm'));
  const [tcp] = await listEndpoints({ provider: 'tcp;ofi_rxm', sourceAddress: '127.0.0.1' });
  assert.equal(tcp?.addressFormat, 'FI_SOCKADDR_IN');
  assert.match(tcp?.addressText ?? '', /^127\.0\.0\.1/);
  assert.ok((tcp?.maxMessageBytes ?? 0) > 0 && (tcp?.transmitCredits ?? 0) > 0);
});

test('auto considers every provider, best first, with reasons', async () => {
  const { chosen, considered } = await selectProviders({ choice: 'auto', sourceAddress: '127.0.0.1' });
  assert.deepEqual(
    considered.map(({ provider }) => provider),
    ['efa', 'verbs', 'tcp'],
  );
  assert.equal(chosen, considered.find(({ available }) => available)?.provider);
  for (const { available, reason } of considered) {
    assert.match(reason, available ? /is available/ : /fi_getinfo says ".+"; (this host|RDMA devices)/);
  }
});

test('a provider that is named and missing is an error', async (context) => {
  const { considered } = await selectProviders({ choice: 'auto' });
  if (considered[0]?.available === true) return context.skip('this host has EFA');
  await assert.rejects(selectProviders({ choice: 'efa' }), (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'PROVIDER_MISSING');
    assert.match(error.text, /no efa endpoint/);
    assert.ok(error.hint);
    return true;
  });
  await assert.rejects(openFabric({ choice: 'efa', sourceAddresses: [] }), { code: 'PROVIDER_MISSING' });
});

test('openFabric opens one rail per source address', async () => {
  const fabric = await openFabric({ choice: 'tcp', sourceAddresses: ['127.0.0.1', '127.0.0.2'] });
  assert.deepEqual(
    fabric.providers.map(({ name, rails }) => [name, rails.map(({ info }) => info.addressText.split(':')[0])]),
    [['tcp', ['127.0.0.1', '127.0.0.2']]],
  );
  assert.equal(fabric.missing, undefined);
  await fabric.close();
  await fabric.close();
  assert.equal(fabric.providers[0]?.rails[0]?.state, 'closed');
});

test('openFabric, auto: what cannot be had is said, not thrown', async () => {
  const fabric = await openFabric({ choice: 'auto', sourceAddresses: ['203.0.113.1'] });
  assert.ok(fabric.providers.length === 0 || fabric.considered[0]?.available);
  if (fabric.providers.length === 0) {
    assert.equal(fabric.missing?.code, 'PROVIDER_MISSING');
    assert.match(fabric.missing?.text ?? '', /203\.0\.113\.1/);
  }
  await fabric.close();
});

test('none never loads libfabric', async () => {
  const script = `
    const opened = await fabric.openFabric({ choice: 'none', sourceAddresses: [] });
    const { readFileSync } = await import('node:fs');
    console.log(JSON.stringify([opened.providers, readFileSync('/proc/self/maps', 'utf8').includes('libfabric')]));`;
  assert.deepEqual(await elsewhere({}, script), [[], false]);
});

test('without libfabric: auto degrades, a named provider fails, and both say what to install', async () => {
  const script = `
    const opened = await fabric.openFabric({ choice: 'auto', sourceAddresses: [] });
    const named = await fabric.openFabric({ choice: 'tcp', sourceAddresses: [] }).catch((error) => error);
    console.log(JSON.stringify([opened.providers, opened.missing.code, opened.missing.text, opened.missing.hint, named.code]));`;
  const result = await elsewhere({ FABRICKV_LIBFABRIC: '/nowhere/libfabric.so.1' }, script);
  const [providers, code, text, hint, named] = result as [unknown[], string, string, string, string];
  assert.deepEqual([providers, code, named], [[], 'LIBFABRIC_MISSING', 'LIBFABRIC_MISSING']);
  assert.match(text, /\/nowhere\/libfabric\.so\.1/);
  assert.match(hint, /apt-get install/);
});

test('without the addon: portable memory works, and the data plane says what is missing', async () => {
  const script = `
    const mapping = await fabric.mapMemory({ sizeBytes: 100, prefault: true });
    mapping.writeSync(0, Buffer.from('123456789'));
    const opened = await fabric.openFabric({ choice: 'auto', sourceAddresses: [] });
    const crc = await mapping.crc32c({ offset: 0, length: 9 });
    console.log(JSON.stringify([fabric.memoryBackend(), crc, fabric.crc32c(Buffer.from('123456789')), opened.missing.code]));`;
  const crc = 0xe3069283;
  assert.deepEqual(await elsewhere({ FABRICKV_ADDON: 'none' }, script), ['portable', crc, crc, 'ADDON_MISSING']);
});

test('source addresses are those of the route', async () => {
  assert.equal(await sourceAddressFor('127.0.0.1', 50_051), '127.0.0.1');
  assert.equal(await sourceAddressFor('127.1.2.3', 0), '127.0.0.1');
  assert.ok(isIP(await sourceAddressFor('localhost', 1)));
  assert.ok(isIP(await defaultSourceAddress()));
  await assert.rejects(sourceAddressFor('no-such-host.invalid', 1));
});

test('errno names', () => {
  assert.equal(errnoName(0), '');
  assert.equal(errnoName(125), 'ECANCELED');
  assert.equal(errnoName(266), 'FI_ENOKEY');
  assert.equal(errnoName(99_999), 'E99999');
});
