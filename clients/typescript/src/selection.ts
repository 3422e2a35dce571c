/** Which inboxes a client follows, and how that differs from what a connection was opened with. Pure. */

import { CommandError } from './errors.js';

const ALL = '*';

/** The inboxes that are wanted; not said yet means all that the key reaches. */
export class Selection {
  #inboxIds: Set<string> | undefined;

  constructor(inboxIds?: Iterable<string>) {
    this.#inboxIds = inboxIds && new Set(inboxIds);
  }

  /** What to ask the broker for: names in order, `*` alone for all, nothing for none. */
  get names(): string[] {
    if (this.#inboxIds === undefined || this.#inboxIds.has(ALL)) return [ALL];
    return [...this.#inboxIds].sort();
  }

  /** Want these, too; the first that are named are wanted instead of all. */
  add(names: Iterable<string>): void {
    this.#inboxIds = new Set([...(this.#inboxIds ?? []), ...names]);
  }

  /**
   * Want these no longer.
   *
   * @throws CommandError where all are wanted, as the broker would
   */
  remove(names: Iterable<string>): void {
    const removed = new Set(names);
    if (removed.has(ALL)) {
      this.#inboxIds = new Set();
      return;
    }
    if (this.names[0] === ALL) {
      throw new CommandError('invalid_params', 'Under `*` single inboxes cannot be unsubscribed');
    }
    this.#inboxIds = new Set(this.names.filter((name) => !removed.has(name)));
  }

  /** Hear from the broker what is followed now. */
  hold(names: Iterable<string>): void {
    this.#inboxIds = new Set(names);
  }

  /** Hear from the broker that the key reaches less now: what is left of the connection's inboxes. */
  narrow(names: Iterable<string>): void {
    if (this.names[0] !== ALL) this.hold(names);
  }

  /** What is wanted beyond what a connection was opened with, and what is wanted no longer. */
  since(openedWith: readonly string[]): { added: string[]; removed: string[] } {
    const now = this.names;
    const had = new Set(openedWith);
    if (now[0] === ALL) return { added: had.has(ALL) ? [] : [ALL], removed: [] };
    if (had.has(ALL)) return { added: now, removed: [ALL] };
    const wanted = new Set(now);
    return { added: now.filter((name) => !had.has(name)), removed: openedWith.filter((name) => !wanted.has(name)) };
  }
}

/** One name, or several, as a list. */
export function namesOf(inboxIds: string | Iterable<string>): string[] {
  return typeof inboxIds === 'string' ? [inboxIds] : [...inboxIds];
}

/** Names in lists that stay below so many characters each, quotes and commas counted. */
export function chunks(names: Iterable<string>, mostCharacters: number): string[][] {
  const found: string[][] = [];
  let size = mostCharacters;
  for (const name of names) {
    size += name.length + 4;
    if (size > mostCharacters) {
      found.push([]);
      size = name.length + 4;
    }
    found.at(-1)?.push(name);
  }
  return found;
}
