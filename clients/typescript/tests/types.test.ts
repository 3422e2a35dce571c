/** What a compiler knows of the client: `npm run types` holds it, and here it costs nothing. */

import { expectTypeOf, it } from 'vitest';
import type { Account, Bounce, DaimonEvent, DaimonWebSocket, Fields, Gap, Lease, Message } from '../src/node.js';

declare const client: DaimonWebSocket;

function typed(): void {
  client.on('message.received', (message, event) => {
    expectTypeOf(message).toEqualTypeOf<Message>();
    expectTypeOf(message.labels).toEqualTypeOf<string[]>();
    expectTypeOf(event).toEqualTypeOf<DaimonEvent<Message>>();
  });
  client.on('message.bounced', (bounce) => expectTypeOf(bounce).toEqualTypeOf<Bounce>());
  client.on('account.upgraded', (account) => expectTypeOf(account).toEqualTypeOf<Account>());
  client.on('agent.thought', (payload) => expectTypeOf(payload).toEqualTypeOf<Fields>());
  client.on('connected', (...nothing) => expectTypeOf(nothing).toEqualTypeOf<[]>());
  client.on('disconnected', (reason) => expectTypeOf(reason).toEqualTypeOf<string>());
  client.on('gap', (gap) => expectTypeOf(gap).toEqualTypeOf<Gap>());
  client.on('error', (error) => expectTypeOf(error).toEqualTypeOf<Error>());
  // @ts-expect-error a mail has a text for a subject
  client.on('message.received', ({ subject }: { subject: number }) => subject);
  // @ts-expect-error a mail goes from an inbox
  void client.sendEmail({ to: 'ada@example.com' });
  // @ts-expect-error a command has an action
  void client.send({ inbox_id: 'inbox_a' });
  expectTypeOf(client.waitFor('message.received')).resolves.extract<object>().toHaveProperty('message');
  expectTypeOf(client.queue('support')).toEqualTypeOf<AsyncGenerator<Lease, void, undefined>>();
  expectTypeOf(client.command<{ id: string }>('make')).resolves.toEqualTypeOf<{ id: string }>();
}

it('the types of handlers and results are those of the events', () => {
  expectTypeOf(typed).returns.toBeVoid();
});
