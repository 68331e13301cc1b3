/**
 * The stores that a load is put on, each by the client that its users have.
 */

import { createRequire } from 'node:module';
import { Redis } from 'ioredis';
import memjs from 'memjs';
import { KvClient, type ValuePath } from '../src/client/index.js';
import { LIBFABRIC_PROVIDERS, loadLibfabric, type ProviderName } from '../src/fabric/index.js';
import type { WorkloadTarget } from '../src/workload/target.js';
import type { ConnectedTarget, LoadTargetOptions } from './load-messages.js';

const TIMEOUT_SECONDS = 60;

/** What is put under load, and what it is. */
export interface LoadTarget extends WorkloadTarget {
  readonly about: ConnectedTarget;
}

/** Connects. @throws Error when the store does not answer */
export function connectTarget(options: LoadTargetOptions): Promise<LoadTarget> {
  switch (options.kind) {
    case 'fabrickv':
      return connectFabricKv(options);
    case 'redis':
      return connectRedis(options);
    case 'memcached':
      return connectMemcached(options);
  }
}

type OptionsOf<Kind> = Extract<LoadTargetOptions, { readonly kind: Kind }>;

async function connectFabricKv({ options, path }: OptionsOf<'fabrickv'>): Promise<LoadTarget> {
  const kv = await KvClient.connect({ clientName: 'bench', ...options });
  const { serverVersion, provider } = kv.connection;
  const settings = Object.entries(options).filter(([name]) => name !== 'serverAddr');
  return {
    about: {
      server: `FabricKV ${serverVersion}`,
      client: ['KvClient', ...settings.map(([name, value]) => `${name} ${String(value)}`)].join(', '),
      provider: provider === undefined ? 'none' : (LIBFABRIC_PROVIDERS[provider as ProviderName] ?? provider),
      libfabric: provider === undefined ? 'none' : loadLibfabric().version,
    },
    async get(key) {
      const value = await kv.get(key);
      if (value === undefined) return -1;
      if (path !== undefined) assertPath(value.path, path);
      const { length } = value.bytes;
      value.release();
      return length;
    },
    async put(key, value) {
      const info = await kv.put(key, value);
      if (path !== undefined) assertPath(info.path, path);
    },
  };
}

function assertPath(actual: ValuePath, wanted: ValuePath): void {
  if (actual !== wanted) throw new Error(`a value travelled ${actual}, not ${wanted}`);
}

async function connectRedis({ host, port, autoPipelining }: OptionsOf<'redis'>): Promise<LoadTarget> {
  const redis = new Redis({
    host,
    port,
    enableAutoPipelining: autoPipelining,
    lazyConnect: true,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
  });
  // Each call rejects with it too; without a listener, ioredis writes it to the console.
  redis.on('error', () => undefined);
  await redis.connect();
  const version = /^redis_version:(\S+)/m.exec(await redis.info('server'))?.[1] ?? 'of unknown version';
  return {
    about: {
      server: `Redis ${version}`,
      client: `ioredis ${packageVersion('ioredis')}${autoPipelining ? ', enableAutoPipelining' : ''}`,
      provider: 'none',
      libfabric: 'none',
    },
    // Keys as text: that is what its users have, and what ioredis is quicker with.
    async get(key) {
      const value = await redis.getBuffer(key.toString('latin1'));
      return value === null ? -1 : value.length;
    },
    async put(key, value) {
      await redis.set(key.toString('latin1'), value);
    },
  };
}

async function connectMemcached({ host, port }: OptionsOf<'memcached'>): Promise<LoadTarget> {
  // What fails is not tried again: that would be another measurement.
  const client = memjs.Client.create(`${host}:${port}`, { timeout: TIMEOUT_SECONDS, retries: 0 });
  const version = await new Promise<string>((resolve, reject) => {
    client.stats((error, _server, stats) => {
      if (stats === null || error !== null) reject(error ?? new Error('memcached does not say its version'));
      else resolve(stats['version'] ?? 'of unknown version');
    });
  });
  return {
    about: {
      server: `memcached ${version}`,
      client: `memjs ${packageVersion('memjs')}`,
      provider: 'none',
      libfabric: 'none',
    },
    async get(key) {
      const { value } = await client.get(key.toString('latin1'));
      return value === null ? -1 : value.length;
    },
    async put(key, value) {
      if (!(await client.set(key.toString('latin1'), value, { expires: 0 })))
        throw new Error('memcached kept no value');
    },
  };
}

/** Of a package that is installed here. */
function packageVersion(name: string): string {
  return (createRequire(import.meta.url)(`${name}/package.json`) as { readonly version: string }).version;
}
