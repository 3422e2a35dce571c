import { DaimonEvent, type Message } from '../src/events.js';

/** A mail, `evt_1` for 1. */
export function event(number: number, more: object = {}): DaimonEvent<Message> {
  const ids = { event_id: `evt_${number}`, cursor: `c${number}`, inbox_id: 'inbox_a' };
  const frame = { type: 'message.received', created_at: '2026-11-23T10:00:00.123Z', payload: { message: {} } };
  return new DaimonEvent<Message>({ ...frame, ...ids, ...more });
}
