/** What waits for handlers, and what keeps a place: in memory, without a connection. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { DaimonEvent } from '../src/events.js';
import { Keeping } from '../src/keeping.js';
import { FileStore } from '../src/node.js';
import { Patience } from '../src/patience.js';
import { Queue, type QueueOptions } from '../src/queue.js';
import { nextTurn, unlessOver } from '../src/timing.js';
import { event } from './made.js';

function queueOf(options: Partial<QueueOptions>): Queue {
  const quiet = { held: () => false, mustRead: () => false, changed: () => {} };
  return new Queue({ concurrency: 1, order: 'thread', handle: async () => {}, ...quiet, ...options });
}

describe('a queue of events', () => {
  it('is full at 8 MiB, and at 64 MiB while a command waits for its answer', () => {
    let mustRead = false;
    const queue = queueOf({ mustRead: () => mustRead });
    queue.pause();
    const big = Object.assign(event(1), { size: 5_000_000 }) as DaimonEvent;
    queue.put(big);
    expect(queue.isFull).toBe(false);
    queue.put(big);
    expect(queue.isFull).toBe(true);
    mustRead = true;
    expect(queue.isFull).toBe(false);
    for (let number = 0; number < 12; number += 1) queue.put(big);
    expect(queue.isFull).toBe(true);
  });

  it('lets events of other threads go first, and each thread keep its order', async () => {
    const begun: string[] = [];
    const queue = queueOf({
      concurrency: 2,
      handle: async ({ event_id, thread }) => {
        begun.push(`${thread}${event_id.slice(4)}`);
        await nextTurn();
      },
    });
    for (const [place, thread_id] of [...'aaabab'].entries()) {
      queue.put(event(place, { payload: { message: { thread_id } } }));
    }
    await queue.idle();
    expect(begun.slice(0, 2)).toEqual(['a0', 'b3']);
    expect(begun.filter((name) => name.startsWith('a'))).toEqual(['a0', 'a1', 'a2', 'a4']);
    expect(begun.filter((name) => name.startsWith('b'))).toEqual(['b3', 'b5']);
  });

  it('leaves turns to the rest of the program, however quick handlers are', async () => {
    let [handled, others] = [0, 0];
    const queue = queueOf({
      handle: async () => {
        handled += 1;
        const until = performance.now() + 1;
        while (performance.now() < until); // a handler's work
      },
    });
    const count = 200;
    const look = () => {
      others += 1;
      if (handled < count) setImmediate(look);
    };
    setImmediate(look);
    for (let number = 0; number < count; number += 1) queue.put(event(number));
    await queue.idle();
    expect(handled).toBe(count);
    expect(others).toBeGreaterThan(5);
  });

  it('needs to let at least one handler run', () => {
    expect(() => queueOf({ concurrency: 0 })).toThrow('concurrency');
  });
});

describe('a cursor store that takes its time', () => {
  it('saves one after another, and of many only the newest', async () => {
    const begun: unknown[] = [];
    const ended: (() => void)[] = [];
    const keeping = new Keeping(
      {
        load: () => undefined,
        save: ({ cursor }) => {
          begun.push(cursor);
          return new Promise((resolve) => ended.push(resolve));
        },
      },
      () => {},
    );
    for (const cursor of ['c1', 'c2', 'c3']) keeping.save({ client_id: 'a', cursor });
    expect(begun).toEqual(['c1']);
    ended[0]?.();
    await vi.waitUntil(() => begun.length === 2, { interval: 1 });
    expect(begun).toEqual(['c1', 'c3']);
    ended[1]?.();
    await keeping.kept();
    keeping.save({ client_id: 'a', cursor: 'c3' });
    expect(begun).toEqual(['c1', 'c3']);
  });

  it('is tried again after it failed, also with the same', async () => {
    const failed = vi.fn();
    const save = vi.fn(async () => {
      throw new Error('away');
    });
    const keeping = new Keeping({ load: () => undefined, save }, failed);
    keeping.save({ client_id: 'a', cursor: 'c1' });
    await keeping.kept();
    keeping.save({ client_id: 'a', cursor: 'c1' });
    await keeping.kept();
    expect([save.mock.calls.length, failed.mock.calls.length]).toEqual([2, 2]);
  });
});

describe('a file that keeps a place', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'daimon-'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it('gives what was saved last, and nothing before', () => {
    const path = join(folder, 'cursor');
    const store = new FileStore(path);
    expect(store.load()).toBeUndefined();
    store.save({ client_id: 'a' });
    expect(store.load()).toEqual({ client_id: 'a', cursor: undefined });
    store.save({ client_id: 'a', cursor: 'c1' });
    expect(new FileStore(path).load()).toEqual({ client_id: 'a', cursor: 'c1' });
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({ client_id: 'a', cursor: 'c1' });
  });

  it.each(['', '[]', '{"cursor":"c1"}'])('that holds %j is told to be none', (text) => {
    const path = join(folder, 'cursor');
    writeFileSync(path, text);
    expect(() => new FileStore(path).load()).toThrow('no cursor store');
  });
});

describe('patience with a silent connection', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('ends ten seconds after a heartbeat that did not come', () => {
    const lost = vi.fn();
    const patience = new Patience(30_000, () => 0, undefined, lost);
    vi.advanceTimersByTime(39_000);
    patience.heard();
    vi.advanceTimersByTime(39_999);
    expect(lost).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1);
    expect(lost).toHaveBeenCalledOnce();
  });

  it('does not end while a long frame comes', () => {
    let bytes = 0;
    const lost = vi.fn();
    new Patience(30_000, () => bytes, undefined, lost);
    for (let number = 0; number < 5; number += 1) {
      bytes += 1;
      vi.advanceTimersByTime(40_000);
    }
    expect(lost).not.toHaveBeenCalled();
    vi.advanceTimersByTime(40_000);
    expect(lost).toHaveBeenCalledOnce();
  });

  it('does not end while nothing is read', () => {
    const lost = vi.fn();
    const patience = new Patience(30_000, () => 0, undefined, lost);
    patience.watch(false);
    patience.heard();
    vi.advanceTimersByTime(1_000_000);
    patience.watch(true);
    vi.advanceTimersByTime(39_999);
    expect(lost).not.toHaveBeenCalled();
  });
});

it('what never comes is not waited for when it is over', async () => {
  const over = new AbortController();
  const waited = unlessOver(over.signal, new Promise(() => {}));
  over.abort();
  expect(await waited).toBeUndefined();
});
