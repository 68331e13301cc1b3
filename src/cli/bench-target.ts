/**
 * The SDK as kv-client bench loads it, and the end of the keys that it put.
 */

import type { KvClient, KvValue } from '../client/index.js';
import { toFabricKvError } from '../protocol/errors.js';
import { workloadKeys } from '../workload/keys.js';
import type { WorkloadTarget } from '../workload/target.js';
import type { KeysLeft } from './bench-result.js';

/** GETs and PUTs of a client, as an application makes them. */
export class BenchTarget implements WorkloadTarget {
  putsBegun = 0;
  putsDone = 0;
  readonly #client: KvClient;
  readonly #onPut = (): void => {
    this.putsDone += 1;
  };

  constructor(client: KvClient) {
    this.#client = client;
  }

  get(key: Buffer): Promise<number> {
    return this.#client.get(key).then(lengthOf);
  }

  put(key: Buffer, value: Buffer): Promise<void> {
    this.putsBegun += 1;
    return this.#client.put(key, value).then(this.#onPut);
  }
}

function lengthOf(value: KvValue | undefined): number {
  if (value === undefined) return -1;
  const { length } = value;
  value.release();
  return length;
}

/** Which keys to remove, and how. */
export interface RemoveOptions {
  readonly keys: number;
  readonly keyPrefix: string;
  /** How many PUTs were begun, from the first key on: what was not put is not ours to delete. */
  readonly begun: number;
  readonly concurrency: number;
}

/** Deletes keys until one cannot be deleted; never rejects. */
export async function removeKeys(
  client: KvClient,
  { keys, keyPrefix, begun, concurrency }: RemoveOptions,
): Promise<KeysLeft> {
  const put = workloadKeys({ keys, keyPrefix }).slice(0, begun).values();
  const left = { deleted: 0, failure: undefined as KeysLeft['failure'] };
  const work = async (): Promise<void> => {
    for (const key of put) {
      if (left.failure !== undefined) return;
      try {
        if (await client.delete(key)) left.deleted += 1;
      } catch (error) {
        left.failure ??= toFabricKvError(error);
      }
    }
  };
  await Promise.all(Array.from({ length: concurrency }, work));
  return left;
}
