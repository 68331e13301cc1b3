import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type ClientHttp2Session, connect } from 'node:http2';
import { test } from 'node:test';
import pino from 'pino';
import { RECEIVE_WINDOW_BYTES } from '../../src/server/http2-windows.js';
import { KvServer } from '../../src/server/index.js';
import { waitFor } from '../support/wait-for.js';

test('a client is told of windows for streams and for the connection', async () => {
  const server = await KvServer.start({
    listenAddr: '127.0.0.1:0',
    memoryBytes: 1024 * 1024,
    provider: 'none',
    logger: pino({ level: 'silent' }),
  });
  let client: ClientHttp2Session | undefined;
  try {
    client = connect(`http://${server.boundAddr}`);
    const [settings] = (await once(client, 'remoteSettings')) as [{ readonly initialWindowSize: number }];
    assert.equal(settings.initialWindowSize, RECEIVE_WINDOW_BYTES);
    const { state } = client;
    await waitFor(() => (client?.state.remoteWindowSize ?? 0) >= RECEIVE_WINDOW_BYTES, {
      what: `the connection's window, which was ${state.remoteWindowSize}`,
    });
  } finally {
    client?.destroy();
    await server.stop();
  }
});
