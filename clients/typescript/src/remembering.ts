/** Names of events, the oldest of which are forgotten. Pure. */

import { DaimonEvent } from './events.js';

const MAX_KNOWN = 10_000;

/** Stands for whichever inbox: no inbox has this name. */
const ANY = '*';

/** The last events by inbox and id; an id alone is of any inbox. */
export class Memory {
  readonly #byId = new Map<string, Set<string | undefined>>();
  #count = 0;

  constructor(readonly most = MAX_KNOWN) {}

  /** Remember an event, or an id; return whether it was unknown. */
  add(event: DaimonEvent | string): boolean {
    const isNew = !this.has(event);
    const [eventId, inboxId] = namesOf(event);
    const inboxes = this.#byId.get(eventId) ?? new Set();
    this.#count += inboxes.has(inboxId) ? 0 : 1;
    inboxes.add(inboxId);
    this.#byId.delete(eventId);
    this.#byId.set(eventId, inboxes);
    this.#forget();
    return isNew;
  }

  #forget(): void {
    for (const [eventId, inboxes] of this.#byId) {
      if (this.#count <= this.most) return;
      this.#byId.delete(eventId);
      this.#count -= inboxes.size;
    }
  }

  /** Whether it is remembered. */
  has(event: DaimonEvent | string): boolean {
    const [eventId, inboxId] = namesOf(event);
    const inboxes = this.#byId.get(eventId);
    return inboxes !== undefined && (inboxId === ANY || inboxes.has(inboxId) || inboxes.has(ANY));
  }

  /** Take it for unknown from now on. */
  remove(event: DaimonEvent): void {
    const inboxes = this.#byId.get(event.event_id);
    if (inboxes?.delete(event.inbox_id)) this.#count -= 1;
    if (inboxes?.size === 0) this.#byId.delete(event.event_id);
  }
}

function namesOf(event: DaimonEvent | string): [string, string | undefined] {
  return event instanceof DaimonEvent ? [event.event_id, event.inbox_id] : [event, ANY];
}
