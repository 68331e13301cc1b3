import assert from 'node:assert/strict';
import { it } from 'node:test';
import { nearest } from '../../src/cli/suggestion.js';

it('suggests what is near, and nothing where nothing is', () => {
  const names = ['memory', 'max-value', 'max-sessions', 'listen-addr', 'get', 'put', 'ping'];
  assert.equal(nearest('memroy', names), 'memory');
  assert.equal(nearest('memory', names), 'memory');
  assert.equal(nearest('max-valu', names), 'max-value');
  assert.equal(nearest('listen', names), 'listen-addr');
  assert.equal(nearest('gte', names), 'get');
  assert.equal(nearest('pnig', names), 'ping');
  assert.equal(nearest('frobnicate', names), undefined);
  assert.equal(nearest('', names), undefined);
  assert.equal(nearest('x'.repeat(1000), names), undefined);
});
