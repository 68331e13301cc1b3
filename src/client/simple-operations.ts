/**
 * DELETE, EXISTS, STAT and PING: one message there, one back.
 */

import type { FabricKvError, MutationOutcome } from '../protocol/errors.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { Result__Output } from '../protocol/generated/fabrickv/v1/Result.js';
import type { OperationKind } from '../protocol/stages.js';
import { toSafeInteger, toVersion, type Version } from '../protocol/wire.js';
import { MutationAttempts } from './mutation-attempts.js';
import { type ClientCore, Operation, unexpectedResult } from './operation.js';
import type { CallSettings } from './options.js';
import type { Session } from './session.js';

/** What `stat` says of a value. */
export interface ValueStat {
  /** Bytes. */
  readonly length: number;
  readonly version: Version;
  /** Undefined when the value was put without a checksum. */
  readonly crc32c: number | undefined;
  /** When it was published, by the server's clock. */
  readonly storedAt: Date;
}

/** What `ping` says of the server. */
export interface PingInfo {
  /** From the call to the answer, in milliseconds. */
  readonly roundTripMs: number;
  readonly serverVersion: string;
  readonly serverUptimeMs: number;
  /** Sessions that the server has open. */
  readonly sessions: number;
  /** The server's counters (docs/operations.md). */
  readonly counters: Readonly<Record<string, number>>;
  /** Of this session; undefined when it is inline-only. */
  readonly provider: string | undefined;
  /** Why it is inline-only; undefined when it is not. */
  readonly inlineOnlyReason: string | undefined;
}

/** One request, one result. */
abstract class SimpleOperation<T> extends Operation<T> {
  #sent = false;

  protected abstract message(): ClientMessage;
  protected abstract read(result: Result__Output): T;

  protected override attempt(session: Session): void {
    this.#sent = true;
    this.begin(session, this.message());
  }

  protected override succeeded(result: Result__Output): void {
    this.#sent = false;
    this.finishRequest();
    this.succeed(this.read(result));
  }

  protected override failed(error: FabricKvError): void {
    this.#sent = false;
    this.retryOrFail(error);
  }

  protected override sessionLost(): void {
    this.#sent = false;
  }

  protected override release(): void {
    if (!this.#sent || this.session === undefined) return;
    this.core.counters.cancels += 1;
    this.session.cancel(this.operationId);
  }
}

/** `client.delete`. */
export class DeleteOperation extends SimpleOperation<boolean> {
  readonly #attempts = new MutationAttempts();

  constructor(core: ClientCore, key: Buffer, call: CallSettings) {
    super(core, 'delete', key, call);
  }

  protected override attempt(session: Session): void {
    const refused = this.#attempts.mayApply(session);
    if (refused !== undefined) throw refused;
    this.#attempts.sending(session);
    super.attempt(session);
  }

  protected override message(): ClientMessage {
    return { delete: { key: this.key ?? '', namespace: this.call.namespace, deadlineMs: this.deadlineMs } };
  }

  protected override read(result: Result__Output): boolean {
    if (!result.delete) throw unexpectedResult('Delete', result.outcome);
    if (this.key !== undefined) this.core.sizes.forget(this.call.namespace, this.key);
    return result.delete.deleted;
  }

  protected override failed(error: FabricKvError): void {
    this.#attempts.answered(error);
    super.failed(error);
  }

  protected override outcome(): MutationOutcome {
    return this.#attempts.outcome;
  }
}

/** `client.exists`. */
export class ExistsOperation extends SimpleOperation<boolean> {
  constructor(core: ClientCore, key: Buffer, call: CallSettings) {
    super(core, 'exists', key, call);
  }

  protected override message(): ClientMessage {
    return { exists: { key: this.key ?? '', namespace: this.call.namespace, deadlineMs: this.deadlineMs } };
  }

  protected override read(result: Result__Output): boolean {
    if (!result.exists) throw unexpectedResult('Exists', result.outcome);
    return result.exists.exists;
  }
}

/** `client.stat`. */
export class StatOperation extends SimpleOperation<ValueStat | undefined> {
  constructor(core: ClientCore, key: Buffer, call: CallSettings) {
    super(core, 'stat', key, call);
  }

  protected override message(): ClientMessage {
    return { stat: { key: this.key ?? '', namespace: this.call.namespace, deadlineMs: this.deadlineMs } };
  }

  protected override read({ stat, outcome }: Result__Output): ValueStat | undefined {
    if (!stat) throw unexpectedResult('Stat', outcome);
    if (!stat.found) return undefined;
    return {
      length: toSafeInteger(stat.length, 'length'),
      version: toVersion(stat.version),
      crc32c: stat.withoutCrc ? undefined : stat.crc32c,
      storedAt: new Date(toSafeInteger(stat.storedUnixMs, 'stored_unix_ms')),
    };
  }
}

/** `client.ping`. */
export class PingOperation extends SimpleOperation<PingInfo> {
  constructor(core: ClientCore, call: CallSettings) {
    super(core, 'ping', undefined, call);
  }

  protected override message(): ClientMessage {
    return { ping: {} };
  }

  protected override read({ pong, outcome }: Result__Output): PingInfo {
    if (!pong) throw unexpectedResult('Ping', outcome);
    const counters = Object.entries(pong.counters).map(([name, value]) => [name, toSafeInteger(value, name)] as const);
    const { connection, trace } = this.core;
    return {
      roundTripMs: performance.now() - this.trace.startedAtMs,
      serverVersion: pong.serverVersion,
      serverUptimeMs: toSafeInteger(pong.uptimeMs, 'uptime_ms'),
      sessions: pong.sessions,
      counters: Object.fromEntries(counters),
      provider: trace.provider,
      inlineOnlyReason: connection.inlineOnlyReason,
    };
  }
}

/** Kinds of the operations in this file. */
export type SimpleKind = Exclude<OperationKind, 'get' | 'put'>;
