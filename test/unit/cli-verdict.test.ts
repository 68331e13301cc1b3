import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  judge,
  type ObservedError,
  type ProbeFacts,
  type ProbeStep,
  type StepObservation,
  verdictText,
} from '../../src/diagnosis/verdict.js';
import type { ErrorCode } from '../../src/protocol/errors.js';

const facts: ProbeFacts = { serverAddr: '10.0.0.2:50051', provider: 'tcp' };

const GET_CLIENT = ['get.start', 'get.buffer.allocated', 'get.location.created', 'get.request.sent'];
const GET_SERVER = ['get.received', 'get.lookup', 'get.found', 'get.transfer.created', 'get.write.submitted'];
const PUT_CLIENT = ['put.start', 'put.grant.requested', 'put.grant.received', 'put.write.submitted'];

function ok(step: ProbeStep, path?: 'rdma' | 'inline'): StepObservation {
  return { step, outcome: 'ok', path, ms: 1, clientStages: [] };
}

function failed(
  step: ProbeStep,
  code: ErrorCode,
  more: Partial<StepObservation> & { readonly says?: Partial<ObservedError> } = {},
): StepObservation {
  const { says, ...rest } = more;
  return { step, outcome: 'failed', ms: 10_000, clientStages: [], error: { code, message: 'why', ...says }, ...rest };
}

const CONNECTED = [ok('connect'), ok('put-small', 'inline')];

