/** The client in Node, against a broker of a few lines. */

import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { CommandError, ConnectionEndedError, DaimonWebSocket, type NodeOptions, TimedOutError } from '../src/node.js';
import { openStub, type Stub } from './stub.js';

let stub: Stub;
const clients: DaimonWebSocket[] = [];

beforeEach(async () => {
  stub = await openStub();
});

afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.close()));
  await stub.end();
  vi.restoreAllMocks();
});

function clientOf(options: NodeOptions = {}): DaimonWebSocket {
  const client = new DaimonWebSocket({ apiKey: 'dm_live_test', url: stub.url, reconnectDelay: 1, ...options });
  clients.push(client);
  return client;
}

/** What the handlers of a name get next. */
function next(client: DaimonWebSocket, name: string): Promise<unknown> {
  return new Promise((resolve) => client.on(name, resolve));
}

describe('an opening', () => {
  it('has the key in a header, and what is asked for in the query', async () => {
    await clientOf({ inboxIds: ['b', 'a+x@y'], eventTypes: ['message.*'], clientId: 'agent' }).connect();
    const [request] = stub.requests;
    expect(request?.headers.authorization).toBe('Bearer dm_live_test');
    const { pathname, searchParams } = new URL(request?.url ?? '', 'ws://stub');
    expect(pathname).toBe('/v1/stream');
    expect(Object.fromEntries(searchParams)).toEqual({
      inbox_ids: 'a+x@y,b',
      event_types: 'message.*',
      client_id: 'agent',
      since: 'acked',
    });
  });

  it('asks for a fresh token each time', async () => {
    let count = 0;
    const client = clientOf({ apiKey: undefined, token: async () => `wst_${++count}` });
    await client.connect();
    const again = next(client, 'connected');
    stub.sockets[0]?.terminate();
    await again;
    await stub.until(() => stub.requests.length === 2);
    const sent = stub.requests.map((request) => request.headers.authorization);
    expect(sent).toEqual(['Bearer wst_1', 'Bearer wst_2']);
  });

  it('that is refused for good rejects with code, status and message', async () => {
    stub.refusal = { status: 401, headers: {}, body: '{"error":{"code":"unauthorized","message":"who are you"}}' };
    const client = clientOf();
    const reasons: string[] = [];
    client.on('disconnected', (reason) => reasons.push(reason));
    const error = await client.connect().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(ConnectionEndedError);
    expect(error).toMatchObject({ code: 'unauthorized', status: 401, message: 'refused with 401: who are you' });
    expect(reasons).toEqual(['refused with 401: who are you']);
    await expect(client.closed).rejects.toBe(error);
  });

  it('that comes to nothing is not tried again where that is not wanted', async () => {
    stub.refusal = { status: 503, headers: {}, body: '' };
    await expect(clientOf({ autoReconnect: false }).connect()).rejects.toMatchObject({ status: 503 });
  });

  it('may be given up by closing', async () => {
    stub.refusal = { status: 503, headers: { 'Retry-After': '1000' }, body: '' };
    const client = clientOf();
    const opening = client.connect();
    await next(client, 'disconnected');
    await client.close();
    await expect(opening).rejects.toMatchObject({ code: 1000 });
  });

  it('may be given up while it waits for a token', async () => {
    const asked = new Promise<void>((asked) => {
      const client = clientOf({
        apiKey: undefined,
        token: () => {
          asked();
          return new Promise(() => {});
        },
      });
      client.connect().catch(() => {});
    });
    await asked;
    await clients.at(-1)?.close();
    expect(stub.requests).toEqual([]);
  });

  it('needs a key or a token', () => {
    vi.stubEnv('DAIMON_API_KEY', '');
    expect(() => new DaimonWebSocket({ url: stub.url })).toThrow('apiKey');
    vi.unstubAllEnvs();
  });

  it('takes key and address from the environment', async () => {
    vi.stubEnv('DAIMON_API_KEY', 'dm_live_from_outside');
    vi.stubEnv('DAIMON_WS_URL', stub.url);
    const client = new DaimonWebSocket();
    clients.push(client);
    await client.connect();
    vi.unstubAllEnvs();
    expect(stub.requests[0]?.headers.authorization).toBe('Bearer dm_live_from_outside');
  });

  it('of a client that is open already is refused', async () => {
    const client = clientOf();
    await client.connect();
    await expect(client.connect()).rejects.toThrow('connected already');
  });
});

