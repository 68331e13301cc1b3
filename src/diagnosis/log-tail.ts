/**
 * A log file that another process is writing.
 */

import { closeSync, openSync, readSync } from 'node:fs';
import { type LogRecord, parseRecord } from './log-records.js';

const READ_BYTES = 64 * 1024;

/** Reads what is appended to a log. */
export class LogTail implements Disposable {
  private readonly fd: number;
  private rest = Buffer.alloc(0);

  /** @throws the system's error when the file cannot be opened */
  constructor(path: string) {
    this.fd = openSync(path, 'r');
  }

  /** The records that have been written in whole lines since the last call; at first those since the beginning. */
  read(): LogRecord[] {
    const chunk = Buffer.alloc(READ_BYTES);
    const chunks = [this.rest];
    for (let length = 1; length > 0; ) {
      length = readSync(this.fd, chunk, 0, chunk.length, null);
      chunks.push(Buffer.from(chunk.subarray(0, length)));
    }
    const bytes = Buffer.concat(chunks);
    const end = bytes.lastIndexOf('\n') + 1;
    this.rest = bytes.subarray(end);
    return bytes
      .subarray(0, end)
      .toString('utf8')
      .split('\n')
      .flatMap((line) => {
        const record = parseRecord(line);
        return record === undefined ? [] : [record];
      });
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
  }
}
