/** What a client promises of events that fail, that are long, that come again, and of webhooks beside them. */

import { createHmac } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { BadSignatureError, DaimonWebSocket, isProcessed, type NodeOptions, processed, verify } from '../src/node.js';
import { openStub, type Stub } from './stub.js';

let stub: Stub;
const clients: DaimonWebSocket[] = [];

beforeEach(async () => {
  stub = await openStub();
});

afterEach(async () => {
  vi.useRealTimers();
  await Promise.all(clients.splice(0).map((client) => client.close()));
  await stub.end();
});

async function connected(options: NodeOptions = {}): Promise<DaimonWebSocket> {
  const client = new DaimonWebSocket({ apiKey: 'dm_live_test', url: stub.url, reconnectDelay: 1, ...options });
  clients.push(client);
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** What the handlers of a name get next. */
function next(client: DaimonWebSocket, name: string): Promise<unknown> {
  return new Promise((resolve) => client.on(name, resolve));
}

/** Lets all that is on its way arrive. */
async function settled(client: DaimonWebSocket): Promise<void> {
  await client.command('ping');
}

describe('an event', () => {
  it('that waited for its handler when the client could not go on comes again', async () => {
    const client = await connected({ ack: 'off' });
    client.pause();
    stub.mail({}, { event_id: 'evt_again' });
    await settled(client);
    stub.sockets[0]?.close(4401);
    await expect(client.closed).rejects.toMatchObject({ code: 4401 });
    const handled = next(client, 'message.received');
    await client.connect();
    stub.mail({ subject: 'again' }, { event_id: 'evt_again' });
    expect(await handled).toMatchObject({ subject: 'again' });
  });

  it('that comes again over a reconnect is handled once', async () => {
    const client = await connected();
    const handler = vi.fn();
    client.on('message.received', handler);
    stub.mail({}, { event_id: 'evt_twice' });
    stub.mail({}, { event_id: 'evt_twice' });
    await settled(client);
    expect(handler).toHaveBeenCalledOnce();
  });

  it('is acknowledged within a second of its handler’s end, and not before', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const client = await connected();
    const handled = next(client, 'message.received');
    stub.mail();
    await handled;
    await settled(client);
    await vi.advanceTimersByTimeAsync(999);
    expect(stub.of('ack')).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    await stub.until(() => stub.of('ack').length === 1);
    expect(stub.of('ack')).toMatchObject([{ cursor: 'c1' }]);
  });

  it('is held from ten seconds on for as long as its handler works', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const client = await connected();
    let finish = () => {};
    client.on('message.received', () => new Promise<void>((resolve) => (finish = resolve)));
    const begun = next(client, 'message.received');
    void begun;
    stub.mail();
    await settled(client);
    await vi.advanceTimersByTimeAsync(9_999);
    await settled(client);
    expect(stub.of('hold')).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    await stub.until(() => stub.of('hold').length === 1);
    expect(stub.of('hold')).toMatchObject([{ event_ids: ['evt_1'], seconds: 60 }]);
    await settled(client);
    await vi.advanceTimersByTimeAsync(20_000);
    await stub.until(() => stub.of('hold').length === 2);
    await settled(client);
    finish();
    await begun;
    for (let number = 0; number < 3; number += 1) {
      await vi.advanceTimersByTimeAsync(20_000);
      await settled(client);
    }
    expect(stub.of('hold').length).toBe(2);
  });

  it('is not acknowledged to a broker that knows nothing of it, more than once', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    stub.answers.set('ack', () => ({ error: { code: 'unknown_action', message: 'ack?' } }));
    const client = await connected();
    for (let number = 0; number < 2; number += 1) {
      stub.mail();
      await settled(client);
      await vi.advanceTimersByTimeAsync(1_000);
      await settled(client);
    }
    expect(stub.of('ack').length).toBe(1);
  });

  it('that failed is not processed; one that was handled is', async () => {
    const client = await connected();
    client.on('message.received', ({ subject }) => {
      if (subject === 'bad') throw new Error('no');
    });
    stub.mail({ subject: 'bad' }, { event_id: 'evt_bad' });
    stub.mail({}, { event_id: 'evt_good' });
    await settled(client);
    expect([isProcessed('evt_bad'), isProcessed('evt_good')]).toEqual([false, true]);
  });

  it('that the program has processed is handed to no handler, and counts as handled', async () => {
    expect(processed('evt_by_webhook')).toBe(true);
    expect(processed('evt_by_webhook')).toBe(false);
    const client = await connected();
    const handler = vi.fn();
    client.on('message.received', handler);
    stub.mail({}, { event_id: 'evt_by_webhook', cursor: 'c9' });
    await settled(client);
    await client.close();
    expect(handler).not.toHaveBeenCalled();
    expect(stub.of('ack')).toMatchObject([{ cursor: 'c9' }]);
  });
});

