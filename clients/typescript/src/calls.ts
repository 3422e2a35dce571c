/** What a program asks of the broker, and of who does its commands, as calls: each waits for its own answer. */

import type { Fields, Message, Subjects } from './events.js';
import type { CommandOptions, Email, Published, SubscribeOptions } from './options.js';
import { type Found, type WaitOptions, waitFor } from './waiting.js';

/** A command as it is written: its parameters beside its action, or in `params`. */
export interface Command {
  action: string;
  request_id?: string;
  params?: Fields;
  // biome-ignore lint/suspicious/noExplicitAny: what a command takes is between you and who does it
  [parameter: string]: any;
}

/** Commands by their names. All reject as `command` does. */
export abstract class Calls {
  /**
   * Give a command and return its result.
   *
   * In a handler it is done once for the event that is handled, if it has an `inbox_id`. Rejects with `CommandError`
   * if it is refused, with `TimedOutError`, `OverflowingError`, and with `ConnectionEndedError` if the client ends
   * before.
   */
  abstract command<Result = Fields>(action: string, params?: object, options?: CommandOptions): Promise<Result>;

  /** Follow more inboxes. */
  abstract subscribe(inboxIds?: string | Iterable<string>, options?: SubscribeOptions): Promise<Fields>;

  /** Follow these inboxes no longer. */
  abstract unsubscribe(inboxIds?: string | Iterable<string>): Promise<Fields>;

  /** Give a command as it is written, `{ action: 'send_email', … }`. */
  async send<Result = Fields>(command: Command): Promise<Result> {
    const { action, request_id: requestId, params, ...more } = command;
    if (typeof action !== 'string') throw new TypeError(`action: ${JSON.stringify(action)} is no name of a command`);
    const fields: Fields = { ...params, ...more };
    const { inbox_ids: inboxIds, since, event_types: eventTypes } = fields;
    if (action === 'subscribe') return (await this.subscribe(inboxIds, { since, eventTypes })) as Result;
    if (action === 'unsubscribe') return (await this.unsubscribe(inboxIds)) as Result;
    return await this.command<Result>(action, fields, { requestId });
  }

  /** Send a mail; returns what the deployment says of it, often its `message_id`. */
  async sendEmail<Result = Fields>(email: Email, options?: CommandOptions): Promise<Result> {
    return await this.command<Result>('send_email', { subject: '', body: '', ...email }, options);
  }

  /** Mark a message as read. */
  async markAsRead(read: { message_id: string; inbox_id?: string | undefined }, options?: CommandOptions) {
    return await this.command('mark_as_read', read, options);
  }

  /** Publish one event or a list. */
  async publish(events: Published | readonly Published[]): Promise<Fields> {
    return await this.command('publish', { events });
  }

  /** Ask for a sign of life. */
  async ping(): Promise<Fields> {
    return await this.command('ping');
  }

  /** Say that events are being worked on, for so many seconds: their webhooks wait so long. */
  async hold(eventIds: readonly string[], seconds: number): Promise<Fields> {
    return await this.command('hold', { event_ids: eventIds, seconds });
  }

  /** The first event that is like this, stored or to come; null if there is none in time. */
  async waitFor<Type extends keyof Subjects>(
    type: Type,
    options?: WaitOptions<Subjects[Type]>,
  ): Promise<Found<Subjects[Type]> | null>;
  async waitFor(type: string, options?: WaitOptions<Fields>): Promise<Found<Fields> | null>;
  async waitFor(type: string, options: WaitOptions<Message> = {}): Promise<Found | null> {
    return await waitFor(type, options, (action, fields, timeout) => this.command(action, fields, { timeout }));
  }
}
