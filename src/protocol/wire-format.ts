/**
 * The protobuf wire format: what the generated codec of the session's frames (generated/frames.ts) is made of. A message is
 * measured first, so that there is room for it, and then written; it is read in one pass, under a limit of fields.
 */

import type { Long } from '@grpc/proto-loader';
import { Chunk, ChunkPool, LARGE_CHUNK_BYTES } from './chunk-pool.js';

/** A 64-bit field of a message that is to be sent. */
export type Uint64Input = number | string | Long | undefined;

/** A bytes field of a message that is to be sent; a string is base64. */
export type BytesInput = Uint8Array | string | undefined;

const TWO_32 = 0x1_0000_0000;

/** Bytes are copied one by one up to this length: a call costs more. */
const LOOP_BYTES_MAX = 32;

/** A field of zero, shared by all messages in which it is not set. */
export const ZERO: Long = Object.freeze({ low: 0, high: 0, unsigned: true }) as Long;

/** Bytes that are not set. */
export const NO_BYTES: Buffer = Buffer.alloc(0);

/** The bytes are malformed, or have more of something than the limits say: the message says what. */
export class WireFormatError extends Error {
  override readonly name = 'WireFormatError';
}

/** Bytes of a varint of up to 32 bits. */
export function varintSize(value: number): number {
  if (value < 0x80) return 1;
  if (value < 0x4000) return 2;
  if (value < 0x20_0000) return 3;
  return value < 0x1000_0000 ? 4 : 5;
}

/** Bytes of a varint of up to 64 bits. */
export function varint64Size(value: number | string | Long): number {
  if (typeof value === 'number' && value <= 0xffff_ffff) return varintSize(value);
  let left = highBits(value) * 16 + Math.floor(lowBits(value) / 0x1000_0000);
  if (left === 0) return varintSize(lowBits(value));
  let size = 4;
  for (; left > 0; left = Math.floor(left / 128)) size += 1;
  return size;
}

/** Whether a 64-bit field is to be written: zero is what is not there. */
export function isSet64(value: Uint64Input): value is number | string | Long {
  if (typeof value === 'object') return value.low !== 0 || value.high !== 0;
  return value !== undefined && Number(value) !== 0;
}

/** The number of an enum's value, given by its name or its number. */
export function enumNumber(numbers: Readonly<Record<string, number>>, value: string | number | undefined): number {
  if (typeof value === 'number') return value;
  return value === undefined ? 0 : (numbers[value] ?? 0);
}

/** The name of an enum's value; of one that a later version has, the number, as proto-loader has it. */
export function enumName<Name extends string>(names: readonly Name[], value: number): Name {
  return names[value] ?? (value as unknown as Name);
}

/** A bytes field as bytes. */
export function bytesOf(value: Uint8Array | string): Uint8Array {
  return typeof value === 'string' ? Buffer.from(value, 'base64') : value;
}

function highBits(value: number | string | Long): number {
  if (typeof value === 'object') return value.high >>> 0;
  if (typeof value === 'string') return Number(BigInt(value) >> 32n);
  return Math.floor(value / TWO_32);
}

function lowBits(value: number | string | Long): number {
  if (typeof value === 'object') return value.low >>> 0;
  if (typeof value === 'string') return Number(BigInt(value) & 0xffff_ffffn);
  return value % TWO_32;
}

/** The lengths of the messages and strings within a message, in the order in which both passes meet them. */
export class Lengths {
  #lengths = new Float64Array(1024);
  #count = 0;
  #next = 0;

  /** Begins anew. */
  clear(): void {
    this.#count = 0;
    this.#next = 0;
  }

