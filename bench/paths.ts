import { fileURLToPath } from 'node:url';

/** The root of the clone; this file runs as dist/bench/paths.js. */
export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** The command, as a user starts it. */
export const KV_SERVER = `${ROOT}bin/kv-server.js`;
