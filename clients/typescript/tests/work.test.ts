/** Waiting for one event, and work from a queue. */

import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { DaimonWebSocket, type Fields } from '../src/node.js';
import { openStub, type Stub } from './stub.js';

let stub: Stub;
let client: DaimonWebSocket;

beforeEach(async () => {
  stub = await openStub();
  client = new DaimonWebSocket({ apiKey: 'dm_live_test', url: stub.url, reconnectDelay: 1, ack: 'off' });
  await client.connect();
});

afterEach(async () => {
  vi.useRealTimers();
  await client.close();
  await stub.end();
});

function frame(number: number, message: Fields = {}): Fields {
  const ids = { event_id: `evt_${number}`, inbox_id: 'inbox_a', cursor: `c${number}` };
  return { type: 'message.received', ...ids, created_at: '2026-11-23T10:00:00.123Z', payload: { message } };
}

describe('a wait', () => {
  it('is told its beginning once, and gives what was read out of the mail', async () => {
    const found = {
      event: frame(7),
      cursor: 'c7',
      extracted: { code: ['493201'], link: [{ url: 'https://a.example' }] },
    };
    stub.answers.set('wait_for', ({ since }) => ({ result: since ? found : { event: null, cursor: 'c5' } }));
    const answer = await client.waitFor('message.received', { where: { subject: 'code' }, extract: ['code', 'link'] });
    expect(answer).toMatchObject({ codes: ['493201'], links: [{ url: 'https://a.example' }], cursor: 'c7' });
    expect(answer?.event.event_id).toBe('evt_7');
    const [first, second] = stub.of('wait_for');
    expect(first).toMatchObject({ timeout_seconds: 0, event_types: ['message.received'] });
    expect(second).toMatchObject({ since: 'c5', where: { subject: 'code' } });
    expect(second?.timeout_seconds).toBeGreaterThan(59);
    expect(second?.timeout_seconds).toBeLessThanOrEqual(60);
  });

  it('by a function goes on behind what does not fit', async () => {
    const stored = [frame(1, { body: 'short' }), frame(2, { body: 'long enough' })];
    stub.answers.set('wait_for', ({ since }) => {
      const event = since === '5m' ? stored[0] : stored[1];
      return { result: { event, cursor: event?.cursor } };
    });
    const found = await client.waitFor('message.received', { where: ({ body }) => body.length > 5, since: '5m' });
    expect(found?.event.event_id).toBe('evt_2');
    expect(stub.of('wait_for').map(({ since }) => since)).toEqual(['5m', 'c1']);
  });

  it('gives null when its time is over', async () => {
    stub.answers.set('wait_for', () => ({ result: { event: null, cursor: 'c5' } }));
    expect(await client.waitFor('message.received', { timeout: 0 })).toBeNull();
  });

  it('gives null when its time is over while the connection is away', async () => {
    stub.answers.set('wait_for', () => undefined);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
    const waited = client.waitFor('message.received', { since: 'c1', timeout: 1_000 });
    await stub.until(() => stub.of('wait_for').length === 1);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(await waited).toBeNull();
  });
});

