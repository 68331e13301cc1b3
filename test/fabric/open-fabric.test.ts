import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type Fabric,
  FabricError,
  listEndpoints,
  mapMemory,
  type OpenFabricOptions,
  openFabric,
  type Rail,
} from '../../src/fabric/index.js';

const ADDRESSES = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];

const open = (options: Partial<OpenFabricOptions>): Promise<Fabric> =>
  openFabric({ choice: 'tcp', sourceAddresses: ADDRESSES, ...options });

const addresses = (fabric: Fabric): string[] =>
  (fabric.providers[0]?.rails ?? []).map(({ info }) => info.addressText.replace(/:\d+$/, ''));

function first(fabric: Fabric): Rail {
  const rail = fabric.providers[0]?.rails[0];
  assert.ok(rail);
  return rail;
}

const hasCode =
  (code: string) =>
  (error: unknown): boolean =>
    error instanceof FabricError && error.code === code;

test('rails: every place, the first so many, or those that are named, in their order', async () => {
  const { domain } = (await listEndpoints({ provider: 'tcp;ofi_rxm', sourceAddress: '127.0.0.1' }))[0] ?? {};
  assert.ok(domain);
  for (const [rails, expected] of [
    ['auto', ADDRESSES],
    [2, ADDRESSES.slice(0, 2)],
    [99, ADDRESSES],
    [
      ['127.0.0.9', '127.0.0.1'],
      ['127.0.0.9', '127.0.0.1'],
    ],
  ] as const) {
    const fabric = await open({ rails });
    assert.deepEqual(addresses(fabric), expected);
    await fabric.close();
  }
  const named = await open({ rails: [domain] });
  assert.equal(named.providers[0]?.rails.length, 1);
  assert.equal(first(named).info.domain, domain);
  await named.close();
});

test('rails: a name that nothing has is an error that says what there is', async () => {
  await assert.rejects(open({ rails: ['127.0.0.1', 'nonesuch0'] }), (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'PROVIDER_MISSING');
    assert.match(error.text, /"nonesuch0"; there is .*127\.0\.0\.1/);
    assert.ok(error.hint);
    return true;
  });
  const auto = await open({ choice: 'auto', rails: ['nonesuch0'] });
  assert.deepEqual(auto.providers, []);
  assert.match(auto.missing?.text ?? '', /nonesuch0/);
  await assert.rejects(open({ rails: ['203.0.113.1'] }), hasCode('PROVIDER_MISSING'));
  for (const rails of [0, -1, 1.5, []]) await assert.rejects(open({ rails }), hasCode('INVALID_ARGUMENT'));
});

test('cpus bind the progress threads in turn; one that is not there is refused', async () => {
  const fabric = await open({ cpus: [0] });
  assert.equal(fabric.providers[0]?.rails.length, 3);
  await fabric.close();
  await assert.rejects(open({ rails: 1, cpus: [100_000] }), (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.call, 'pthread_setaffinity_np');
    assert.equal(error.errnoName, 'EINVAL');
    assert.match(error.text, /CPU 100000/);
    return true;
  });
  await assert.rejects(open({ cpus: [-1] }), hasCode('INVALID_ARGUMENT'));
});

test('replaceRail opens another endpoint at the same place; the old one works until it is closed', async () => {
  const fabric = await open({ rails: 2, spinUs: 0 });
  const old = first(fabric);
  const replacement = await fabric.replaceRail(old);
  assert.equal(first(fabric), replacement);
  assert.deepEqual(addresses(fabric), ADDRESSES.slice(0, 2));
  assert.notDeepEqual(replacement.info.address, old.info.address);
  assert.equal(old.state, 'open');
  await old.insertPeer(replacement.info.address);
  await assert.rejects(fabric.replaceRail(old), hasCode('INVALID_ARGUMENT'));
  await old.close();
  const [one, other] = await Promise.allSettled([fabric.replaceRail(replacement), fabric.replaceRail(replacement)]);
  assert.notEqual(one.status, other.status, 'one of the two is refused');
  await fabric.close();
  assert.equal(first(fabric).state, 'closed');
  assert.equal(replacement.state, 'closed');
  await assert.rejects(fabric.replaceRail(first(fabric)), hasCode('RAIL_CLOSED'));
});

test('a rail that was closed in its place can be replaced still, after another was', async () => {
  const fabric = await open({ rails: 2, spinUs: 0 });
  const [closed, other] = fabric.providers[0]?.rails ?? [];
  assert.ok(closed !== undefined && other !== undefined);
  await closed.close();
  await fabric.replaceRail(other);
  const replacement = await fabric.replaceRail(closed);
  assert.equal(first(fabric), replacement);
  await fabric.close();
  assert.equal(other.state, 'closed');
});

test('forceQuiescence and spinUs reach the rails', async () => {
  const fabric = await open({ rails: 1, spinUs: 'auto', forceQuiescence: 'close-endpoint' });
  assert.equal(first(fabric).info.quiescence, 'close-endpoint');
  await fabric.close();
});

test('memory comes from the NUMA node that is named', async () => {
  const mapping = await mapMemory({ sizeBytes: 4096, prefault: true, numaNode: 0 });
  mapping.close();
  await assert.rejects(mapMemory({ sizeBytes: 4096, prefault: true, numaNode: 1023 }), (error) => {
    assert.ok(error instanceof FabricError);
    assert.equal(error.code, 'MAPPING_FAILED');
    assert.equal(error.call, 'mbind');
    assert.match(error.hint ?? '', /NUMA node 1023/);
    return true;
  });
  await assert.rejects(mapMemory({ sizeBytes: 4096, prefault: true, numaNode: -1 }), hasCode('INVALID_ARGUMENT'));
});
