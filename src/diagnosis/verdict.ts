/**
 * From what was seen of a few operations to a sentence: control plane or data plane, the last stage reached, and what to
 * check next. Pure: it looks at observations, never at the network.
 */

import type { ErrorCode } from '../protocol/errors.js';
import { CLIENT_STAGES, SERVER_STAGES } from '../protocol/stages.js';

/** The steps of the contrast probe, in their order. `put-large-inline` is taken only where `put-large` failed. */
export type ProbeStep = 'connect' | 'put-small' | 'put-large' | 'put-large-inline' | 'get-rdma' | 'get-inline';

/** What was seen of one step. */
export interface StepObservation {
  readonly step: ProbeStep;
  readonly outcome: 'ok' | 'failed';
  /** The way that the value took. */
  readonly path?: 'rdma' | 'inline' | undefined;
  readonly ms: number;
  readonly error?: ObservedError | undefined;
  /** The stages that the client logged, in their order. */
  readonly clientStages: readonly string[];
  /** The stages that the server logged for the same operation; undefined when its log cannot be read from here. */
  readonly serverStages?: readonly string[] | undefined;
}

/** What an error says that matters here. */
export interface ObservedError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly stage?: string | undefined;
  readonly peer?: string | undefined;
}

/** What is known beside the steps. */
export interface ProbeFacts {
  readonly serverAddr: string;
  /** The provider of the session; undefined in an inline-only one. */
  readonly provider?: string | undefined;
  /** Why the session is inline-only. */
  readonly inlineOnlyReason?: string | undefined;
  /** Libfabric addresses or IPs of both ends, as far as known. */
  readonly localFabricAddr?: string | undefined;
}

/** Where the fault is. */
export type FaultyPlane = 'none' | 'control plane' | 'data plane' | 'neither';

/** The verdict in words. */
export interface Verdict {
  readonly plane: FaultyPlane;
  /** 0 nothing is wrong, 3 control plane, 5 data plane, 1 something else. */
  readonly exitCode: 0 | 1 | 3 | 5;
  /** One or two sentences. */
  readonly summary: string;
  /** The last stage that was reached, on both sides as far as known; undefined when nothing is wrong. */
  readonly lastStage: string | undefined;
  /** What to check next, the likeliest first. */
  readonly checks: readonly string[];
}

const CONNECTION_CODES: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_FABRICKV_CONNECT',
  'ERR_FABRICKV_CONNECTION_LOST',
  'ERR_FABRICKV_NOT_FABRICKV',
  'ERR_FABRICKV_PROTOCOL_VERSION',
  'ERR_FABRICKV_PROTOCOL',
  'ERR_FABRICKV_SHUTTING_DOWN',
]);

const DATA_PLANE_CODES: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_FABRICKV_DATA_PLANE',
  'ERR_FABRICKV_REGISTRATION',
  'ERR_FABRICKV_PROVIDER_MISSING',
  'ERR_FABRICKV_LIBFABRIC_MISSING',
  'ERR_FABRICKV_REGION_BUSY',
]);

const FIREWALL =
  'the firewall or security group between the two machines: it must pass all traffic between the two fabric addresses, ' +
  'in both directions, not only the gRPC port (on EC2: the group must allow all traffic to and from itself)';

/** Judges a contrast probe. */
export function judge(observations: readonly StepObservation[], facts: ProbeFacts): Verdict {
  const of = (step: ProbeStep): StepObservation | undefined => observations.find((each) => each.step === step);
  const connect = of('connect');
  if (connect?.outcome === 'failed') return cannotConnect(connect, facts);

  const corrupted = observations.find((each) => each.error?.code === 'ERR_FABRICKV_CHECKSUM');
  if (corrupted !== undefined) return wrongBytes(corrupted);

  const small = of('put-small');
  if (small?.outcome === 'failed') return controlPlaneFailed(small, 'a small value, which travels inside gRPC', facts);

  if (facts.provider === undefined) return inlineOnly(observations, facts);

  const lost = observations.find((each) => each.error !== undefined && CONNECTION_CODES.has(each.error.code));
  if (lost !== undefined) return controlPlaneFailed(lost, `the step ${lost.step}`, facts);

  const put = of('put-large');
  const getRdma = of('get-rdma');
  const getInline = of('get-inline');
  const refused = [put, getRdma].find((each) => each?.outcome === 'failed' && isRefusal(each));
  if (refused !== undefined) return neither(refused);

  if (getRdma?.outcome === 'failed') {
    if (getInline?.outcome === 'ok') return getHangs(getRdma, put, facts);
    // The same value fails both ways: then it is not the data plane that makes the difference.
    return getInline === undefined
      ? getHangs(getRdma, put, facts)
      : controlPlaneFailed(getInline, 'the same GET inline', facts);
  }
  if (put?.outcome === 'failed') return putFails(put, facts);
  const other = observations.find((each) => each.outcome === 'failed');
  if (other !== undefined) return neither(other);
  if (getRdma?.path === 'inline' || put?.path === 'inline') return inlineOnly(observations, facts);
  return {
    plane: 'none',
    exitCode: 0,
    summary:
      `Both planes work: a small value went by gRPC, a large one went there and back by RDMA over ${facts.provider}, ` +
      'and the bytes are the same.',
    lastStage: undefined,
    checks: [],
  };
}

