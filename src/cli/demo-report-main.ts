import { main } from './demo-report.js';

process.exitCode = await main(process.argv.slice(2));
