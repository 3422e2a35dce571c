/** Handlers, and what they get, by the names of what they are for. */

import { Calls } from './calls.js';
import type { DaimonEvent, Fields, Gap, Subjects } from './events.js';
import type { AnyHandler, Handlers } from './handlers.js';

/** What happens to the connection, and what its handlers get. */
export interface Happenings {
  connected: [];
  /** In words. */
  disconnected: [reason: string];
  gap: [gap: Gap];
  /** Of a handler, the token function, the cursor store; what the broker said of a frame; why it ended for good. */
  error: [error: Error];
}

/** Gets what an event is about, and the event. */
export type EventHandler<Subject extends Fields> = (message: Subject, event: DaimonEvent<Subject>) => unknown;

/** What handlers can be given to. */
export abstract class Listening extends Calls {
  readonly #handlers: Handlers;

  constructor(handlers: Handlers) {
    super();
    this.#handlers = handlers;
  }

  /**
   * Call a handler for events of a type (`message.received`, `message.*`, `*`), or for what happens to the connection:
   * `connected`, `disconnected`, `gap`, `error`.
   *
   * A handler of `message.received` gets the message, of other types the payload; and beside it the event.
   */
  on<Name extends keyof Happenings>(name: Name, handler: (...given: Happenings[Name]) => unknown): this;
  on<Type extends keyof Subjects>(type: Type, handler: EventHandler<Subjects[Type]>): this;
  on(type: string, handler: EventHandler<Fields>): this;
  on(name: string, handler: AnyHandler): this {
    this.#handlers.add(name, handler);
    return this;
  }

  /** Call it no longer. */
  off(name: string, handler: AnyHandler): this {
    this.#handlers.remove(name, handler);
    return this;
  }
}
