/** What needs no connection: when to come back, how far one is, what is followed, what is remembered. */

import { describe, expect, it } from 'vitest';
import { Commands } from '../src/commands.js';
import { BackOff, closed, comesBack, refused, retryAfterMs } from '../src/ending.js';
import { CommandError, OverflowingError } from '../src/errors.js';
import { DaimonEvent } from '../src/events.js';
import { Place } from '../src/place.js';
import { Memory } from '../src/remembering.js';
import { chunks, Selection } from '../src/selection.js';
import { event } from './made.js';

describe('an ending', () => {
  it.each([1002, 1007, 1008, 4401, 4409])('with close code %i is for good', (code) => {
    expect(comesBack(closed(code))).toBe(false);
  });

  it.each([1000, 1001, 1006, 1009, 1011, 1012, 4408, 4999])('with close code %i is not', (code) => {
    expect(comesBack(closed(code))).toBe(true);
  });

  it.each([400, 401, 403, 404, 426])('by a refusal with %i is for good', (status) => {
    expect(comesBack(refused(status, '', undefined, 0))).toBe(false);
  });

  it.each([302, 408, 429, 500, 502, 503])('by a refusal with %i is not', (status) => {
    expect(comesBack(refused(status, '', undefined, 0))).toBe(true);
  });

  it('has the code and the words of the refusal, if there are any', () => {
    const body = '{"error":{"code":"forbidden","message":"not yours"}}';
    expect(refused(403, body, undefined, 0)).toMatchObject({
      code: 'forbidden',
      reason: 'refused with 403: not yours',
    });
    expect(refused(502, '<html>', undefined, 0)).toMatchObject({ reason: 'refused with 502: no reason given' });
  });
});

it.each([
  ['5', 5_000],
  [' 5 ', 5_000],
  ['Thu, 01 Jan 1970 00:01:40 GMT', 90_000],
  ['Thu, 01 Jan 1970 00:00:01 GMT', 0],
  ['soon', 0],
  [undefined, 0],
])('Retry-After %s is %i ms at ten seconds past 1970', (value, ms) => {
  expect(retryAfterMs(value, 10_000)).toBe(ms);
});

describe('waits between attempts', () => {
  it('are by chance up to twice as long each time, and a minute at most', () => {
    const backOff = new BackOff(5_000);
    const most = Array.from({ length: 6 }, () => backOff.next(closed(1006), 1));
    expect(most).toEqual([5_000, 10_000, 20_000, 40_000, 60_000, 60_000]);
    expect(backOff.next(closed(1006), 0.5)).toBe(30_000);
  });

  it('begin anew with a success', () => {
    const backOff = new BackOff(5_000);
    backOff.next(closed(1006), 1);
    backOff.succeeded();
    expect(backOff.next(closed(1006), 1)).toBe(5_000);
  });

  it('are as long as a restarting broker asks, and at least as long as a refusal does', () => {
    const backOff = new BackOff(5_000);
    expect(backOff.next({ ...closed(1012), waitMs: 700 }, 1)).toBe(700);
    expect(backOff.next(refused(429, '', '5', 0), 0)).toBe(5_000);
  });
});

describe('a place', () => {
  function began(...events: DaimonEvent[]): Place {
    const place = new Place();
    place.begin('c0');
    for (const one of events) place.came(one);
    return place;
  }

  it('is that of the last event before which all is dealt with', () => {
    const [one, two, three] = [event(1), event(2), event(3)];
    const place = began(one, two, three);
    place.dealtWith(two, 0, false, 1_000);
    expect([place.handled, place.received]).toEqual(['c0', 'c3']);
    place.dealtWith(one, 0, false, 1_000);
    expect(place.handled).toBe('c2');
  });

  it('moves on with a cursor without an event when nothing before it is under way', () => {
    const one = event(1);
    const place = began(one);
    place.moved('c9');
    expect([place.handled, place.received]).toEqual(['c0', 'c9']);
    place.dealtWith(one, 0, false, 1_000);
    expect(place.handled).toBe('c9');
    place.moved('c10');
    expect(place.handled).toBe('c10');
  });

  it('is acknowledged by a cursor, and beyond a gap in it by event', () => {
    const [one, two, three] = [event(1), event(2), event(3)];
    const place = began(one, two, three);
    place.dealtWith(one, 0, false, 1_000);
    place.dealtWith(three, 0, false, 1_000);
    expect(place.takeAcknowledgement()).toEqual({ cursor: 'c1', eventIds: ['evt_3'] });
    expect(place.owesAcknowledgement).toBe(false);
  });

  it('is acknowledged by event for a window after a failure', () => {
    const [one, two, three] = [event(1), event(2), event(3)];
    const place = began(one, two, three);
    place.dealtWith(one, 0, true, 1_000);
    place.dealtWith(two, 10, false, 1_000);
    expect(place.takeAcknowledgement()).toEqual({ cursor: undefined, eventIds: ['evt_2'] });
    place.dealtWith(three, 1_000, false, 1_000);
    expect(place.takeAcknowledgement()).toEqual({ cursor: 'c3', eventIds: [] });
  });

  it('keeps nothing of what nobody acknowledges, from the start or from then on', () => {
    const [one, two, three] = [event(1), event(2), event(3)];
    const place = new Place(false);
    place.begin('c0');
    for (const it of [one, two, three]) place.came(it);
    place.dealtWith(two, 0, false, 1_000);
    place.dealtWith(one, 0, false, 1_000);
    expect([place.handled, place.owesAcknowledgement]).toEqual(['c2', false]);
    place.acknowledges = true;
    place.dealtWith(three, 0, false, 1_000);
    expect(place.takeAcknowledgement().cursor).toBe('c3');
  });

  it('owes again what came to nothing', () => {
    const one = event(1);
    const place = began(one);
    place.dealtWith(one, 0, false, 1_000);
    place.giveBack(place.takeAcknowledgement());
    expect(place.takeAcknowledgement().cursor).toBe('c1');
  });

  it('goes back to what is handled when a client begins again', () => {
    const [one, two] = [event(1), event(2)];
    const place = began(one, two);
    place.dealtWith(one, 0, false, 1_000);
    expect(place.beginAgain()).toEqual([two]);
    expect(place.received).toBe('c1');
  });
});

