/** How far a client has come: what it has received, and what is dealt with. Pure. */

import type { DaimonEvent } from './events.js';

/** Events of one acknowledgement (PROTOCOL section 4). */
const MAX_SINGLY = 1_000;

interface Step {
  readonly cursor: string;
  /** Undefined where a cursor came with no event. */
  readonly eventId: string | undefined;
  done: boolean;
  /** Whether the acknowledgement of a cursor is for it, too. */
  covered: boolean;
}

/** What is to be acknowledged: all up to a cursor, and single events. */
export interface Acknowledgement {
  cursor: string | undefined;
  eventIds: string[];
}

/**
 * The cursors of one client.
 *
 * `received` is of the last frame that came: what came is kept, so a lost connection is opened again there. `handled`
 * is of the last event before which all is dealt with: a program that starts again begins there. Acknowledged is a
 * cursor as far as all before it is dealt with, and beyond it single events: those whose handlers have returned before
 * an earlier one's, and all of the window after one that failed.
 */
export class Place {
  received: string | undefined;
  handled: string | undefined;
  #steps: Step[] = [];
  #first = 0;
  readonly #byEvent = new Map<DaimonEvent, Step>();
  #blockedUntil: number | undefined;
  #toAcknowledge: string | undefined;
  #singly: Step[] = [];
  #givenBack: string[] = [];

  /** With `acknowledges` what is to be acknowledged is kept until it is taken. */
  constructor(public acknowledges = true) {}

  /** Begin at a cursor that was kept. */
  begin(cursor: string | undefined): void {
    this.received = cursor;
    this.handled = cursor;
  }

  /** Hear of a cursor that comes with no event. */
  moved(cursor: string): void {
    this.received = cursor;
    if (this.#first < this.#steps.length) this.#steps.push({ cursor, eventId: undefined, done: true, covered: false });
    else this.handled = cursor;
  }

  /** Hear of an event that will be handled. */
  came(event: DaimonEvent): void {
    this.received = event.cursor;
    const step = { cursor: event.cursor, eventId: event.event_id, done: false, covered: false };
    this.#steps.push(step);
    this.#byEvent.set(event, step);
  }

  /** Go on from what is handled; return what had come beyond it and was not: it will come again. */
  beginAgain(): DaimonEvent[] {
    const undone = [...this.#byEvent.keys()];
    this.#byEvent.clear();
    this.#steps = [];
    this.#first = 0;
    this.received = this.handled;
    return undone;
  }

  /** Hear that the handlers of an event have returned, or that one has failed; `now` of any steady clock. */
  dealtWith(event: DaimonEvent, now: number, failed: boolean, windowMs: number): void {
    const step = this.#byEvent.get(event);
    if (step === undefined) return;
    this.#byEvent.delete(event);
    step.done = true;
    if (this.#blockedUntil !== undefined && now >= this.#blockedUntil) this.#blockedUntil = undefined;
    if (failed) this.#blockedUntil = now + windowMs;
    else if (this.acknowledges) this.#singly.push(step);
    this.#pass();
  }

  #pass(): void {
    let step = this.#steps[this.#first];
    while (step?.done) {
      this.handled = step.cursor;
      if (this.acknowledges && this.#blockedUntil === undefined) {
        this.#toAcknowledge = step.cursor;
        step.covered = true;
      }
      this.#first += 1;
      step = this.#steps[this.#first];
    }
    if (this.#first * 2 > this.#steps.length) {
      this.#steps = this.#steps.slice(this.#first);
      this.#first = 0;
    }
  }

  /** What is to be acknowledged now; it counts as taken. */
  takeAcknowledgement(): Acknowledgement {
    const beyond = this.#singly.filter((step) => !step.covered).map((step) => step.eventId as string);
    const ids = [...this.#givenBack, ...beyond];
    const cursor = this.#toAcknowledge;
    this.#toAcknowledge = undefined;
    this.#singly = [];
    this.#givenBack = ids.slice(MAX_SINGLY);
    return { cursor, eventIds: ids.slice(0, MAX_SINGLY) };
  }

  /** Owe again what was taken, and did not come to anything. */
  giveBack({ cursor, eventIds }: Acknowledgement): void {
    this.#toAcknowledge ??= cursor;
    this.#givenBack = [...eventIds, ...this.#givenBack];
  }

  /** Whether something is to be acknowledged. */
  get owesAcknowledgement(): boolean {
    return this.#toAcknowledge !== undefined || this.#singly.length > 0 || this.#givenBack.length > 0;
  }
}
