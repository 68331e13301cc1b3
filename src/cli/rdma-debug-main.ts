import { main } from './rdma-debug.js';

process.exit(await main(process.argv.slice(2)));