describe('handlers', () => {
  it('get what the event is about, and the event', async () => {
    const client = clientOf();
    const seen: unknown[] = [];
    client.on('message.received', (message, { event_id, type }) => seen.push([message.subject, event_id, type]));
    client.on('message.*', (payload, { type }) => type !== 'message.complaint' && seen.push(Object.keys(payload)[0]));
    client.on('message.bounced', (bounce) => seen.push(bounce.recipient));
    await client.connect();
    const handled = next(client, 'message.complaint');
    stub.mail();
    stub.publish('message.bounced', { recipient: 'eve@example.com' });
    stub.publish('message.complaint', {});
    await handled;
    expect(seen).toEqual([['Hello', 'evt_1', 'message.received'], 'message_id', 'eve@example.com', 'recipient']);
  });

  it('that are taken off are called no longer', async () => {
    const client = clientOf();
    const handler = vi.fn();
    client.on('message.received', handler).off('message.received', handler);
    await client.connect();
    const handled = next(client, 'message.received');
    stub.mail();
    await handled;
    expect(handler).not.toHaveBeenCalled();
  });

  it('that fail are told on the console where nobody listens', async () => {
    const said = vi.spyOn(console, 'error').mockImplementation(() => {});
    const client = clientOf();
    client.on('message.received', () => {
      throw new RangeError('no');
    });
    await client.connect();
    const handled = next(client, 'message.received');
    stub.mail();
    await handled;
    expect(said.mock.calls).toEqual([['daimon-email: a handler of message.received failed:', new RangeError('no')]]);
  });

  it('may close the client, and finish before it ends', async () => {
    const client = clientOf();
    const steps: string[] = [];
    client.on('message.received', async () => {
      await client.close();
      steps.push(typeof (await client.ping()).server_time);
    });
    await client.connect();
    stub.mail();
    await client.closed;
    await stub.until(() => stub.ends.length === 1);
    expect([steps, stub.ends]).toEqual([['string'], [1000]]);
  });

  it('run one after another, and several at once where that is wanted', async () => {
    for (const [concurrency, most] of [
      [1, 1],
      [3, 2],
    ] as const) {
      const client = clientOf({ concurrency });
      let [running, seen] = [0, 0];
      const done = new Promise<void>((resolve) => {
        client.on('message.received', async ({ body }) => {
          running += 1;
          seen = Math.max(seen, running);
          await client.ping();
          running -= 1;
          if (body === 'last') resolve();
        });
      });
      await client.connect();
      stub.mail({ thread_id: 't1' });
      stub.mail({ thread_id: 't1' });
      stub.mail({ thread_id: 't2', body: 'last' });
      await done;
      expect(seen).toBe(most);
    }
  });
});

