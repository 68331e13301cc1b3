import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { clientSettings } from '../../src/cli/client-settings.js';
import { resolveServerSettings, serverSettings } from '../../src/cli/server-settings.js';
import { resolveSettings, type SettingInputs, variableOf } from '../../src/cli/settings.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { tempDir } from '../support/temp-dir.js';

function server(inputs: Partial<SettingInputs>) {
  return resolveServerSettings({ flags: {}, env: {}, ...inputs });
}

/** The error that a call throws. */
function errorOf(call: () => unknown): FabricKvError {
  try {
    call();
  } catch (error) {
    assert.ok(error instanceof FabricKvError);
    return error;
  }
  assert.fail('it did not throw');
}

describe('settings', () => {
  it('has defaults that its own schemas take', () => {
    const { values, entries } = server({});
    assert.equal(values['listen-addr'], '127.0.0.1:50051');
    assert.equal(values.memory, 1024 ** 3);
    assert.equal(values['inline-threshold'], undefined);
    assert.deepEqual(values['fabric-addr'], []);
    assert.deepEqual(values['fabric-option'], {});
    assert.equal(values.drain, 10_000);
    assert.equal(values['redact-keys'], false);
    assert.deepEqual(
      [values.rails, values['spin-us'], values['progress-cpus'], values['numa-node'], values['max-quarantine']],
      ['auto', 'auto', undefined, undefined, undefined],
    );
    assert.ok(entries.every(({ source }) => source.kind === 'default'));
    assert.deepEqual(
      entries.map(({ name }) => name),
      Object.keys(serverSettings),
    );
    const client = resolveSettings(clientSettings, { flags: {}, env: {} }).values;
    assert.equal(client.timeout, 30_000);
    assert.equal(client['log-level'], 'error');
  });

  it('takes the flag before the variable before the file before the default, and tells which', async () => {
    await using dir = await tempDir();
    const config = dir.file('config.json');
    await writeFile(config, JSON.stringify({ memory: '1MiB', drain: '1s', 'max-sessions': 7, provider: 'tcp' }));
    const { values, entries } = server({
      flags: { memory: '3MiB', config },
      env: { FABRICKV_MEMORY: '2MiB', FABRICKV_DRAIN: '2s' },
    });
    assert.deepEqual(
      [values.memory, values.drain, values['max-sessions'], values.provider, values['max-waiting']],
      [3 * 1024 ** 2, 2000, 7, 'tcp', 4096],
    );
    const source = (name: string) => entries.find((entry) => entry.name === name)?.source;
    assert.deepEqual(source('memory'), { kind: 'flag', name: '--memory' });
    assert.deepEqual(source('drain'), { kind: 'variable', name: 'FABRICKV_DRAIN' });
    assert.deepEqual(source('max-sessions'), { kind: 'file', name: 'max-sessions', path: config });
    assert.deepEqual(source('max-waiting'), { kind: 'default' });
  });

  it('finds the file by FABRICKV_CONFIG too', async () => {
    await using dir = await tempDir();
    const config = dir.file('config.json');
    await writeFile(
      config,
      '{"redact-keys": true, "fabric-addr": ["10.0.0.1", "10.0.0.2"], "fabric-option": "FI_A=1"}',
    );
    const { values } = server({ env: { FABRICKV_CONFIG: config } });
    assert.equal(values['redact-keys'], true);
    assert.deepEqual(values['fabric-addr'], ['10.0.0.1', '10.0.0.2']);
    assert.deepEqual(values['fabric-option'], { FI_A: '1' });
  });

  it('reads variables of lists and switches, and takes an empty one for none', () => {
    const { values } = server({
      env: {
        FABRICKV_FABRIC_ADDR: '10.0.0.1  10.0.0.2',
        FABRICKV_FABRIC_OPTION: 'FI_A=1 FI_B=2',
        FABRICKV_REDACT_KEYS: 'yes',
        FABRICKV_MEMORY: '',
      },
    });
    assert.deepEqual(values['fabric-addr'], ['10.0.0.1', '10.0.0.2']);
    assert.deepEqual(values['fabric-option'], { FI_A: '1', FI_B: '2' });
    assert.equal(values['redact-keys'], true);
    assert.equal(values.memory, 1024 ** 3);
    assert.equal(server({ env: { FABRICKV_REDACT_KEYS: '0' } }).values['redact-keys'], false);
  });

  it('reads what shapes the rails from flags, variables and the file', async () => {
    await using dir = await tempDir();
    const config = dir.file('config.json');
    await writeFile(
      config,
      '{"rails": 2, "spin-us": 0, "progress-cpus": "7", "numa-node": 1, "max-quarantine": "1MiB"}',
    );
    const shaping = ({ values }: ReturnType<typeof server>) => [
      values.rails,
      values['spin-us'],
      values['progress-cpus'],
      values['numa-node'],
      values['max-quarantine'],
    ];
    assert.deepEqual(shaping(server({ flags: { config } })), [2, 0, [7], 1, 1024 ** 2]);
    const env = {
      FABRICKV_RAILS: '10.0.0.1, fe80::1%eth0',
      FABRICKV_SPIN_US: 'AUTO',
      FABRICKV_PROGRESS_CPUS: '3,8-10,1',
      FABRICKV_NUMA_NODE: '0',
      FABRICKV_MAX_QUARANTINE: '2MiB',
    };
    const expected = [['10.0.0.1', 'fe80::1%eth0'], 'auto', [3, 8, 9, 10, 1], 0, 2 * 1024 ** 2];
    assert.deepEqual(shaping(server({ flags: { config }, env })), expected);
    const flags = { rails: 'rdmap0s6-rdm', 'spin-us': '50' };
    assert.deepEqual(shaping(server({ flags, env })), [['rdmap0s6-rdm'], 50, ...expected.slice(2)]);
  });

  it('names the setting, its source and the remedy of what is wrong', async () => {
    await using dir = await tempDir();
    const config = dir.file('config.json');
    await writeFile(config, '{"memory": "lots"}');
    for (const [inputs, message] of [
      [{ flags: { memory: 'lots' } }, 'memory (from --memory): "lots" is not a size'],
      [{ env: { FABRICKV_MEMORY: 'lots' } }, 'memory (from FABRICKV_MEMORY): "lots" is not a size'],
      [{ flags: { config } }, `memory (from "memory" in ${config}): "lots" is not a size`],
      [{ flags: { memory: ['1MiB', '2MiB'] } }, 'memory (from --memory): it is given 2 times'],
      [
        { env: { FABRICKV_REDACT_KEYS: 'perhaps' } },
        'redact-keys (from FABRICKV_REDACT_KEYS): "perhaps" is neither true nor false',
      ],
      [
        { flags: { memory: '1GiB', 'max-value': '2GiB' } },
        'max-value (from --max-value): 2GiB is more than --memory, which is 1GiB',
      ],
    ] as const) {
      const error = errorOf(() => server(inputs));
      assert.equal(error.code, 'ERR_FABRICKV_SETTING');
      assert.equal(error.message, message);
      assert.ok(error.remedy.length > 5, error.remedy);
    }
  });

  it('refuses files that are missing, no JSON, no object, or have entries that nobody knows', async () => {
    await using dir = await tempDir();
    const config = dir.file('config.json');
    const fail = (): FabricKvError => errorOf(() => server({ flags: { config } }));
    assert.match(fail().message, /^config \(from --config\): cannot read/);
    await mkdir(config);
    assert.match(fail().message, /cannot read/);
    const other = dir.file('other.json');
    for (const [text, message] of [
      ['{', /is not JSON/],
      ['[]', /is no JSON object/],
      ['null', /is no JSON object/],
      ['{"memroy": "1GiB"}', /unknown entry "memroy"/],
      ['{"memory": true}', /memory \(from "memory" in .*\): true has the wrong type/],
      ['{"redact-keys": "yes"}', /has the wrong type/],
      ['{"fabric-addr": [1]}', /has the wrong type/],
    ] as const) {
      await writeFile(other, text);
      const error = errorOf(() => server({ flags: { config: other } }));
      assert.equal(error.code, 'ERR_FABRICKV_SETTING');
      assert.match(error.message, message);
    }
    await writeFile(other, '{"memroy": "1GiB"}');
    assert.match(errorOf(() => server({ flags: { config: other } })).remedy, /is it "memory"\?/);
  });

  it('names variables after flags', () => {
    assert.equal(variableOf('listen-addr'), 'FABRICKV_LISTEN_ADDR');
  });

  it('shows values so that they can be given again', () => {
    for (const [flag, given] of [
      ['memory', '3MiB'],
      ['memory', '1048577'],
      ['inline-threshold', 'max'],
      ['inline-threshold', '0'],
      ['drain', '250ms'],
      ['drain', '0'],
      ['rails', 'auto'],
      ['rails', '3'],
      ['rails', 'eth0, 10.0.0.1'],
      ['spin-us', 'auto'],
      ['spin-us', '100'],
      ['progress-cpus', '4,0-2'],
      ['numa-node', '0'],
      ['max-quarantine', '5000'],
    ] as const) {
      const first = server({ flags: { [flag]: given } });
      const shown = first.entries.find(({ name }) => name === flag)?.value;
      const second = server({ flags: { [flag]: shown } });
      assert.deepEqual(second.values, first.values, `${flag} ${given} → ${shown}`);
    }
  });
});
