export type { Key } from '../protocol/keys.js';
export type { Version } from '../protocol/wire.js';
export { BATCH_KEYS_MAX, type BatchResult, releaseAll } from './batch.js';
export type { ConnectionState } from './connection.js';
export type { ClientCounters } from './counters.js';
export { type ConnectionInfo, KvClient, type OperationInfo, type PutEntry, type PutValue } from './kv-client.js';
export type {
  BatchGetOptions,
  BatchOptions,
  BatchPutOptions,
  CallOptions,
  GetOptions,
  KvClientOptions,
  PutOptions,
  PutStreamOptions,
} from './options.js';
export type { Considered } from './protocol-values.js';
export type { Region } from './region.js';
export type { PingInfo, ValueStat } from './simple-operations.js';
export type { ByteStream, StreamSource } from './stream-reader.js';
export type { KvValue, PutInfo, ValueInfo, ValuePath } from './value.js';
export { ValueStream } from './value-stream.js';