describe('a command', () => {
  it('that is given before the connection is open is sent when it is', async () => {
    const client = clientOf();
    const sent = client.send({ action: 'send_email', inbox_id: 'a', params: { to: 'x@y' } });
    const opened = client.connect();
    expect(await sent).toHaveProperty('server_time');
    await opened;
    expect(stub.commands).toMatchObject([{ action: 'send_email', inbox_id: 'a', to: 'x@y' }]);
  });

  it('that is refused rejects with the code', async () => {
    const error = { code: 'rate_limited', message: 'slowly', retry_after_ms: 50 };
    stub.answers.set('mark_as_read', () => ({ error }));
    const client = clientOf();
    await client.connect();
    const thrown = await client.markAsRead({ message_id: 'm' }).catch((caught: unknown) => caught);
    expect(thrown).toBeInstanceOf(CommandError);
    expect(thrown).toMatchObject({ code: 'rate_limited', message: 'slowly', retryAfterMs: 50, duplicate: false });
  });

  it('that has no answer in time rejects', async () => {
    stub.answers.set('ping', () => undefined);
    const client = clientOf();
    await client.connect();
    await expect(client.command('ping', {}, { timeout: 1 })).rejects.toBeInstanceOf(TimedOutError);
  });

  it('that is longer than the broker takes is refused at once', async () => {
    stub.ready = { ...stub.ready, limits: { max_message_bytes: 100 } };
    const client = clientOf();
    await client.connect();
    await expect(client.sendEmail({ inbox_id: 'a', to: 'b', body: 'x'.repeat(200) })).rejects.toMatchObject({
      code: 'too_large',
    });
    expect(stub.commands).toEqual([]);
  });

  it('rejects with the end when the client ends', async () => {
    stub.answers.set('ping', () => undefined);
    const client = clientOf();
    await client.connect();
    const asked = client.ping();
    await client.close();
    await expect(asked).rejects.toBeInstanceOf(ConnectionEndedError);
  });

  it('of a handler is done once for the event, with a number for the later ones, unless it says otherwise', async () => {
    const client = clientOf({ ack: 'off' });
    const handled = new Promise<void>((resolve) => {
      client.on('message.received', async ({ inbox_id }) => {
        const email = { inbox_id, to: 'ada@example.com' };
        await client.sendEmail(email);
        await new Promise(setImmediate);
        await client.sendEmail(email);
        await client.markAsRead({ message_id: 'm', inbox_id });
        await client.markAsRead({ message_id: 'm' });
        await client.sendEmail(email, { once: null });
        await client.sendEmail(email, { once: 'greeting' });
        await client.publish({ type: 'a.b', payload: {}, inbox_id });
        resolve();
      });
    });
    await client.connect();
    stub.mail();
    await handled;
    await client.sendEmail({ inbox_id: 'inbox_a', to: 'ada@example.com' });
    const names = stub.commands.map(({ once }) => once);
    expect(names).toEqual(['evt_1', 'evt_1:2', 'evt_1', undefined, undefined, 'greeting', undefined, undefined]);
  });
});

describe('what is followed', () => {
  it('before the opening is asked for by it', async () => {
    const client = clientOf();
    expect(await client.send({ action: 'subscribe', inbox_ids: ['b', 'a'] })).toEqual({ inbox_ids: ['a', 'b'] });
    await client.connect();
    expect(new URL(stub.requests[0]?.url ?? '', 'ws://stub').searchParams.get('inbox_ids')).toBe('a,b');
    expect(stub.commands).toEqual([]);
  });

  it('and does not fit into a query is subscribed to behind it', async () => {
    const inboxIds = Array.from({ length: 300 }, (_, number) => `inbox_with_a_long_name_${number}`);
    await clientOf({ inboxIds }).connect();
    await stub.until(() => stub.of('subscribe').length === 1);
    const asked = new URL(stub.requests[0]?.url ?? '', 'ws://stub').searchParams.get('inbox_ids')?.split(',') ?? [];
    const [late] = stub.of('subscribe');
    expect([...asked, ...(late?.inbox_ids ?? [])].sort()).toEqual(inboxIds.sort());
    expect(late?.since).toBe('c0');
  });
});