/** A verdict as the script prints it. */
export function verdictText(verdict: Verdict): string {
  const title = {
    none: 'nothing is wrong',
    'control plane': 'the control plane (gRPC)',
    'data plane': 'the data plane (RDMA)',
    neither: 'neither plane',
  }[verdict.plane];
  return [
    `VERDICT: ${title}`,
    `  ${verdict.summary}`,
    ...(verdict.lastStage === undefined ? [] : [`  last stage reached: ${verdict.lastStage}`]),
    ...(verdict.checks.length === 0 ? [] : ['  check next:']),
    ...verdict.checks.map((check, index) => `    ${index + 1}. ${check}`),
  ].join('\n');
}

function cannotConnect(connect: StepObservation, { serverAddr }: ProbeFacts): Verdict {
  const code = connect.error?.code;
  const base = {
    plane: 'control plane',
    exitCode: 3,
    lastStage: 'none: no session was opened',
  } as const;
  const summary = `No session with ${serverAddr}: ${connect.error?.message ?? 'no answer'}.`;
  if (code === 'ERR_FABRICKV_NOT_FABRICKV') {
    return { ...base, summary, checks: ['the address and the port: something else listens there'] };
  }
  if (code === 'ERR_FABRICKV_PROTOCOL_VERSION') {
    return { ...base, summary, checks: ['the releases on both sides: bring the older one up to date'] };
  }
  if (code !== undefined && DATA_PLANE_CODES.has(code)) {
    return {
      plane: 'data plane',
      exitCode: 5,
      summary: `This machine cannot open a data plane: ${connect.error?.message ?? ''}.`,
      lastStage: 'none: the fabric was not opened here',
      checks: ['fi_info, which lists the providers that work here', 'the same with FABRICKV_PROVIDER=auto'],
    };
  }
  if (code === 'ERR_FABRICKV_SETTING' || code === 'ERR_FABRICKV_INVALID_ARGUMENT') {
    return { ...base, plane: 'neither', exitCode: 1, summary, checks: ['the settings of this command'] };
  }
  return {
    ...base,
    summary,
    checks: [
      `that the server runs, and that its log says "Listening" with this port and an address that is not 127.0.0.1`,
      `that the port answers from here: nc -vz ${serverAddr.replace(/:(\d+)$/, ' $1')}`,
      'the firewall or security group: it must pass the gRPC port',
      'http_proxy and https_proxy: gRPC goes through them unless no_proxy names the server',
    ],
  };
}

function controlPlaneFailed(seen: StepObservation, what: string, { serverAddr }: ProbeFacts): Verdict {
  if (isRefusal(seen)) return neither(seen);
  return {
    plane: 'control plane',
    exitCode: 3,
    summary: `The session with ${serverAddr} was opened, but ${what} failed: ${reasonOf(seen)}.`,
    lastStage: lastStageOf(seen),
    checks: [
      seen.serverStages?.length === 0
        ? 'why the request never reached the server: its log has no stage of it'
        : 'whether the server still runs, and whether its event loop is blocked (its log goes on?)',
      'proxies and middleboxes between the two machines that cut long-lived HTTP/2 connections',
    ],
  };
}

function inlineOnly(observations: readonly StepObservation[], { inlineOnlyReason }: ProbeFacts): Verdict {
  const failed = observations.find((each) => each.outcome === 'failed');
  return {
    plane: 'data plane',
    exitCode: 5,
    summary:
      'There is no data plane in this session, so every value travels inside gRPC' +
      `${failed === undefined ? ' (which works)' : ''}: ${inlineOnlyReason ?? 'the two sides have no provider in common'}.`,
    lastStage: failed === undefined ? 'none: nothing was tried by RDMA' : lastStageOf(failed),
    checks: [
      'that libfabric is installed on both machines (fi_info lists the providers), and FabricKV was built with its headers',
      'the lines "Provider chosen" or "No data plane" in both logs: both sides need one provider in common',
      '--provider on both sides: none has no data plane',
    ],
  };
}

function getHangs(get: StepObservation, put: StepObservation | undefined, facts: ProbeFacts): Verdict {
  const serverLast = get.serverStages?.at(-1);
  const putWorked = put?.outcome === 'ok' && put.path === 'rdma';
  const where =
    serverLast === 'get.write.submitted' || get.serverStages?.includes('get.write.submitted') === true
      ? 'the server posted its RDMA write, and it never completed'
      : get.serverStages === undefined
        ? 'the request was sent, and no answer came'
        : 'the server did not get as far as completing its RDMA write';
  return {
    plane: 'data plane',
    exitCode: 5,
    summary:
      `The same value arrives inside gRPC but not by RDMA over ${facts.provider}: ${where} (${reasonOf(get)}). ` +
      (putWorked
        ? 'Writes from this machine to the server complete, so it is the way from the server to here.'
        : 'Writes from this machine to the server fail too, so it is both ways.'),
    lastStage: lastStageOf(get),
    checks: [
      FIREWALL,
      ...(putWorked
        ? [
            `that the server can reach this machine's fabric address${facts.localFabricAddr === undefined ? '' : ` ${facts.localFabricAddr}`}: ping it from there; set FABRICKV_FABRIC_ADDR here if it is the wrong one`,
          ]
        : []),
      ...providerChecks(facts.provider),
      ...(get.serverStages === undefined ? ["the server's log: whether its last stage is get.write.submitted"] : []),
    ],
  };
}

