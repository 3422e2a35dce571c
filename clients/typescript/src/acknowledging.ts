/** Saying to the broker what is dealt with, and what is being worked on (PROTOCOL sections 4 and 9). */

import { CommandError, DaimonError } from './errors.js';
import type { DaimonEvent, Fields } from './events.js';
import type { Place } from './place.js';
import { timing } from './timing.js';

/** Of a broker that knows no acknowledgements, or a key that may not. */
const NOT_FOR_US = new Set(['unknown_action', 'forbidden']);

/** Gives a command, by its action, its fields and how long it may take, and returns the result. */
export type Give = (action: string, fields: Fields, timeoutMs: number) => Promise<Fields>;

/** The acknowledgements and holds of one client. */
export class Acknowledging {
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Whether the broker takes them. */
  #possible = true;

  constructor(
    readonly place: Place,
    readonly connected: () => boolean,
    readonly give: Give,
  ) {}

  /** Acknowledge within a second what is dealt with by then; while there is no connection, later. */
  soon(): void {
    if (this.#timer !== undefined || !this.#possible || !this.place.owesAcknowledgement) return;
    this.#timer = setTimeout(async () => {
      this.#timer = undefined;
      if (this.connected()) await this.now();
      if (this.connected()) this.soon();
    }, timing.acknowledge);
  }

  /** Wait no longer. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** Acknowledge all that is dealt with. What does not come to anything is tried again with the next. */
  async now(): Promise<void> {
    if (!this.#possible || !this.place.owesAcknowledgement) return;
    const owed = this.place.takeAcknowledgement();
    const fields: Fields = owed.cursor === undefined ? {} : { cursor: owed.cursor };
    if (owed.eventIds.length > 0) fields.event_ids = owed.eventIds;
    if (fields.cursor === undefined && fields.event_ids === undefined) return;
    if (!(await this.#try('ack', fields, timing.holdAfter))) this.place.giveBack(owed);
  }

  /** Hold an event again and again while it is handled; return what ends that. */
  hold(event: DaimonEvent): () => void {
    const hold = async () => {
      timer = undefined;
      if (!this.#possible) return;
      const fields = { event_ids: [event.event_id], seconds: timing.hold / 1_000 };
      await this.#try('hold', fields, timing.holdEvery);
      if (!over) timer = setTimeout(hold, timing.holdEvery);
    };
    let over = false;
    let timer: ReturnType<typeof setTimeout> | undefined = setTimeout(hold, timing.holdAfter);
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }

  /** Give a command; return whether it was answered, be it with a refusal. */
  async #try(action: string, fields: Fields, timeoutMs: number): Promise<boolean> {
    try {
      await this.give(action, fields, timeoutMs);
    } catch (error) {
      if (error instanceof CommandError) {
        if (NOT_FOR_US.has(error.code)) this.#possible = this.place.acknowledges = false;
        return true;
      }
      if (!(error instanceof DaimonError)) throw error;
      return false;
    }
    return true;
  }
}