  /** Takes the place of a length that is not known yet. */
  reserve(): number {
    if (this.#count === this.#lengths.length) {
      const longer = new Float64Array(2 * this.#count);
      longer.set(this.#lengths);
      this.#lengths = longer;
    }
    this.#count += 1;
    return this.#count - 1;
  }

  /** Fills a place, and returns how many bytes the length and what follows it take. */
  fill(place: number, length: number): number {
    this.#lengths[place] = length;
    return varintSize(length) + length;
  }

  /** Measures a string. */
  ofString(text: string): number {
    return this.fill(this.reserve(), Buffer.byteLength(text));
  }

  /** The next one, in the second pass. */
  next(): number {
    const length = this.#lengths[this.#next] ?? 0;
    this.#next += 1;
    return length;
  }
}

/** Small frames are cut one after the other out of chunks for so many frames of the last one's size, */
const FRAMES_PER_CHUNK = 8;
/** but of no more than this. */
const SMALL_CHUNK_BYTES_MAX = 64 * 1024;

/** The second pass: collects messages until they are taken as one frame. */
export class WireWriter {
  bytes: Buffer = NO_BYTES;
  #chunk = new Chunk(NO_BYTES);
  #begin = 0;
  #at = 0;
  #lastFrameBytes = 0;

  constructor(private readonly pool = new ChunkPool(0)) {}

  /** How long the frame is by now. */
  get sizeBytes(): number {
    return this.#at - this.#begin;
  }

  /** Where the frame is. */
  get chunk(): Chunk {
    return this.#chunk;
  }

  /** Makes room for so many more bytes, which may then be written. */
  reserve(sizeBytes: number): void {
    if (this.#at + sizeBytes <= this.bytes.length) return;
    const last = this.#chunk;
    const chunk = this.#chunkFor(this.sizeBytes + sizeBytes);
    last.bytes.copy(chunk.bytes, 0, this.#begin, this.#at);
    this.#use(chunk);
    if (last.frames === 0) this.pool.give(last);
  }

  /** What has been written since the last time. Its memory is used again after {@link taken}, and not before. */
  take(): Buffer {
    const frame = this.bytes.subarray(this.#begin, this.#at);
    this.#lastFrameBytes = frame.length;
    this.#begin = this.#at;
    this.#chunk.frames += 1;
    return frame;
  }

  /** A frame in this chunk is read no more. */
  taken(chunk: Chunk): void {
    chunk.frames -= 1;
    if (chunk.frames > 0) return;
    if (chunk === this.#chunk) {
      // Who has nothing to say keeps only little memory for it.
      if (this.sizeBytes > 0 || chunk.bytes.length < LARGE_CHUNK_BYTES) return;
      this.#use(new Chunk(NO_BYTES));
    }
    this.pool.give(chunk);
  }

  /** The frame that was begun is in this chunk from now on, at its start. */
  #use(chunk: Chunk): void {
    this.#chunk = chunk;
    this.bytes = chunk.bytes;
    this.#at -= this.#begin;
    this.#begin = 0;
  }

  /** Where frames are large they begin in a large chunk, so that none is copied as it grows. */
  #chunkFor(frameBytes: number): Chunk {
    if (frameBytes > LARGE_CHUNK_BYTES) return new Chunk(Buffer.allocUnsafeSlow(2 * frameBytes));
    if (Math.max(frameBytes, this.#lastFrameBytes) > SMALL_CHUNK_BYTES_MAX / 2) return this.pool.take();
    return new Chunk(Buffer.allocUnsafe(Math.min(FRAMES_PER_CHUNK * frameBytes, SMALL_CHUNK_BYTES_MAX)));
  }

  varint(value: number): void {
    const { bytes } = this;
    let left = value;
    while (left > 0x7f) {
      bytes[this.#at++] = (left & 0x7f) | 0x80;
      left >>>= 7;
    }
    bytes[this.#at++] = left;
  }

  varint64(value: number | string | Long): void {
    if (typeof value === 'number' && value <= 0xffff_ffff) {
      this.varint(value);
      return;
    }
    let low = lowBits(value);
    let high = highBits(value);
    while (high > 0) {
      this.bytes[this.#at++] = (low & 0x7f) | 0x80;
      low = ((low >>> 7) | (high << 25)) >>> 0;
      high >>>= 7;
    }
    this.varint(low);
  }

  fixed32(value: number): void {
    const { bytes } = this;
    bytes[this.#at++] = value;
    bytes[this.#at++] = value >>> 8;
    bytes[this.#at++] = value >>> 16;
    bytes[this.#at++] = value >>> 24;
  }

  fixed64(value: number | string | Long): void {
    this.fixed32(lowBits(value));
    this.fixed32(highBits(value));
  }

  raw(value: Uint8Array): void {
    const { bytes } = this;
    const { length } = value;
    this.varint(length);
    if (length > LOOP_BYTES_MAX) {
      bytes.set(value, this.#at);
      this.#at += length;
      return;
    }
    for (let i = 0; i < length; i += 1) bytes[this.#at++] = value[i] ?? 0;
  }

  text(value: string, length: number): void {
    this.varint(length);
    this.#at += this.bytes.write(value, this.#at, length, 'utf8');
  }
}

/** What a {@link WireReader} goes by. */
export interface ReaderLimits {
  /** How many fields may be read, of all messages together. */
  readonly fieldsMax: number;
  /** Bytes of up to this length are copied, so that they keep no frame in memory; longer ones are views of the frame. */
  readonly copiedBytesMax: number;
}

/** Reads the fields of a message. Nothing is read beyond the end of the message that is being read. */
export class WireReader {
  /** Where the message ends that is being read. */
  end: number;
  #at = 0;
  #fieldsLeft: number;
  readonly #fieldsMax: number;
  readonly #copiedBytesMax: number;

  constructor(
    readonly bytes: Buffer,
    { fieldsMax, copiedBytesMax }: ReaderLimits,
  ) {
    this.#copiedBytesMax = copiedBytesMax;
    this.end = bytes.length;
    this.#fieldsLeft = fieldsMax;
    this.#fieldsMax = fieldsMax;
  }

  /** The tag of the next field: its number times 8 and its wire type; 0 at the end of the message. @throws WireFormatError */
  tag(): number {
    if (this.#at >= this.end) return 0;
    this.#fieldsLeft -= 1;
    if (this.#fieldsLeft < 0) throw new WireFormatError(`over ${this.#fieldsMax} fields in one frame`);
    const first = this.bytes[this.#at] ?? 0;
    if (first >= 8 && first < 0x80) {
      this.#at += 1;
      return first;
    }
    const tag = this.#varint('a tag');
    // Field numbers have 29 bits, and none is 0.
    if (tag < 8 || tag > 0xffff_ffff) throw new WireFormatError('a tag is out of range');
    return tag;
  }

  /** @throws WireFormatError */
  uint32(): number {
    const first = this.bytes[this.#at] ?? 0;
    if (first < 0x80 && this.#at < this.end) {
      this.#at += 1;
      return first;
    }
    // Beyond 32 bits what is more is dropped, as protobuf has it.
    return this.uint64().low >>> 0;
  }

  /** @throws WireFormatError */
  bool(): boolean {
    return this.#varint('a number') !== 0;
  }

  /** @throws WireFormatError */
  uint64(): Long {
    let low = 0;
    let high = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.#at >= this.end) throw new WireFormatError('a number is cut off');
      const byte = this.bytes[this.#at++] ?? 0;
      const bits = byte & 0x7f;
      if (shift < 28) low |= bits << shift;
      else if (shift === 28) {
        low |= bits << 28;
        high |= bits >>> 4;
      } else if (shift < 63) high |= bits << (shift - 32);
      else high |= bits << 31;
      if (byte < 0x80) return { low, high, unsigned: true } as Long;
    }
    throw new WireFormatError('a number is cut off');
  }

  /** @throws WireFormatError */
  fixed32(): number {
    return this.#word() >>> 0;
  }

  /** @throws WireFormatError */
  fixed64(): Long {
    const low = this.#word();
    const high = this.#word();
    return { low, high, unsigned: true } as Long;
  }

  /** A view of the frame, or a copy. @throws WireFormatError */
  raw(): Buffer {
    const length = this.#length();
    if (length === 0) return NO_BYTES;
    const from = this.#at;
    this.#at += length;
    if (length > this.#copiedBytesMax) return this.bytes.subarray(from, this.#at);
    const copy = Buffer.allocUnsafe(length);
    this.bytes.copy(copy, 0, from, this.#at);
    return copy;
  }

  /** @throws WireFormatError */
  text(): string {
    const length = this.#length();
    const from = this.#at;
    this.#at += length;
    return this.bytes.toString('utf8', from, this.#at);
  }

  /** Begins a message within this one. @returns what {@link leave} is to be given at its end @throws WireFormatError */
  enter(): number {
    const length = this.#length();
    const outer = this.end;
    this.end = this.#at + length;
    return outer;
  }

  /** The message within has been read to its end. */
  leave(outer: number): void {
    this.end = outer;
  }

  /** Passes over a field that is not known. @throws WireFormatError */
  skip(tag: number): void {
    switch (tag & 7) {
      case 0:
        this.#varint('a number');
        return;
      case 1:
        this.#pass(8);
        return;
      case 2:
        this.#pass(this.#length());
        return;
      case 5:
        this.#pass(4);
        return;
      default:
        throw new WireFormatError(`wire type ${tag & 7} is not used by this protocol`);
    }
  }

  #length(): number {
    const length = this.#exact();
    if (this.#at + length > this.end) throw new WireFormatError('a field is cut off');
    return length;
  }

  /** A varint, whatever it comes to: a length of 2^63 is not one of 0. */
  #exact(): number {
    const first = this.bytes[this.#at] ?? 0;
    if (first < 0x80 && this.#at < this.end) {
      this.#at += 1;
      return first;
    }
    return this.#varint('a field');
  }

  #word(): number {
    const { bytes } = this;
    const at = this.#at;
    this.#pass(4);
    return (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16) | ((bytes[at + 3] ?? 0) << 24);
  }

  #pass(length: number): void {
    if (this.#at + length > this.end) throw new WireFormatError('a field is cut off');
    this.#at += length;
  }

  /** Exact up to 2^53, and beyond that more than any length. */
  #varint(what: string): number {
    let value = 0;
    let factor = 1;
    for (let count = 0; count < 10; count += 1) {
      if (this.#at >= this.end) throw new WireFormatError(`${what} is cut off`);
      const byte = this.bytes[this.#at++] ?? 0;
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
      factor *= 128;
    }
    throw new WireFormatError(`${what} is cut off`);
  }
}
