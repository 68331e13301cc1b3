import { open } from 'node:fs/promises';
import { KvClient } from '../../src/index.js';

/** Stores a large value by RDMA, quickly: every byte of it is the same. */
export async function storeLarge(serverAddr: string, key: string, sizeBytes: number, byte = 0x11): Promise<void> {
  const client = await KvClient.connect({ serverAddr, provider: 'tcp' });
  try {
    const region = await client.allocate(sizeBytes);
    region.buffer.fill(byte);
    await client.put(key, region);
  } finally {
    await client.close();
  }
}

/** Makes a large file of zeros, which takes no time and no room. */
export async function makeZeros(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, 'w');
  try {
    await file.truncate(sizeBytes);
  } finally {
    await file.close();
  }
}
