import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Child } from '../support/child.js';
import { runClient, startServer } from '../support/commands.js';
import { withoutNamespaces } from '../support/mode.js';
import { NetworkPair } from '../support/network-pair.js';
import { ROOT } from '../support/paths.js';

// While the client's connection attempt hangs in the firewall, it turns the server's down: rxm then has a connection
// object without an endpoint, which a removal from the address vector must not touch (docs/adr/0001).
describe('a firewall between the fabrics that lets only one side connect', { skip: withoutNamespaces() }, () => {
  for (const closed of ['server', 'client'] as const) {
    test(`the ${closed} cannot be connected to: transfers fail or succeed, and both processes live on`, async () => {
      await using pair = await NetworkPair.make();
      await using server = await startServer({
        args: ['--listen-addr', `${pair.server.ipv4}:0`, '--memory', '64MiB'],
        prefix: pair.server.prefix,
      });
      await pair.dropIncoming(pair[closed], Number(server.addr.slice(server.addr.lastIndexOf(':') + 1)));
      await using client = new Child('node', {
        args: [`${ROOT}dist/test/support/both-ways.js`, server.addr, '6'],
        prefix: pair.client.prefix,
      });
      const ended = await client.waitForEnd(30_000);
      assert.equal(ended.code, 0, `${ended.signal}: ${ended.stderr}`);
      assert.match(ended.stdout.toString(), /^((fulfilled|rejected)\s){12}$/);
      const ping = await runClient(['--server-addr', server.addr, 'ping'], { prefix: pair.client.prefix });
      assert.equal(ping.code, 0, `the server is gone: ${ping.stderr}`);
    });
  }
});
