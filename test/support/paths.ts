import { fileURLToPath } from 'node:url';

/** The root of the clone; this file runs as dist/test/support/paths.js. */
export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

/** The commands, as a user starts them. */
export const BIN = {
  'kv-server': `${ROOT}bin/kv-server.js`,
  'kv-client': `${ROOT}bin/kv-client.js`,
} as const;