describe('a client', () => {
  it('that cannot go on says so to whoever waits for its end, and as an error', async () => {
    const client = clientOf();
    const error = next(client, 'error');
    await client.connect();
    stub.sockets[0]?.close(4401);
    await expect(client.closed).rejects.toMatchObject({ code: 4401 });
    expect(await error).toMatchObject({ code: 4401, message: 'the key was revoked' });
  });

  it('that could not go on may connect again, where it was', async () => {
    const client = clientOf();
    await client.connect();
    const handled = next(client, 'message.received');
    stub.mail();
    await handled;
    stub.sockets[0]?.close(4401);
    await expect(client.closed).rejects.toMatchObject({ code: 4401 });
    await client.connect();
    expect(new URL(stub.requests[1]?.url ?? '', 'ws://stub').searchParams.get('since')).toBe('c1');
  });

  it('that was closed stays so', async () => {
    const client = clientOf();
    await client.connect();
    await client.close();
    await client.closed;
    const said = { code: 1000, message: expect.stringContaining('stays so: make another') };
    await expect(client.connect()).rejects.toMatchObject(said);
    await expect(client.subscribe()).rejects.toMatchObject(said);
    await expect(client.unsubscribe()).rejects.toMatchObject(said);
    await expect(client.ping()).rejects.toMatchObject({ code: 1000 });
    expect(stub.requests).toHaveLength(1);
  });

  it('that was closed before it connected does not connect', async () => {
    const client = clientOf();
    const early = expect(client.ping()).rejects.toMatchObject({ code: 1000 });
    await client.close();
    await client.closed;
    await early;
    await expect(client.connect()).rejects.toMatchObject({ code: 1000 });
    expect(stub.requests).toHaveLength(0);
  });

  it('acknowledges before a planned close what is handled', async () => {
    const client = clientOf();
    await client.connect();
    const handled = next(client, 'message.received');
    stub.mail();
    await handled;
    await client.close();
    expect(stub.of('ack')).toMatchObject([{ cursor: 'c1' }]);
  });

  it('acknowledges by hand what it is told to', async () => {
    const client = clientOf({ ack: 'manual', clientId: 'agent' });
    client.on('message.received', async (_, event) => {
      await client.ack({ eventIds: [event.event_id] });
    });
    await client.connect();
    stub.mail();
    await stub.until(() => stub.of('ack').length === 1);
    expect(stub.of('ack')).toMatchObject([{ event_ids: ['evt_1'] }]);
  });

  it('lets its store keep its name and its place, and goes on there', async () => {
    let kept = { client_id: 'kept', cursor: 'c7' };
    const cursorStore = {
      load: async () => kept,
      save: async (now: typeof kept) => {
        kept = now;
      },
    };
    const client = clientOf({ cursorStore: cursorStore as never });
    await client.connect();
    const { searchParams } = new URL(stub.requests[0]?.url ?? '', 'ws://stub');
    expect([searchParams.get('client_id'), searchParams.get('since')]).toEqual(['kept', 'c7']);
    const handled = next(client, 'message.received');
    stub.mail();
    await handled;
    await client.close();
    expect(kept).toEqual({ client_id: 'kept', cursor: 'c1' });
  });

  it('reports a store that fails, and goes on', async () => {
    const cursorStore = {
      load: () => undefined,
      save: () => {
        throw new Error('disk full');
      },
    };
    const client = clientOf({ cursorStore });
    const error = next(client, 'error');
    await client.connect();
    expect(await error).toEqual(new Error('disk full'));
    expect(await client.ping()).toHaveProperty('server_time');
  });

  it('warns of a key that goes in the clear to another host', () => {
    const said = vi.spyOn(console, 'warn').mockImplementation(() => {});
    new DaimonWebSocket({ apiKey: 'dm_live_test', url: 'ws://broker.example' });
    new DaimonWebSocket({ apiKey: 'dm_live_test', url: 'wss://broker.example' });
    new DaimonWebSocket({ apiKey: 'dm_live_test', url: 'http://localhost:8765' });
    expect(said).toHaveBeenCalledOnce();
  });

  it.each(['ftp://broker.example', 'ws://', '::'])('takes %s for no address', (url) => {
    expect(() => new DaimonWebSocket({ apiKey: 'dm_live_test', url })).toThrow('url');
  });
});
