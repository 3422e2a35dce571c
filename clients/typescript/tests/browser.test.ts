/** What the client does where it runs in a page, on the other side of a WebSocket that `ws` plays. */

import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { WebSocket as NodeWebSocket } from 'ws';
import { DaimonWebSocket } from '../src/browser.js';
import { openStub, type Stub } from './stub.js';

let stub: Stub;
let client: DaimonWebSocket;

beforeEach(async () => {
  vi.stubGlobal('WebSocket', NodeWebSocket);
  stub = await openStub();
  client = new DaimonWebSocket({ url: stub.url, token: () => 'wst_test', reconnectDelay: 1 });
});

afterEach(async () => {
  vi.useRealTimers();
  await client.close();
  await stub.end();
  vi.unstubAllGlobals();
});

describe('in a page', () => {
  it('a token goes as a subprotocol, and stands in no URL', async () => {
    await client.connect();
    const [request] = stub.requests;
    expect(request?.headers['sec-websocket-protocol']).toBe('daimon.v1,bearer.wst_test');
    expect(request?.url).not.toContain('wst_');
    expect(request?.headers.authorization).toBeUndefined();
  });

  it('silence is asked for a sign of life, which keeps the connection', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    await client.connect();
    for (const number of [1, 2, 3]) {
      vi.advanceTimersByTime(30_000);
      await stub.until(() => stub.of('ping').length === number);
      await new Promise(setImmediate);
      await new Promise(setImmediate);
    }
    expect([stub.sockets.length, stub.ends]).toEqual([1, []]);
  });

  it('a connection that gives none is lost after ten seconds more', async () => {
    stub.answers.set('ping', () => undefined);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const reason = new Promise((resolve) => client.on('disconnected', resolve));
    await client.connect();
    vi.advanceTimersByTime(30_000);
    vi.advanceTimersByTime(9_999);
    expect(stub.sockets.length).toBe(1);
    vi.advanceTimersByTime(1);
    expect(await reason).toBe('the connection was lost (nothing was heard)');
  });

  it('an answer to the sign of life is nobody else’s', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const errors: Error[] = [];
    client.on('error', (error) => errors.push(error));
    await client.connect();
    vi.advanceTimersByTime(30_000);
    await stub.until(() => stub.of('ping').length === 1);
    expect(await client.ping()).toHaveProperty('server_time');
    expect(errors).toEqual([]);
  });

  it('commands of handlers carry nothing of their own accord', async () => {
    client.on('message.received', ({ inbox_id }) => client.sendEmail({ inbox_id, to: 'ada@example.com' }));
    await client.connect();
    stub.mail();
    await stub.until(() => stub.of('send_email').length === 1);
    expect(stub.of('send_email')[0]).not.toHaveProperty('once');
  });
});