describe('a queue', () => {
  /** Lets leases be given, then none. */
  function give(...numbers: number[]): void {
    const given = numbers.map((number) => ({
      lease_id: `lease_${number}`,
      event: frame(number),
      attempt: 1,
      expires_at: '2026-11-23T10:01:00.000Z',
    }));
    stub.answers.set('lease', () => {
      const lease = given.shift();
      return lease && { result: { leases: [lease] } };
    });
    for (const action of ['ack', 'hold', 'nack']) stub.answers.set(action, () => ({ result: { lost: [] } }));
  }

  it('gives leases one after another, each acknowledged when its work is done', async () => {
    give(1, 2);
    const worked: string[] = [];
    for await (const lease of client.queue('support')) {
      await lease.work((message, event) => worked.push(`${event.event_id} in ${message.inbox_id}`));
      if (worked.length === 2) break;
    }
    expect(worked).toEqual(['evt_1 in inbox_a', 'evt_2 in inbox_a']);
    expect(stub.of('ack').map(({ lease_ids }) => lease_ids)).toEqual([['lease_1'], ['lease_2']]);
    expect(stub.of('lease')[0]).toMatchObject({ queue_id: 'support', max: 1, seconds: 60, wait_seconds: 50 });
  });

  it('lets commands of the work carry its lease and its event', async () => {
    give(1);
    for await (const lease of client.queue('support')) {
      await lease.work(({ inbox_id }) => client.sendEmail({ inbox_id, to: 'ada@example.com' }));
      break;
    }
    expect(stub.of('send_email')).toMatchObject([{ lease_id: 'lease_1', once: 'evt_1' }]);
    expect(stub.of('ack')[0]).not.toHaveProperty('lease_id');
  });

  it('is given back what fails, and goes on', async () => {
    give(1, 2);
    const errors: Error[] = [];
    client.on('error', (error) => errors.push(error));
    for await (const lease of client.queue('support')) {
      if (lease.lease_id === 'lease_2') break;
      await lease.work(() => {
        throw new RangeError('no such answer');
      });
    }
    expect(stub.of('nack')).toMatchObject([{ lease_ids: ['lease_1'], reason: 'RangeError: no such answer' }]);
    expect(stub.of('ack')).toEqual([]);
    expect(errors).toEqual([new RangeError('no such answer')]);
  });

  it('holds what is worked on, and says when it is lost', async () => {
    give(1);
    stub.answers.set('hold', () => ({ result: { lost: stub.of('hold').length === 2 ? ['lease_1'] : [] } }));
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const errors: Error[] = [];
    client.on('error', (error) => errors.push(error));
    for await (const lease of client.queue('support')) {
      await lease.work(async () => {
        for (const number of [1, 2]) {
          vi.advanceTimersByTime(20_000);
          await stub.until(() => stub.of('hold').length === number);
          if (number === 1) while (vi.getTimerCount() === 0) await new Promise(setImmediate);
          await new Promise(setImmediate);
          await new Promise(setImmediate);
        }
        if (!lease.signal.aborted) await new Promise((resolve) => lease.signal.addEventListener('abort', resolve));
      });
      break;
    }
    expect(stub.of('hold')[0]).toMatchObject({ lease_ids: ['lease_1'], seconds: 60 });
    expect(stub.of('ack')).toEqual([]);
    expect(errors).toMatchObject([{ code: 'lease_lost' }]);
  });

  it('lets loops of one client take turns, and end with it', async () => {
    give(1);
    const loops = [1, 2].map(async () => {
      for await (const lease of client.queue('support')) await lease.work(() => {});
    });
    await stub.until(() => stub.of('lease').length === 2);
    await client.ping();
    expect(stub.of('lease').length).toBe(2);
    await client.close();
    await Promise.all(loops);
  });

  it('is asked again where the broker wants a pause', async () => {
    give(1);
    const usual = stub.answers.get('lease');
    const error = { code: 'rate_limited', message: 'slowly', retry_after_ms: 1 };
    stub.answers.set('lease', (command) => (stub.of('lease').length === 1 ? { error } : usual?.(command)));
    for await (const lease of client.queue('support')) {
      expect(lease.lease_id).toBe('lease_1');
      break;
    }
  });

  it('is asked again when nothing was answered', async () => {
    give(1);
    const usual = stub.answers.get('lease');
    stub.answers.set('lease', (command) => (stub.of('lease').length === 1 ? undefined : usual?.(command)));
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const first = client.queue('support').next();
    await stub.until(() => stub.of('lease').length === 1);
    await vi.advanceTimersByTimeAsync(70_000);
    expect((await first).value?.lease_id).toBe('lease_1');
  });

  it('holds nothing any more when its work is done', async () => {
    give(1);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    for await (const lease of client.queue('support')) {
      await lease.work(() => {});
      break;
    }
    await vi.advanceTimersByTimeAsync(25_000);
    await client.ping();
    expect(stub.of('hold')).toEqual([]);
  });

  it('that is refused ends the loop with the refusal', async () => {
    stub.answers.set('lease', () => ({ error: { code: 'not_found', message: 'no such queue' } }));
    await expect(client.queue('support').next()).rejects.toMatchObject({ code: 'not_found' });
  });
});
