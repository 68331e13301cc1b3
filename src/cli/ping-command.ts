/**
 * `kv-client ping`: how the server is reached, and what it counts.
 */

import { formatDuration } from '../protocol/units.js';
import type { Command } from './command.js';
import { EXIT } from './exit-codes.js';
import { simple } from './small-commands.js';
import { roundMs } from './transfer-result.js';

/** Asks the server for a sign of life. */
export const pingCommand: Command = simple(async ({ client, callOptions }) => {
  const pong = await client.ping(callOptions());
  const { serverAddr, considered, nodeId } = client.connection;
  const dataPlane = pong.provider ?? `none: ${pong.inlineOnlyReason ?? 'this session is inline-only'}`;
  return {
    exitCode: EXIT.done,
    object: {
      serverAddr,
      nodeId,
      ms: roundMs(pong.roundTripMs),
      serverVersion: pong.serverVersion,
      uptimeMs: pong.serverUptimeMs,
      sessions: pong.sessions,
      provider: pong.provider ?? null,
      inlineOnlyReason: pong.inlineOnlyReason ?? null,
      considered: considered.map(({ provider, available, reason }) => ({ provider, available, reason })),
      counters: pong.counters,
    },
    text: [
      `server       ${serverAddr}, FabricKV ${pong.serverVersion}, up ${formatDuration(roundUp(pong.serverUptimeMs))}`,
      `round trip   ${roundMs(pong.roundTripMs)} ms`,
      `sessions     ${pong.sessions}`,
      `data plane   ${dataPlane}`,
      ...considered.map(({ provider, reason }) => `  ${provider.padEnd(11)}${reason}`),
      'counters',
      ...Object.entries(pong.counters).map(([name, count]) => `  ${name.padEnd(24)} ${count}`),
    ].join('\n'),
  };
});

/** Whole seconds, once there are some. */
function roundUp(ms: number): number {
  return ms < 1000 ? Math.round(ms) : Math.round(ms / 1000) * 1000;
}
