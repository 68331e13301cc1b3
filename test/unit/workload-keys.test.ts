import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { createKeyChooser } from '../../src/workload/key-chooser.js';
import { workloadKeys, workloadValue } from '../../src/workload/keys.js';
import { Random } from '../../src/workload/random.js';
import { scramble, ZIPFIAN_THETA, ZipfianRanks, zeta } from '../../src/workload/zipfian.js';

const SEED = 20_240_607;

/** Within five standard deviations of a binomial share: by chance less than once in a million, and the seed is fixed. */
function assertShare(hits: number, draws: number, share: number, what: string): void {
  const tolerance = 5 * Math.sqrt((share * (1 - share)) / draws);
  const seen = hits / draws;
  assert.ok(Math.abs(seen - share) <= tolerance, `${what}: ${seen} is not ${share} ± ${tolerance}`);
}

describe('zipfian keys', () => {
  const KEYS = 10_000;
  const DRAWS = 400_000;

  it('ranks come as often as the formula says', () => {
    const ranks = new ZipfianRanks(KEYS, new Random(SEED));
    const hits = new Uint32Array(KEYS);
    for (let draw = 0; draw < DRAWS; draw++) {
      const rank = ranks.next();
      assert.ok(Number.isInteger(rank) && rank >= 0 && rank < KEYS, `rank ${rank}`);
      hits[rank] = (hits[rank] ?? 0) + 1;
    }
    assert.equal(ZIPFIAN_THETA, 0.99);
    // The first two are Zipf's law itself.
    const sum = zeta(KEYS);
    assertShare(hits[0] ?? 0, DRAWS, 1 / sum, 'rank 0');
    assertShare(hits[1] ?? 0, DRAWS, 0.5 ** ZIPFIAN_THETA / sum, 'rank 1');
    // For the others, Gray et al. invert n * (eta * u - eta + 1) ^ alpha: this is its inverse.
    const eta = (1 - (2 / KEYS) ** (1 - ZIPFIAN_THETA)) / (1 - zeta(2) / sum);
    for (const rank of [2, 3, 10, 100, 1000, 5000, KEYS - 2]) {
      const below = hits.subarray(0, rank + 1).reduce((all, count) => all + count, 0);
      const share = 1 - (1 - ((rank + 1) / KEYS) ** (1 - ZIPFIAN_THETA)) / eta;
      assertShare(below, DRAWS, share, `ranks up to ${rank}`);
      // And the curve is close to the law.
      assert.ok(Math.abs(share - zeta(rank + 1) / sum) < 0.02, `rank ${rank}: ${share} and ${zeta(rank + 1) / sum}`);
    }
  });

  it('ranks are scattered over all keys, one each', () => {
    for (const keys of [1, 2, 3, 7, 64, 1000, 65_536, 100_003]) {
      const taken = new Uint8Array(keys);
      for (let rank = 0; rank < keys; rank++) {
        const key = scramble(rank, keys);
        assert.ok(key >= 0 && key < keys && taken[key] === 0, `${keys} keys: rank ${rank} is key ${key}`);
        taken[key] = 1;
      }
    }
    // The ten most frequent lie apart.
    const first = Array.from({ length: 10 }, (_, rank) => scramble(rank, KEYS)).sort((a, b) => a - b);
    assert.ok(
      first.every((key, index) => index === 0 || key - (first[index - 1] ?? 0) > 1),
      `neighbours among ${first}`,
    );
  });

  it('the chooser takes the most frequent key as often as its rank', () => {
    const chooser = createKeyChooser('zipfian', 1000, new Random(SEED));
    const [draws, hottest] = [65_536, scramble(0, 1000)];
    let hits = 0;
    for (let draw = 0; draw < draws; draw++) if (chooser.next() === hottest) hits += 1;
    assertShare(hits, draws, 1 / zeta(1000), 'the hottest key');
  });

  it('a few keys are no exception', () => {
    for (const keys of [1, 2, 3]) {
      const chooser = createKeyChooser('zipfian', keys, new Random(SEED));
      const seen = new Set(Array.from({ length: 1000 }, () => chooser.next()));
      assert.deepEqual(
        [...seen].sort((a, b) => a - b),
        Array.from({ length: keys }, (_, index) => index),
      );
    }
  });
});

describe('other keys', () => {
  it('uniform: each as often as any other', () => {
    const chooser = createKeyChooser('uniform', 16, new Random(SEED));
    const hits = new Uint32Array(16);
    for (let draw = 0; draw < 160_000; draw++) {
      const index = chooser.next();
      hits[index] = (hits[index] ?? 0) + 1;
    }
    for (const [index, count] of hits.entries()) assertShare(count, 160_000, 1 / 16, `key ${index}`);
  });

  it('sequential: one after the other, and again', () => {
    const chooser = createKeyChooser('sequential', 3, new Random(SEED));
    assert.deepEqual(
      Array.from({ length: 7 }, () => chooser.next()),
      [0, 1, 2, 0, 1, 2, 0],
    );
  });
});

describe('keys and values', () => {
  it('keys are as long as the last one, so that they sort by their number', () => {
    const keys = workloadKeys({ keys: 11, keyPrefix: 'bench:' });
    assert.deepEqual([String(keys[0]), String(keys[10]), keys.length], ['bench:00', 'bench:10', 11]);
    assert.equal(String(workloadKeys({ keys: 10, keyPrefix: '' })[9]), '9');
  });

  it('values are random, whole, and the same for a seed', () => {
    for (const valueBytes of [0, 1, 100, 1024 * 1024, 3 * 1024 * 1024 + 5]) {
      const value = workloadValue({ valueBytes, seed: 1 });
      assert.equal(value.length, valueBytes);
      assert.ok(value.equals(workloadValue({ valueBytes, seed: 1 })));
      if (valueBytes < 100) continue;
      assert.ok(!value.equals(workloadValue({ valueBytes, seed: 2 })));
      // The end of what is filled by copying is no more empty than its beginning.
      assert.ok(new Set(value.subarray(-100)).size > 50, `${valueBytes} bytes`);
    }
  });
});
