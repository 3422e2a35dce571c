/** Handlers by the name of what they are for. */

import { asError } from './errors.js';
import type { DaimonEvent } from './events.js';
import { Handling, type Surroundings } from './handling.js';

// biome-ignore lint/suspicious/noExplicitAny: `on` has the types
export type AnyHandler = (...given: any[]) => unknown;

export class Handlers {
  readonly #byName = new Map<string, AnyHandler[]>();

  constructor(readonly surroundings: Surroundings) {}

  /** Let a handler be called for a type of events, or for what happens to the connection. */
  add(name: string, handler: AnyHandler): void {
    this.#byName.set(name, [...(this.#byName.get(name) ?? []), handler]);
  }

  /** Call it no longer. */
  remove(name: string, handler: AnyHandler): void {
    const left = (this.#byName.get(name) ?? []).filter((other) => other !== handler);
    this.#byName.set(name, left);
  }

  /** The handlers of a name; `message.*` and `*` are for what begins so. */
  of(name: string): AnyHandler[] {
    const found = [...(this.#byName.get(name) ?? [])];
    for (const [pattern, handlers] of this.#byName) {
      if (pattern.endsWith('*') && pattern !== name && name.startsWith(pattern.slice(0, -1))) found.push(...handlers);
    }
    return found;
  }

  /** Call the handlers of something that is no event. One that fails is reported. */
  async tell(name: string, ...given: unknown[]): Promise<void> {
    for (const handler of this.#byName.get(name) ?? []) {
      try {
        await this.surroundings.run(undefined, async () => await handler(...given));
      } catch (thrown) {
        await this.report(`a handler of ${name}`, asError(thrown), name !== 'error');
      }
    }
  }

  /** Say that something failed: to the handlers of `error`, else on the console. */
  async report(what: string, error: Error, tell = true): Promise<void> {
    if (tell && (this.#byName.get('error') ?? []).length > 0) await this.tell('error', error);
    else console.error(`daimon-email: ${what} failed:`, error);
  }

  /** Call all handlers of an event; return whether none of them failed. */
  async handle(event: DaimonEvent): Promise<boolean> {
    const handling = new Handling(event);
    let well = true;
    for (const handler of this.of(event.type)) {
      try {
        await this.surroundings.run(handling, async () => await handler(event.message, event));
      } catch (thrown) {
        well = false;
        await this.report(`a handler of ${event.type}`, asError(thrown));
      }
    }
    return well;
  }
}
