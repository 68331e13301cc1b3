import { constants } from 'node:buffer';
import { FabricError, invalidArgument } from './errors.js';
import { LoanTable } from './loans.js';
import type { CopyInOptions, CopyOutOptions, CrcOptions, LendOptions, Loan, Mapping } from './mapping.js';
import { checkRange } from './native-memory.js';

/**
 * Memory without the addon: plain ArrayBuffers and a table CRC, so that the store works inline-only on a machine without
 * a compiler. It cannot be registered, and its loans are copies.
 */

const SEGMENT_BYTES = 2 ** 30;
/** What is checked or copied before the event loop gets its turn: about 1 ms of table CRC. */
const STEP_BYTES = 256 * 1024;

const CRC_TABLE = makeTable();
const loans = new LoanTable();
const dropped = new FinalizationRegistry<number>((loan) => loans.settle(loan));
let nextId = 1;

/** CRC-32C by table, some 0.4 GB/s. `seed` is the CRC of what came before. */
export function portableCrc32c(bytes: Uint8Array, seed = 0): number {
  let crc = ~seed;
  for (let i = 0; i < bytes.length; i++) {
    // Indices are below 256 and below length, so neither fallback is ever taken.
    crc = (CRC_TABLE[(crc ^ (bytes[i] ?? 0)) & 0xff] ?? 0) ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

/** A {@link Mapping} over plain ArrayBuffers of at most 1 GiB each. */
export class PortableMapping implements Mapping {
  readonly id: number;
  readonly sizeBytes: number;
  readonly hugePages = false;
  #segments: Buffer[] | undefined;

  /** @throws FabricError `MAPPING_FAILED` when V8 cannot allocate that much. */
  constructor(sizeBytes: number) {
    this.id = nextId++;
    this.sizeBytes = sizeBytes;
    const segments: Buffer[] = [];
    try {
      for (let offset = 0; offset < sizeBytes; offset += SEGMENT_BYTES) {
        segments.push(Buffer.from(new ArrayBuffer(Math.min(SEGMENT_BYTES, sizeBytes - offset))));
      }
    } catch (cause) {
      throw new FabricError(
        { code: 'MAPPING_FAILED', call: 'ArrayBuffer', text: `cannot allocate ${sizeBytes} bytes` },
        { cause },
      );
    }
    this.#segments = segments;
  }

  buffer(offset: number, length: number): Buffer {
    const pieces = this.#pieces('buffer', offset, length);
    if (pieces.length > 1) throw invalidArgument('buffer', 'a view cannot cross a 1 GiB segment without the addon');
    return pieces[0] ?? Buffer.alloc(0);
  }

  lend({ offset, length, onReturned }: LendOptions): Loan {
    if (length > constants.MAX_LENGTH) throw invalidArgument('lend', `a loan of ${length} bytes is too long`);
    const pieces = this.#pieces('lend', offset, length);
    const arrayBuffer = new ArrayBuffer(length);
    const target = new Uint8Array(arrayBuffer);
    let copied = 0;
    for (const piece of pieces) {
      target.set(piece, copied);
      copied += piece.length;
    }
    const loan = loans.add(onReturned);
    dropped.register(arrayBuffer, loan);
    return {
      arrayBuffer,
      release(): void {
        if (arrayBuffer.byteLength > 0) structuredClone(arrayBuffer, { transfer: [arrayBuffer] });
        loans.settle(loan);
      },
    };
  }

  async copyIn({ offset, source, crcSeed = 0 }: CopyInOptions): Promise<number> {
    let crc = crcSeed;
    let copied = 0;
    for (const piece of this.#pieces('copyIn', offset, source.byteLength)) {
      for (let at = 0; at < piece.length; at += STEP_BYTES) {
        const step = source.subarray(copied, copied + Math.min(STEP_BYTES, piece.length - at));
        piece.set(step, at);
        crc = portableCrc32c(step, crc);
        copied += step.length;
        if (copied < source.byteLength) await nextTurn();
      }
    }
    return crc;
  }

  async copyOut({ offset, target, crcSeed = 0 }: CopyOutOptions): Promise<number> {
    let crc = crcSeed;
    let copied = 0;
    for (const piece of this.#pieces('copyOut', offset, target.byteLength)) {
      for (let at = 0; at < piece.length; at += STEP_BYTES) {
        const step = piece.subarray(at, at + STEP_BYTES);
        target.set(step, copied);
        crc = portableCrc32c(step, crc);
        copied += step.length;
        if (copied < target.byteLength) await nextTurn();
      }
    }
    return crc;
  }

  async crc32c({ offset, length, seed = 0 }: CrcOptions): Promise<number> {
    let crc = seed;
    let done = 0;
    for (const piece of this.#pieces('crc32c', offset, length)) {
      for (let at = 0; at < piece.length; at += STEP_BYTES) {
        const step = piece.subarray(at, at + STEP_BYTES);
        crc = portableCrc32c(step, crc);
        done += step.length;
        if (done < length) await nextTurn();
      }
    }
    return crc;
  }

  writeSync(offset: number, source: Uint8Array): void {
    let copied = 0;
    for (const piece of this.#pieces('writeSync', offset, source.byteLength)) {
      piece.set(source.subarray(copied, copied + piece.length));
      copied += piece.length;
    }
  }

  readSync(offset: number, length: number): Buffer {
    return Buffer.concat(this.#pieces('readSync', offset, length));
  }

  close(): void {
    this.#segments = undefined;
  }

  #pieces(call: string, offset: number, length: number): Buffer[] {
    if (this.#segments === undefined) throw invalidArgument(call, `mapping ${this.id} is closed`);
    checkRange(call, offset, length, this.sizeBytes);
    const pieces: Buffer[] = [];
    for (let at = offset; at < offset + length; ) {
      const within = at % SEGMENT_BYTES;
      const take = Math.min(SEGMENT_BYTES - within, offset + length - at);
      const segment = this.#segments[Math.floor(at / SEGMENT_BYTES)];
      if (segment !== undefined) pieces.push(segment.subarray(within, within + take));
      at += take;
    }
    return pieces;
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

function makeTable(): Uint32Array {
  const table = new Uint32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    table[byte] = crc;
  }
  return table;
}
