/**
 * What the operations of one client share: ids, limits, deadlines, counters, memory.
 */

import { randomBytes } from 'node:crypto';
import { EventLoopSpin, type Fabric, mapMemory } from '../fabric/index.js';
import { displayKey, type KeyFormatter, redactKey } from '../protocol/keys.js';
import type { TraceContext } from '../protocol/stages.js';
import { hex64 } from '../protocol/wire.js';
import { Connection } from './connection.js';
import { Counters } from './counters.js';
import { Deadlines } from './deadlines.js';
import { toClientError } from './fabric-errors.js';
import { OWN_SINKS_MAX } from './limits.js';
import type { ClientCore } from './operation.js';
import { OperationGate } from './operation-gate.js';
import { Operations } from './operations.js';
import type { ClientSettings } from './options.js';
import { ReceivePool } from './receive-pool.js';
import { SizeMemory } from './size-memory.js';

/** The parts of one client. */
export class Core implements ClientCore {
  readonly clientIdHex: string;
  readonly connection: Connection;
  readonly counters = new Counters();
  readonly deadlines = new Deadlines();
  readonly gate: OperationGate;
  readonly ownMemoryGate: OperationGate;
  readonly operations = new Operations();
  readonly spin: EventLoopSpin;
  readonly sizes = new SizeMemory();
  readonly trace: TraceContext;
  closed = false;
  #pool: ReceivePool | undefined;
  #lastOperationId = 0;

  constructor(
    readonly settings: ClientSettings,
    readonly fabric: Fabric,
  ) {
    const { maxInFlight, maxWaiting, logger, redactKeys, serverAddr, eventLoopSpinUs } = settings;
    this.spin = new EventLoopSpin(eventLoopSpinUs, () => this.operations.size === 1);
    const clientId = randomBytes(8).readBigUInt64BE();
    this.clientIdHex = hex64(clientId);
    this.gate = new OperationGate({ inFlightMax: maxInFlight, waitingMax: maxWaiting, what: 'operations' });
    this.ownMemoryGate = new OperationGate({
      inFlightMax: OWN_SINKS_MAX,
      waitingMax: maxInFlight,
      what: 'values beyond the receive memory',
    });
    this.connection = new Connection({
      settings,
      clientId,
      fabric,
      counters: this.counters,
      receivePool: (regionBytesMax) => this.#receivePool(regionBytesMax),
      onGreeting: ({ operationsInFlightMax }) => {
        if (operationsInFlightMax > 0) this.gate.limitInFlight(operationsInFlightMax);
      },
    });
    const formatKey: KeyFormatter = redactKeys ? redactKey : displayKey;
    const { connection } = this;
    this.trace = {
      side: 'client',
      requestIdPrefix: this.clientIdHex,
      logger,
      formatKey,
      peer: serverAddr,
      get provider() {
        return connection.inlineOnlyReason === undefined ? connection.greeting?.provider : undefined;
      },
    };
  }

  get pool(): ReceivePool | undefined {
    return this.#pool;
  }

  nextOperationId(): number {
    this.#lastOperationId += 1;
    return this.#lastOperationId;
  }

  /** What is left when the connection is closed: memory and timers. */
  close(): void {
    this.#pool?.close();
    this.deadlines.close();
  }

  async #receivePool(regionBytesMax: number): Promise<ReceivePool> {
    if (this.#pool !== undefined) return this.#pool;
    const { receiveMemory, maxInFlight } = this.settings;
    try {
      const mapping = await mapMemory({ sizeBytes: receiveMemory, prefault: false });
      this.#pool = new ReceivePool({ mapping, regionBytesMax, waitersMax: maxInFlight });
    } catch (error) {
      throw toClientError(error);
    }
    // The client may have been closed meanwhile.
    if (this.closed) this.#pool.close();
    return this.#pool;
  }
}
