/** What happens to the connection, told to the program in order, beside the events: it never holds the reader up. */

import { asError } from './errors.js';
import type { Handlers } from './handlers.js';

const MAX_NOTICES = 1_000;

/**
 * What `connected`, `disconnected`, `gap` and `error` handlers are still to be told.
 *
 * No event is handed on before a notice that came earlier, unless a handler of one is at work already.
 */
export class Notices {
  #waiting: (() => Promise<void>)[] = [];
  #telling: Promise<void> | undefined;
  #atWork = false;

  /** `changed` is called when events may be handed on again. */
  constructor(
    readonly handlers: Handlers,
    readonly changed: () => void,
  ) {}

  /** Let the handlers of a name be called. */
  tell(name: string, ...given: unknown[]): void {
    this.#put(() => this.handlers.tell(name, ...given));
  }

  /** Say that something failed. */
  report(what: string, thrown: unknown): void {
    this.#put(() => this.handlers.report(what, asError(thrown)));
  }

  #put(notice: () => Promise<void>): void {
    if (this.#waiting.length >= MAX_NOTICES) {
      console.error('daimon-email: a handler of connected, disconnected, gap or error does not return');
      return;
    }
    this.#waiting.push(notice);
    this.#telling ??= this.#tell();
  }

  /** Whether something is to be told before the next event. */
  get unheard(): boolean {
    return this.#waiting.length > 0 && !this.#atWork;
  }

  /** Resolves when everything is told. */
  async told(): Promise<void> {
    await this.#telling;
  }

  async #tell(): Promise<void> {
    await undefined; // whoever tells goes on first
    for (let notice = this.#waiting.shift(); notice !== undefined; notice = this.#waiting.shift()) {
      this.#atWork = true;
      this.changed();
      await notice();
      this.#atWork = false;
    }
    this.#telling = undefined;
    this.changed();
  }
}