function putFails(put: StepObservation, facts: ProbeFacts): Verdict {
  const granted = put.clientStages.includes('put.grant.received');
  if (!granted) {
    return {
      plane: 'control plane',
      exitCode: 3,
      summary: `The server gave no grant for a large PUT, although small values work: ${reasonOf(put)}.`,
      lastStage: lastStageOf(put),
      checks: [
        "the server's log around this request: whether it could allocate and register memory",
        'the memlock limit of the server (ulimit -l; scripts/run-with-rdma.sh raises it)',
      ],
    };
  }
  const written = put.clientStages.includes('put.write.completed');
  return {
    plane: 'data plane',
    exitCode: 5,
    summary: written
      ? `The RDMA write of a PUT completed here, but the server did not publish the value: ${reasonOf(put)}.`
      : `The server granted memory for a PUT, but the RDMA write over ${facts.provider} never completed: ${reasonOf(put)}. ` +
        'The way from the server to this machine works, so it is the way from here to the server.',
    lastStage: lastStageOf(put),
    checks: written
      ? ["the server's log: put.commit.received, put.verified or what stands instead of them"]
      : [
          FIREWALL,
          `that this machine can reach the server's fabric address (its log says fabricAddrs; --fabric-addr sets it)`,
          ...providerChecks(facts.provider),
        ],
  };
}

function wrongBytes(seen: StepObservation): Verdict {
  return {
    plane: 'data plane',
    exitCode: 5,
    summary: `The bytes of the step ${seen.step} arrived changed: ${reasonOf(seen)}. They were thrown away, no wrong byte was kept.`,
    lastStage: lastStageOf(seen),
    checks: [
      'the network cards and their firmware on both machines (error counters in /sys/class/infiniband, ethtool -S)',
      'the memory of both machines (ECC errors: edac-util, rasdaemon)',
      'whether the same size fails with another provider (FABRICKV_PROVIDER=tcp)',
    ],
  };
}

function neither(seen: StepObservation): Verdict {
  return {
    plane: 'neither',
    exitCode: 1,
    summary: `Both planes may well work; the step ${seen.step} failed for another reason: ${reasonOf(seen)}.`,
    lastStage: lastStageOf(seen),
    checks: ['what the error says; then run this again'],
  };
}

/** Whether the server answered, and said no for a reason that has nothing to do with the network. */
function isRefusal({ error }: StepObservation): boolean {
  if (error === undefined) return true;
  return !CONNECTION_CODES.has(error.code) && !DATA_PLANE_CODES.has(error.code) && !TIME_CODES.has(error.code);
}

const TIME_CODES: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['ERR_FABRICKV_DEADLINE', 'ERR_FABRICKV_GRANT_ENDED']);

function providerChecks(provider: string | undefined): string[] {
  switch (provider) {
    case 'efa':
      return ['that both instances are in one subnet and EFA is attached on both (fi_info -p efa)'];
    case 'verbs':
      return [
        'the ports: rdma link must say ACTIVE on both machines',
        'the GID index and the MTU on both sides (ibv_devinfo -v; --fabric-option FI_VERBS_GID_IDX=N)',
      ];
    default:
      return ['routes and addresses: libfabric connects to ports of its own choice, in both directions'];
  }
}

function reasonOf({ error }: StepObservation): string {
  return error === undefined ? 'no error was told' : `${error.code}, ${error.message}`;
}

/** The last stages that are none of "failed", with their words, on both sides as far as known. */
function lastStageOf({ clientStages, serverStages, error }: StepObservation): string {
  const reached = (stages: readonly string[]): string | undefined =>
    stages.findLast((stage) => !stage.endsWith('.failed') && !stage.endsWith('.quarantined'));
  const client = reached(clientStages) ?? error?.stage;
  const server = serverStages === undefined ? undefined : (reached(serverStages) ?? 'none, the request never arrived');
  const words: Readonly<Record<string, string>> = { ...SERVER_STAGES, ...CLIENT_STAGES };
  const serverWords: Readonly<Record<string, string>> = SERVER_STAGES;
  return [
    ...(client === undefined ? [] : [`client ${client}${quoted(words[client])}`]),
    ...(server === undefined ? [] : [`server ${server}${quoted(serverWords[server])}`]),
  ].join('; ');
}

function quoted(message: string | undefined): string {
  return message === undefined ? '' : ` ("${message}")`;
}
