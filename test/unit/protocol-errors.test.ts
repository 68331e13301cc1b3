import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { ERRORS, type ErrorCode, FabricKvError, isErrorCode, toFabricKvError } from '../../src/protocol/errors.js';
import type { Failure__Output } from '../../src/protocol/generated/fabrickv/v1/Failure.js';
import { fromFailure, fromServiceError, toFailure, toStatus } from '../../src/protocol/rpc-errors.js';
import { ROOT } from '../support/paths.js';

const CODES = Object.keys(ERRORS).filter(isErrorCode);

function asServiceError(error: FabricKvError): ServiceError {
  const { code, details, metadata } = toStatus(error);
  return Object.assign(new Error(details), { name: 'ServiceError', code, details, metadata });
}

test('docs/errors.md is what the table says', async () => {
  const generator = (await import(pathToFileURL(`${ROOT}scripts/write-error-docs.mjs`).href)) as {
    errorDocs: () => string;
  };
  assert.equal(
    readFileSync(`${ROOT}docs/errors.md`, 'utf8'),
    generator.errorDocs(),
    'run: node scripts/write-error-docs.mjs',
  );
});

test('every code has a sentence, a remedy and a gRPC status that is an error', () => {
  for (const code of CODES) {
    const { summary, remedy, grpc } = ERRORS[code];
    assert.match(summary, /^(?:[A-Z]|libfabric).*\.$/, code);
    assert.match(remedy, /^(?:[A-Z]|libfabric).*\.$/, code);
    assert.notEqual(grpc as status, status.OK, code);
  }
});

test('an error survives a gRPC status with all that a peer may know', () => {
  for (const code of CODES) {
    const sent = new FabricKvError(code, 'what happened', {
      outcome: 'unknown',
      stage: 'put.verified',
      retryable: !ERRORS[code].retryable,
      details: { length: '17' },
    });
    const received = fromServiceError(asServiceError(sent));
    assert.ok(received !== undefined, code);
    assert.equal(received.code, code);
    assert.equal(received.message, code === 'ERR_FABRICKV_INTERNAL' ? ERRORS[code].summary : 'what happened');
    assert.equal(received.outcome, 'unknown');
    assert.equal(received.stage, 'put.verified');
    assert.equal(received.retryable, !ERRORS[code].retryable);
    assert.deepEqual({ ...received.details }, { length: '17' });
    assert.equal(received.remedy, ERRORS[code].remedy);
  }
});

test('what is not there stays away over a gRPC status', () => {
  const received = fromServiceError(asServiceError(new FabricKvError('ERR_FABRICKV_CAPACITY')));
  assert.equal(received?.outcome, undefined);
  assert.equal(received?.stage, undefined);
  assert.deepEqual({ ...received?.details }, {});
});

test('an error survives a Failure with all that a peer may know', () => {
  for (const outcome of [undefined, 'not-applied', 'unknown'] as const) {
    const sent = new FabricKvError('ERR_FABRICKV_CAPACITY', 'no room', {
      outcome,
      stage: 'put.received',
      retryable: false,
      details: { freeBytes: '0' },
    });
    const received = fromFailure(toFailure(sent) as Failure__Output);
    assert.equal(received.code, sent.code);
    assert.equal(received.message, sent.message);
    assert.equal(received.outcome, outcome);
    assert.equal(received.stage, sent.stage);
    assert.equal(received.retryable, false);
    assert.deepEqual(received.details, sent.details);
  }
});

test('a code of a later release becomes an internal error that names it', () => {
  const later = { ...toFailure(new FabricKvError('ERR_FABRICKV_CAPACITY', 'new')), code: 'ERR_FABRICKV_NEWER' };
  const received = fromFailure(later as Failure__Output);
  assert.equal(received.code, 'ERR_FABRICKV_INTERNAL');
  assert.match(received.message, /ERR_FABRICKV_NEWER: new/);
});

test("a defect's own text stays inside", () => {
  const defect = toFabricKvError(new TypeError('secret path /etc/thing'));
  assert.equal(defect.code, 'ERR_FABRICKV_INTERNAL');
  assert.doesNotMatch(JSON.stringify(toFailure(defect)), /secret/);
  assert.doesNotMatch(asServiceError(defect).details, /secret/);
});

test('what another server, or a proxy, puts into the status is not taken for an error of ours', () => {
  const foreign = (bytes: Buffer | undefined): ServiceError => {
    const metadata = new Metadata();
    if (bytes !== undefined) metadata.set('grpc-status-details-bin', bytes);
    return Object.assign(new Error('x'), { name: 'ServiceError', code: status.UNAVAILABLE, details: 'x', metadata });
  };
  assert.equal(fromServiceError(foreign(undefined)), undefined);
  assert.equal(fromServiceError(foreign(Buffer.from('not a protobuf at all, \xff\xff'))), undefined);
  assert.equal(fromServiceError(foreign(Buffer.alloc(0))), undefined);
});

test('what an error knew already stays when more becomes known', () => {
  const code: ErrorCode = 'ERR_FABRICKV_DEADLINE';
  const error = new FabricKvError(code, 'late', { stage: 'get.lookup', details: { a: '1' } });
  const more = error.with({ stage: 'get.done', peer: 'p', outcome: 'unknown', details: { a: '2', b: '3' } });
  assert.equal(more.code, code);
  assert.equal(more.stage, 'get.lookup');
  assert.equal(more.peer, 'p');
  assert.equal(more.outcome, 'unknown');
  assert.deepEqual(more.details, { a: '1', b: '3' });
  assert.equal(more.stack, error.stack);
});