describe('verdict of the contrast probe', () => {
  it('finds nothing wrong when both ways work', () => {
    const verdict = judge(
      [...CONNECTED, ok('put-large', 'rdma'), ok('get-rdma', 'rdma'), ok('get-inline', 'inline')],
      facts,
    );
    assert.equal(verdict.plane, 'none');
    assert.equal(verdict.exitCode, 0);
    assert.equal(verdict.lastStage, undefined);
    assert.match(verdictText(verdict), /^VERDICT: nothing is wrong\n/);
  });

  it('blames the control plane when there is no connection', () => {
    const verdict = judge(
      [failed('connect', 'ERR_FABRICKV_CONNECT', { says: { message: 'connection refused' } })],
      facts,
    );
    assert.equal(verdict.plane, 'control plane');
    assert.equal(verdict.exitCode, 3);
    assert.match(verdict.summary, /10\.0\.0\.2:50051.*connection refused/);
    assert.match(verdict.checks.join('\n'), /nc -vz 10\.0\.0\.2 50051/);
  });

  it('tells a server that is none of ours, and one of another release', () => {
    const other = judge([failed('connect', 'ERR_FABRICKV_NOT_FABRICKV')], facts);
    assert.deepEqual([other.plane, other.exitCode], ['control plane', 3]);
    assert.match(other.checks.join(), /something else listens/);
    const future = judge([failed('connect', 'ERR_FABRICKV_PROTOCOL_VERSION')], facts);
    assert.deepEqual([future.plane, future.exitCode], ['control plane', 3]);
    assert.match(future.checks.join(), /releases on both sides/);
  });

  it('blames the data plane of this machine when a provider that was named is missing', () => {
    const verdict = judge([failed('connect', 'ERR_FABRICKV_PROVIDER_MISSING')], facts);
    assert.deepEqual([verdict.plane, verdict.exitCode], ['data plane', 5]);
    assert.match(verdict.checks.join(), /fi_info/);
  });

  it('blames the data plane when a GET stops at get.write.submitted and the same GET works inline', () => {
    const verdict = judge(
      [
        ...CONNECTED,
        ok('put-large', 'rdma'),
        failed('get-rdma', 'ERR_FABRICKV_DEADLINE', {
          clientStages: [...GET_CLIENT, 'get.quarantined', 'get.failed'],
          serverStages: GET_SERVER,
          says: { stage: 'get.request.sent' },
        }),
        ok('get-inline', 'inline'),
      ],
      facts,
    );
    assert.equal(verdict.plane, 'data plane');
    assert.equal(verdict.exitCode, 5);
    assert.match(verdict.summary, /posted its RDMA write, and it never completed/);
    assert.match(verdict.summary, /from the server to here/);
    assert.equal(
      verdict.lastStage,
      'client get.request.sent ("GET: Sent gRPC request"); server get.write.submitted ("GET: Submitted RDMA write")',
    );
    assert.match(verdict.checks[0] ?? '', /firewall or security group/);
  });

  it("says the same without the server's log, and asks for it", () => {
    const verdict = judge(
      [
        ...CONNECTED,
        ok('put-large', 'rdma'),
        failed('get-rdma', 'ERR_FABRICKV_DEADLINE', { clientStages: GET_CLIENT }),
        ok('get-inline', 'inline'),
      ],
      facts,
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['data plane', 5]);
    assert.equal(verdict.lastStage, 'client get.request.sent ("GET: Sent gRPC request")');
    assert.match(verdict.checks.join('\n'), /server's log: whether its last stage is get\.write\.submitted/);
  });

  it('blames both ways when neither the PUT nor the GET goes by RDMA', () => {
    const verdict = judge(
      [
        ...CONNECTED,
        failed('put-large', 'ERR_FABRICKV_DATA_PLANE', { clientStages: PUT_CLIENT }),
        ok('put-large-inline', 'inline'),
        failed('get-rdma', 'ERR_FABRICKV_DATA_PLANE', { clientStages: GET_CLIENT, serverStages: GET_SERVER }),
        ok('get-inline', 'inline'),
      ],
      facts,
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['data plane', 5]);
    assert.match(verdict.summary, /both ways/);
  });

  it('blames the way to the server when a PUT has its grant and its write does not complete', () => {
    const verdict = judge(
      [
        ...CONNECTED,
        failed('put-large', 'ERR_FABRICKV_DEADLINE', {
          clientStages: [...PUT_CLIENT, 'put.failed'],
          serverStages: ['put.received', 'put.allocated', 'put.granted'],
        }),
        ok('put-large-inline', 'inline'),
        ok('get-rdma', 'rdma'),
        ok('get-inline', 'inline'),
      ],
      facts,
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['data plane', 5]);
    assert.match(verdict.summary, /granted memory for a PUT, but the RDMA write over tcp never completed/);
    assert.match(verdict.summary, /from here to the server/);
    assert.equal(
      verdict.lastStage,
      'client put.write.submitted ("PUT: Submitted RDMA write"); server put.granted ("PUT: Granted extents for writing")',
    );
  });

  it('tells a PUT that was written but not published from one that was not written', () => {
    const verdict = judge(
      [
        ...CONNECTED,
        failed('put-large', 'ERR_FABRICKV_DEADLINE', {
          clientStages: [...PUT_CLIENT, 'put.write.completed', 'put.commit.sent'],
        }),
        ok('put-large-inline', 'inline'),
        ok('get-rdma', 'rdma'),
        ok('get-inline', 'inline'),
      ],
      facts,
    );
    assert.equal(verdict.exitCode, 5);
    assert.match(verdict.summary, /did not publish/);
  });

  it('blames the control plane when a large PUT gets no grant in its time', () => {
    const verdict = judge(
      [
        ...CONNECTED,
        failed('put-large', 'ERR_FABRICKV_DEADLINE', { clientStages: ['put.start', 'put.grant.requested'] }),
        ok('put-large-inline', 'inline'),
        ok('get-rdma', 'rdma'),
        ok('get-inline', 'inline'),
      ],
      facts,
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['control plane', 3]);
    assert.match(verdict.lastStage ?? '', /put\.grant\.requested/);
  });

  it('tells an inline-only session, with its reason', () => {
    const verdict = judge(
      [...CONNECTED, ok('put-large', 'inline'), ok('get-rdma', 'inline'), ok('get-inline', 'inline')],
      { serverAddr: 'a:1', provider: undefined, inlineOnlyReason: 'the server was started with --provider none' },
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['data plane', 5]);
    assert.match(verdict.summary, /--provider none/);
    assert.match(verdict.summary, /inside gRPC \(which works\)/);
  });

  it('puts changed bytes before everything else', () => {
    const verdict = judge(
      [...CONNECTED, ok('put-large', 'rdma'), failed('get-rdma', 'ERR_FABRICKV_CHECKSUM'), ok('get-inline', 'inline')],
      facts,
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['data plane', 5]);
    assert.match(verdict.summary, /arrived changed/);
  });

  it('blames the control plane when the connection breaks in the middle, or small values fail', () => {
    const broken = judge([...CONNECTED, failed('put-large', 'ERR_FABRICKV_CONNECTION_LOST')], facts);
    assert.deepEqual([broken.plane, broken.exitCode], ['control plane', 3]);
    const small = judge([ok('connect'), failed('put-small', 'ERR_FABRICKV_DEADLINE', { serverStages: [] })], facts);
    assert.deepEqual([small.plane, small.exitCode], ['control plane', 3]);
    assert.match(small.checks[0] ?? '', /never reached the server/);
  });

  it('blames the control plane when the same GET fails inline too', () => {
    const verdict = judge(
      [
        ...CONNECTED,
        ok('put-large', 'rdma'),
        failed('get-rdma', 'ERR_FABRICKV_DEADLINE', { clientStages: GET_CLIENT }),
        failed('get-inline', 'ERR_FABRICKV_DEADLINE', { clientStages: GET_CLIENT }),
      ],
      facts,
    );
    assert.deepEqual([verdict.plane, verdict.exitCode], ['control plane', 3]);
  });

  it('blames neither plane when the server says no for a reason of its own', () => {
    for (const code of [
      'ERR_FABRICKV_CAPACITY',
      'ERR_FABRICKV_VALUE_TOO_LARGE',
      'ERR_FABRICKV_RESOURCE_EXHAUSTED',
    ] as const) {
      const verdict = judge([...CONNECTED, failed('put-large', code), failed('put-large-inline', code)], facts);
      assert.deepEqual([verdict.plane, verdict.exitCode], ['neither', 1], code);
    }
  });

  it('has a text for every error at every step, with something to check', () => {
    for (const step of ['connect', 'put-small', 'put-large', 'get-rdma', 'get-inline'] as const) {
      for (const code of ['ERR_FABRICKV_INTERNAL', 'ERR_FABRICKV_DEADLINE', 'ERR_FABRICKV_DATA_PLANE'] as const) {
        const verdict = judge([...CONNECTED.filter((each) => each.step !== step), failed(step, code)], facts);
        assert.notEqual(verdict.exitCode, 0, `${step} ${code}`);
        assert.ok(verdict.checks.length > 0, `${step} ${code}`);
        assert.match(verdictText(verdict), /VERDICT: .*\n {2}.*\n/);
        assert.doesNotMatch(verdictText(verdict), /undefined/);
      }
    }
  });
});