describe('a selection', () => {
  it('is all that the key reaches until something is named', () => {
    const selection = new Selection();
    expect(selection.names).toEqual(['*']);
    selection.add(['b', 'a']);
    expect(selection.names).toEqual(['a', 'b']);
    selection.remove(['a']);
    expect(selection.names).toEqual(['b']);
  });

  it('does without no single inbox of all', () => {
    expect(() => new Selection().remove(['a'])).toThrow(CommandError);
  });

  it('knows what is wanted beyond an opening, and what no longer', () => {
    const selection = new Selection(['a', 'b']);
    expect(selection.since(['b', 'c'])).toEqual({ added: ['a'], removed: ['c'] });
    expect(selection.since(['*'])).toEqual({ added: ['a', 'b'], removed: ['*'] });
    selection.hold(['*']);
    expect(selection.since(['a'])).toEqual({ added: ['*'], removed: [] });
  });

  it('stays all where the key reaches less', () => {
    const all = new Selection();
    all.narrow(['a']);
    expect(all.names).toEqual(['*']);
  });
});

it('names are cut into lists that stay below a size', () => {
  expect(chunks(['aaaa', 'bbbb', 'cccc'], 16)).toEqual([['aaaa', 'bbbb'], ['cccc']]);
});

describe('a memory of events', () => {
  it('knows an event by inbox and id, and an id alone in any inbox', () => {
    const memory = new Memory();
    expect(memory.add(event(1))).toBe(true);
    expect(memory.add(event(1))).toBe(false);
    expect(memory.has(event(1, { inbox_id: 'inbox_b' }))).toBe(false);
    expect(memory.has('evt_1')).toBe(true);
    memory.add('evt_2');
    expect(memory.has(event(2))).toBe(true);
  });

  it('forgets the oldest, by event and not by id', () => {
    const memory = new Memory(2);
    memory.add(event(1));
    memory.add(event(2));
    memory.add(event(2, { inbox_id: 'inbox_b' }));
    expect([memory.has('evt_1'), memory.has('evt_2')]).toEqual([false, true]);
  });

  it('takes what is removed for unknown', () => {
    const memory = new Memory();
    memory.add(event(1));
    memory.remove(event(1));
    expect(memory.has('evt_1')).toBe(false);
  });
});

describe('an event', () => {
  it('has what a message does not say as empty, and keeps what this library does not know', () => {
    const { message } = event(1, { payload: { message: { later: [1] } } });
    expect(message).toEqual({
      message_id: '',
      inbox_id: 'inbox_a',
      from: '',
      to: [],
      subject: '',
      body: '',
      labels: [],
      later: [1],
    });
  });

  it('that is no mail has its payload for a message', () => {
    expect(event(1, { type: 'agent.thought', payload: { a: 1 } }).message).toEqual({ a: 1 });
  });

  it('belongs to its thread, else to its inbox', () => {
    expect(event(1, { payload: { message: { thread_id: 't1' } } }).thread).toBe('t1');
    expect(event(1).thread).toBe('inbox_a');
  });

  it('that is none is refused by the name of what is missing', () => {
    expect(() => new DaimonEvent({ type: 'a.b' })).toThrow('event_id');
  });
});

describe('commands that wait', () => {
  const ignore = () => {};

  it('are a thousand at most', () => {
    const commands = new Commands();
    for (let number = 0; number < 1_000; number += 1) commands.give('ping', {}, undefined, ignore, ignore);
    expect(() => commands.give('ping', {}, undefined, ignore, ignore)).toThrow(OverflowingError);
  });

  it('are 8 MiB at most', () => {
    const commands = new Commands();
    const body = 'ü'.repeat(2_200_000); // two bytes each
    commands.give('send_email', { body }, undefined, ignore, ignore);
    commands.give('send_email', { body }, undefined, ignore, ignore);
    expect(() => commands.give('ping', {}, undefined, ignore, ignore)).toThrow(OverflowingError);
  });

  it('have an id that none of them has', () => {
    const commands = new Commands();
    commands.give('ping', {}, 'r1', ignore, ignore);
    expect(() => commands.give('ping', {}, 'r1', ignore, ignore)).toThrow('request_id');
  });

  it('are refused from the longest on', () => {
    const commands = new Commands();
    const refused: string[] = [];
    commands.give('a', { body: 'x' }, undefined, ignore, () => refused.push('short'));
    commands.give('b', { body: 'xxx' }, undefined, ignore, () => refused.push('long'));
    commands.refuseLongest(new Error());
    expect(refused).toEqual(['long']);
    expect(commands.unanswered().length).toBe(1);
  });
});
