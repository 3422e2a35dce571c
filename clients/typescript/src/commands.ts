/** Commands that wait for their answers, over any number of connections. */

import { CommandError, type DaimonError, OverflowingError } from './errors.js';
import type { Fields } from './events.js';

const MAX_WAITING = 1_000;
const MAX_WAITING_BYTES = 8_388_608;

/** One command, until it has its answer. */
export interface Pending {
  readonly requestId: string;
  readonly text: string;
  readonly size: number;
  readonly answered: (result: unknown) => void;
  readonly failed: (error: Error) => void;
}

/** All commands of a client that have no answer yet, in the order in which they were given. */
export class Commands {
  readonly #pending = new Map<string, Pending>();
  #bytes = 0;
  #ended: DaimonError | undefined;

  /**
   * Note a command, and what is to be called with its answer.
   *
   * @throws OverflowingError, or why the client has ended
   */
  give(
    action: string,
    fields: Fields,
    requestId: string | undefined,
    answered: Pending['answered'],
    failed: Pending['failed'],
  ): Pending {
    if (this.#ended !== undefined) throw this.#ended;
    if (this.#pending.size >= MAX_WAITING || this.#bytes > MAX_WAITING_BYTES) {
      throw new OverflowingError(`${this.#pending.size} commands wait for their answers`);
    }
    const id = requestId ?? `req_${randomHex(12)}`;
    if (this.#pending.has(id)) throw new RangeError(`request_id: ${JSON.stringify(id)} waits for its answer already`);
    const text = JSON.stringify({ action, request_id: id, ...fields });
    const pending = { requestId: id, text, size: bytesOf(text), answered, failed };
    this.#pending.set(id, pending);
    this.#bytes += pending.size;
    return pending;
  }

  /** Wait for a command's answer no longer, and do not send it again. */
  drop({ requestId, size }: Pending): void {
    if (this.#pending.delete(requestId)) this.#bytes -= size;
  }

  /** What is to be sent to a new connection, in order. */
  unanswered(): Pending[] {
    return [...this.#pending.values()];
  }

  /** Whether a command has no answer yet. */
  get waiting(): boolean {
    return this.#pending.size > 0;
  }

  /** Hear an answer; return whether a command waited for it. */
  answer(frame: Fields): boolean {
    const pending = this.#pending.get(String(frame.request_id));
    if (pending === undefined) return false;
    this.drop(pending);
    const error = frame.error;
    if (error == null) {
      pending.answered(frame.result);
    } else {
      const { code, message, retry_after_ms } = error;
      pending.failed(new CommandError(String(code), String(message), retry_after_ms, Boolean(frame.duplicate)));
    }
    return true;
  }

  /** Let a command fail: it is not sent again. */
  refuse(pending: Pending, error: Error): void {
    this.drop(pending);
    pending.failed(error);
  }

  /** Let the longest fail, if there is one. */
  refuseLongest(error: Error): void {
    const [first, ...others] = this.#pending.values();
    if (first === undefined) return;
    this.refuse(
      others.reduce((longest, one) => (one.size > longest.size ? one : longest), first),
      error,
    );
  }

  /** Take commands, also after an end. */
  begin(): void {
    this.#ended = undefined;
  }

  /** Let all that waits fail, and all that is given from now on. */
  end(error: DaimonError): void {
    this.#ended = error;
    for (const pending of this.unanswered()) this.refuse(pending, error);
  }
}

/** What a command is refused with that the broker would not read. */
export function tooLarge(): CommandError {
  return new CommandError('too_large', 'The broker takes no message of this size');
}

/** The bytes of a text in UTF-8. */
export function bytesOf(text: string): number {
  return new TextEncoder().encode(text).length;
}

/** So many random bytes, in hexadecimal. */
export function randomHex(bytes: number): string {
  const random = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