describe('a connection', () => {
  it('that comes back sets the wait back, so that the next comes soon', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0.99);
    const waits = vi.spyOn(globalThis, 'setTimeout');
    const client = await connected({ reconnectDelay: 16 });
    for (let number = 2; number < 5; number += 1) {
      stub.sockets.at(-1)?.terminate();
      await stub.until(() => stub.sockets.length === number);
      await settled(client);
    }
    const backOffs = waits.mock.calls.map(([, ms]) => ms ?? 0).filter((ms) => ms > 0 && ms < 1_000);
    expect(backOffs).toEqual([15.84, 15.84, 15.84]);
    vi.restoreAllMocks();
  });

  it('that was closed for a message too big comes back without the longest command', async () => {
    for (const action of ['ping', 'big']) stub.answers.set(action, () => undefined);
    const client = await connected();
    const small = client.ping();
    const big = client.command('big', { body: 'x'.repeat(500) });
    await stub.until(() => stub.commands.length === 2);
    stub.answers.delete('ping');
    stub.sockets[0]?.close(1009);
    await expect(big).rejects.toMatchObject({ code: 'too_large' });
    expect(await small).toHaveProperty('server_time');
    expect(stub.of('big').length).toBe(1);
  });

  it('is not opened with a token that is none', async () => {
    const client = new DaimonWebSocket({ url: stub.url, token: () => '', autoReconnect: false });
    client.on('error', () => {});
    await expect(client.connect()).rejects.toThrow('there is no token');
    expect(stub.requests).toEqual([]);
  });

  it('that a broker drains comes back after as long as it asked', async () => {
    const waits = vi.spyOn(globalThis, 'setTimeout');
    const client = await connected({ reconnectDelay: 1 });
    stub.say({ type: 'server.draining', reconnect_after_ms: 37 });
    stub.sockets[0]?.close(1012);
    await stub.until(() => stub.sockets.length === 2);
    await settled(client);
    expect(waits.mock.calls.some(([, ms]) => ms === 37)).toBe(true);
    vi.restoreAllMocks();
  });
});

describe('a webhook', () => {
  const key = Buffer.alloc(32, 'k');
  const secret = `whsec_${key.toString('base64')}`;
  const ids = { type: 'message.received', event_id: 'evt_1', created_at: '2026-11-23T10:00:00.123Z', cursor: 'c1' };
  const body = JSON.stringify({ ...ids, payload: { message: { subject: 'Grüße' } } });

  function signed(text: string, ageSeconds = 0): Record<string, string> {
    const at = `${Math.floor(Date.now() / 1_000) - ageSeconds}`;
    const signature = createHmac('sha256', key).update(`evt_1.${at}.${text}`).digest('base64');
    return { 'webhook-id': 'evt_1', 'webhook-timestamp': at, 'webhook-signature': `v1,${signature}` };
  }

  it('is believed as text, as bytes, and with the headers of a fetch', async () => {
    const headers = signed(body);
    for (const [given, as] of [
      [headers, body],
      [headers, Buffer.from(body)],
      [new Headers(headers), body],
      [{ ...headers, 'Webhook-Id': undefined }, new TextEncoder().encode(body)],
    ] as const) {
      expect((await verify(given, as, secret)).message.subject).toBe('Grüße');
    }
  });

  it.each([
    ['too old', signed(body, 301), body],
    ['from the future', signed(body, -302), body],
    ['another', signed(body), body.replace('c1', 'c2')],
    [
      'of another version',
      { ...signed(body), 'webhook-signature': signed(body)['webhook-signature']?.slice(3) ?? '' },
      body,
    ],
    ['no event', signed('{"type":"a.b"}'), '{"type":"a.b"}'],
    ['no JSON', signed('hello'), 'hello'],
  ])('that is %s is not', async (_, headers, text) => {
    await expect(verify(headers, text, secret)).rejects.toBeInstanceOf(BadSignatureError);
  });

  it('is not believed with a secret that is none', async () => {
    await expect(verify(signed(body), body, 'whsec_???')).rejects.toThrow('the secret');
  });
});
