/** Waiting for one event. */

import type { Give } from './acknowledging.js';
import { TimedOutError } from './errors.js';
import { DaimonEvent, type Fields, type Message } from './events.js';
import { timing } from './timing.js';

/** What the broker looks for: texts in these places. */
export interface Where {
  from?: string;
  to?: string;
  subject?: string;
  contains?: string;
  thread_id?: string;
  in_reply_to?: string;
}

export interface WaitOptions<Subject = Message> {
  inboxId?: string;
  /** Texts to find, or a function of what a handler would get. */
  where?: Where | ((message: Subject) => boolean);
  /** A cursor or a duration such as `5m`, from where on what is stored is looked at; unless given: now. */
  since?: string;
  /** Milliseconds; 60,000 unless given. */
  timeout?: number;
  /** What to read out of the mail. */
  extract?: readonly ('code' | 'link')[];
}

/** A link that was read out of a mail. */
export interface Link extends Fields {
  url: string;
}

/**
 * The event that a wait found, and what was read out of it.
 *
 * `codes` and `links` are candidates, the likeliest first: a stranger wrote the mail.
 */
export interface Found<Subject extends Fields = Message> {
  readonly event: DaimonEvent<Subject>;
  /** What a handler of the event would get. */
  readonly message: Subject;
  readonly cursor: string;
  readonly codes: readonly string[];
  readonly links: readonly Link[];
}

/** The first event that is like this; null if there is none in time. Rejects as `give` does. */
export async function waitFor<Subject extends Fields>(
  type: string,
  options: WaitOptions<Subject>,
  give: Give,
): Promise<Found<Subject> | null> {
  const { inboxId, where, extract = [], timeout = 60_000 } = options;
  const deadline = performance.now() + timeout;
  const asked: Fields = { event_types: [type], extract };
  if (inboxId !== undefined) asked.inbox_ids = [inboxId];
  if (typeof where === 'object') asked.where = where;
  let since = options.since ?? 'now';
  if (since === 'now') {
    // Told once: a wait that is sent again over a reconnect begins at the same place.
    since = (await give('wait_for', { ...asked, timeout_seconds: 0 }, timeout + timing.answer)).cursor;
  }
  for (;;) {
    const left = Math.max(0, Math.min(deadline - performance.now(), timing.wait));
    const answer = await asking({ ...asked, since, timeout_seconds: left / 1_000 }, left, give);
    if (answer?.event) {
      const event = new DaimonEvent<Subject>(answer.event);
      if (typeof where !== 'function' || where(event.message)) return found(event, answer);
    } else if (performance.now() >= deadline) {
      return null;
    }
    since = answer?.cursor ?? since;
  }
}

/** The answer to one wait; undefined if the connection was away: had there been one before, it would have come. */
async function asking(fields: Fields, waitMs: number, give: Give): Promise<Fields | undefined> {
  try {
    return await give('wait_for', fields, waitMs + timing.answer);
  } catch (error) {
    if (error instanceof TimedOutError) return undefined;
    throw error;
  }
}

function found<Subject extends Fields>(event: DaimonEvent<Subject>, answer: Fields): Found<Subject> {
  const { code = [], link = [] } = answer.extracted ?? {};
  return { event, message: event.message, cursor: answer.cursor, codes: code ?? [], links: link ?? [] };
}
