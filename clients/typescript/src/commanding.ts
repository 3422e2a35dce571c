/** Giving commands: what they carry, how long they may take. */

import type { Commands, Pending } from './commands.js';
import { TimedOutError } from './errors.js';
import { type Fields, isObject } from './events.js';
import type { Surroundings } from './handling.js';
import type { CommandOptions } from './options.js';
import { timing } from './timing.js';

/** What the broker does itself: nothing of it carries `once`, or a lease of its own accord. */
const OWN_ACTIONS = new Set(
  ['subscribe', 'unsubscribe', 'publish', 'ping', 'ack', 'hold', 'nack', 'lease', 'wait_for'], //
);

export class Commanding {
  /** `send` sends a command, if there is a connection: it is sent to the next one otherwise. */
  constructor(
    readonly commands: Commands,
    readonly surroundings: Surroundings,
    readonly send: (pending: Pending) => void,
  ) {}

  /** Give a command of the program's. */
  async command(action: string, params: object, options: CommandOptions): Promise<Fields> {
    const fields: Fields = { ...params };
    const once = this.#once(action, fields, options.once);
    if (once !== undefined) fields.once = once;
    const leaseId = this.surroundings.handling?.leaseId;
    if (leaseId !== undefined && !OWN_ACTIONS.has(action)) fields.lease_id ??= leaseId;
    return await this.give(action, fields, options.timeout ?? timing.command, options.requestId);
  }

  #once(action: string, fields: Fields, once: string | null | undefined): string | undefined {
    if (once !== undefined) return once ?? undefined;
    const { handling } = this.surroundings;
    const inboxId: unknown = fields.inbox_id;
    if (handling === undefined || typeof inboxId !== 'string') return undefined;
    return OWN_ACTIONS.has(action) || 'once' in fields ? undefined : handling.once(action, inboxId);
  }

  /** Give a command as it stands, and return its result. */
  async give(action: string, fields: Fields, timeoutMs: number, requestId?: string): Promise<Fields> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      const result = await new Promise<unknown>((resolve, reject) => {
        const pending = this.commands.give(action, fields, requestId, resolve, reject);
        const words = `${action} had no answer in ${timeoutMs / 1_000} s; it may have been done`;
        timer = setTimeout(() => this.commands.refuse(pending, new TimedOutError(words)), timeoutMs);
        this.send(pending);
      });
      return isObject(result) ? result : { result };
    } finally {
      clearTimeout(timer);
    }
  }
}
