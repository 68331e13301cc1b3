export { KvServer } from './kv-server.js';
export type { KvServerOptions } from './options.js';
