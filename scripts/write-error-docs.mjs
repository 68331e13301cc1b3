#!/usr/bin/env node
// Writes docs/errors.md from the table in src/protocol/errors.ts, as it was compiled last (npm run build).
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { status } from '@grpc/grpc-js';
import { ERRORS } from '../dist/src/protocol/errors.js';

/** The page as it has to be. */
export function errorDocs() {
  const cell = (text) => text.replaceAll('|', '\\|');
  const rows = Object.entries(ERRORS).map(
    ([code, { summary, remedy, grpc, retryable }]) =>
      `| \`${code}\` | ${cell(summary)} | ${cell(remedy)} | \`${status[grpc]}\` | ${retryable ? 'yes' : 'no'} |`,
  );
  return `# Errors

Written by \`scripts/write-error-docs.mjs\` from \`src/protocol/errors.ts\`; change them there.

Every error of the SDK is a \`FabricKvError\`; match on its \`code\`, which is stable. It also has \`retryable\` (whether the same
call may succeed if it is made again), \`outcome\` (of a mutation: \`not-applied\` or \`unknown\`), \`stage\`, \`requestId\`, \`peer\`, \`cause\`
and \`remedy\`. Over gRPC the code is the \`reason\` of a \`google.rpc.ErrorInfo\` ([wire-protocol.md](wire-protocol.md)).

| code | meaning | what to do | gRPC status | retryable |
|---|---|---|---|---|
${rows.join('\n')}
`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(new URL('../docs/errors.md', import.meta.url), errorDocs());
}
