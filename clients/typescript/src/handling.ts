/** What a handler that is at work gives its commands. */

import type { DaimonEvent } from './events.js';

/** An event that is worked on, its lease, and how often the work has given each command. */
export class Handling {
  readonly #given = new Map<string, number>();

  constructor(
    readonly event: DaimonEvent,
    readonly leaseId?: string,
  ) {}

  /** The name by which the next command of this action in this inbox is done once. */
  once(action: string, inboxId: string): string {
    const name = `${action} ${inboxId}`;
    const number = (this.#given.get(name) ?? 0) + 1;
    this.#given.set(name, number);
    return number === 1 ? this.event.event_id : `${this.event.event_id}:${number}`;
  }
}

/** Knows which handler a call comes from, where the platform can tell. */
export interface Surroundings {
  /** Run a handler: of an event, or (undefined) of something else. */
  run<T>(handling: Handling | undefined, handler: () => T): T;
  /** The work that the caller is part of, if that can be told. */
  readonly handling: Handling | undefined;
  /** Whether the caller is a handler, or may be one. */
  readonly inside: boolean;
}
