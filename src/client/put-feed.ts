/**
 * What a PUT sends, and the ways of sending it: bytes of the caller's, a region, a stream.
 */

import { FabricKvError } from '../protocol/errors.js';
import type { DataSource } from '../protocol/frame-writer.js';
import type { ClientMessage } from '../protocol/generated/fabrickv/v1/ClientMessage.js';
import type { DataPlane } from './data-plane.js';
import { PutData } from './put-data.js';
import { type PutSource, readPiece } from './put-source.js';
import { StreamData } from './put-stream-data.js';
import { StreamTransfer } from './put-stream-transfer.js';
import type { PutTransfer, PutTransferOptions } from './put-transfer.js';
import { BytesTransfer, RegionTransfer } from './put-transfers.js';
import { StreamLength } from './stream-length.js';
import type { StreamReader } from './stream-reader.js';
import type { ValueCrc } from './value-crc.js';

/** How a feed goes out as Data. */
export interface FeedDataOptions {
  readonly operationId: number;
  readonly crc: ValueCrc;
  readonly send: (source: DataSource<ClientMessage>) => void;
  readonly onPiece: (bytesSent: number) => void;
  readonly onEnd: () => void;
  readonly onError: (error: unknown) => void;
}

/** Something that is being sent. */
export interface Sending {
  stop(): void;
}

/** A value to be sent, once or several times. */
export interface PutFeed {
  /** Undefined when nobody knows it yet. */
  readonly length: number | undefined;
  /** Whether all of it is in memory. */
  readonly inMemory: boolean;
  /** Sends it by RDMA write. */
  transfer(options: PutTransferOptions): PutTransfer;
  /** Sends it in messages. */
  sendData(options: FeedDataOptions): Sending;
  /** All of it, for one message. */
  whole(): Uint8Array;
  /** Makes it usable as a source of writes; undefined when it is. */
  prepare(dataPlane: DataPlane): Promise<void> | undefined;
  /** Nothing reads it any more. */
  release(): void;
}

/**
 * A feed of what is in memory. Of a region it is a use, until its `release`.
 *
 * @throws ERR_FABRICKV_REGION_BUSY, ERR_FABRICKV_INVALID_ARGUMENT
 */
export function memoryFeed(source: PutSource): PutFeed {
  if (source.kind === 'region') source.region.hold('source');
  return {
    length: source.length,
    inMemory: true,
    transfer: (options) =>
      source.kind === 'region'
        ? new RegionTransfer(source.region, source.length, options)
        : new BytesTransfer(source, options),
    sendData: ({ send, ...options }) => {
      const data = new PutData({ source, ...options });
      send(data);
      return data;
    },
    whole: () => readPiece(source, 0, source.length),
    prepare: (dataPlane) =>
      // The pool, which bytes are staged in, was prepared with the session.
      source.kind === 'region' && !dataPlane.isSource(source.region.mapping)
        ? source.region.prepareSource(dataPlane)
        : undefined,
    release: () => {
      if (source.kind === 'region') source.region.unhold('source');
    },
  };
}

/** A feed of a stream: once only. */
export function streamFeed(reader: StreamReader, length: number | undefined, valueBytesMax: number): PutFeed {
  const streamLength = new StreamLength(length, valueBytesMax);
  return {
    length,
    inMemory: false,
    transfer: (options) => new StreamTransfer({ ...options, reader, length: streamLength }),
    sendData: (options) => {
      if (length === undefined) throw notInOnePiece();
      const data = new StreamData({ ...options, reader, length: streamLength, totalLength: length });
      void data.run();
      return data;
    },
    whole: () => {
      throw notInOnePiece();
    },
    prepare: () => undefined,
    release: () => undefined,
  };
}

function notInOnePiece(): FabricKvError {
  return new FabricKvError('ERR_FABRICKV_INTERNAL', 'a stream of unknown length was to be sent as a whole');
}
