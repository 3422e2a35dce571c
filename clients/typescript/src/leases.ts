/** Work from a queue that many share: each event to one worker at a time (PROTOCOL section 11). */

import type { Give } from './acknowledging.js';
import { asError, CommandError, ConnectionEndedError, TimedOutError } from './errors.js';
import { DaimonEvent, type Fields, type Message } from './events.js';
import { Handling, type Surroundings } from './handling.js';
import { sleep, timing } from './timing.js';

const MAX_REASON = 256;
const LATER = new Set(['rate_limited', 'draining', 'unavailable']);

/** What a lease needs of its client. */
export interface Worker {
  readonly give: Give;
  readonly report: (what: string, error: Error) => Promise<void>;
  readonly surroundings: Surroundings;
}

/** An event that this worker has. */
export class Lease<Subject extends Fields = Message> {
  readonly lease_id: string;
  readonly event: DaimonEvent<Subject>;
  /** Which one this is, from 1. */
  readonly attempt: number;
  readonly expires_at: string;
  readonly #worker: Worker;
  readonly #lost = new AbortController();

  constructor(given: Fields, worker: Worker) {
    this.lease_id = given.lease_id;
    this.event = new DaimonEvent<Subject>(given.event);
    this.attempt = given.attempt;
    this.expires_at = given.expires_at;
    this.#worker = worker;
  }

  /** What a handler of the event would get: the message, or the payload. */
  get message(): Subject {
    return this.event.message;
  }

  /** Aborted when the event is another worker's by now. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /**
   * Work on the event: it is held meanwhile, and at the end acknowledged. What the work throws is reported like what a
   * handler throws, and the event is given back. Commands in the work are done once for the event, and not at all when
   * the lease is over.
   */
  async work(work: (message: Subject, event: DaimonEvent<Subject>) => unknown): Promise<void> {
    const over = new AbortController();
    void this.#hold(over.signal);
    try {
      const handling = new Handling(this.event, this.lease_id);
      await this.#worker.surroundings.run(handling, async () => await work(this.message, this.event));
      over.abort();
      if (!this.signal.aborted) await this.#say('ack');
    } catch (thrown) {
      over.abort();
      const error = asError(thrown);
      await this.#worker.report(`work on ${this.event.event_id}`, error);
      await this.#say('nack', { reason: String(error).slice(0, MAX_REASON) });
    }
    if (this.signal.aborted) {
      const lost = new CommandError('lease_lost', `${this.event.event_id} is another worker's by now`);
      await this.#worker.report(`work on ${this.event.event_id}`, lost);
    }
  }

  async #hold(over: AbortSignal): Promise<void> {
    for (;;) {
      await sleep(timing.holdEvery, over);
      if (over.aborted || this.signal.aborted) return;
      await this.#say('hold', { seconds: timing.hold / 1_000 });
    }
  }

  async #say(action: string, fields: Fields = {}): Promise<void> {
    try {
      const asked = { lease_ids: [this.lease_id], ...fields };
      const { lost } = await this.#worker.give(action, asked, timing.holdEvery);
      if (lost?.includes(this.lease_id)) this.#lost.abort();
    } catch (thrown) {
      await this.#worker.report(`${action} of ${this.event.event_id}`, asError(thrown));
    }
  }
}

/** Who may wait at a queue: one after another. */
export class Turns {
  readonly #last = new Map<string, Promise<unknown>>();

  /** Do something when the others before are done. */
  async take<T>(queueId: string, turn: () => Promise<T>): Promise<T> {
    const mine = (this.#last.get(queueId) ?? Promise.resolve()).then(turn, turn);
    this.#last.set(queueId, mine);
    return await mine;
  }
}

/** The events of a queue, one after another, as they are given to this worker. Ends when the client is closed. */
export async function* leasesOf<Subject extends Fields>(
  queueId: string,
  turns: Turns,
  worker: Worker,
): AsyncGenerator<Lease<Subject>, void, undefined> {
  for (;;) {
    const given = await turns.take(queueId, () => next(queueId, worker.give));
    if (given === 'closed') return;
    if (given instanceof CommandError) await sleep(given.retryAfterMs ?? 1_000);
    else for (const lease of given) yield new Lease<Subject>(lease, worker);
  }
}

/** What one question for an event came to: events, a refusal for now, or the end. */
async function next(queueId: string, give: Give): Promise<Fields[] | CommandError | 'closed'> {
  const fields = {
    queue_id: queueId,
    max: 1,
    wait_seconds: timing.lease / 1_000,
    seconds: timing.hold / 1_000,
  };
  try {
    return (await give('lease', fields, timing.lease + timing.holdEvery)).leases;
  } catch (error) {
    if (error instanceof TimedOutError) return [];
    if (error instanceof CommandError && LATER.has(error.code)) return error;
    if (error instanceof ConnectionEndedError && error.code === 1000) return 'closed';
    throw error;
  }
}
