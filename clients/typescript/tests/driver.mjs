// The conformance driver of the TypeScript client: lines of JSON in, lines of JSON out.

import { createInterface } from 'node:readline';
import {
  BadSignatureError,
  CommandError,
  ConnectionEndedError,
  DaimonWebSocket,
  FileStore,
  OverflowingError,
  TimedOutError,
  verify,
} from '../dist/node.js';
import { timing } from '../dist/timing.js';

const NAMES = new Map([
  [TimedOutError, 'timed_out'],
  [OverflowingError, 'overflowing'],
  [BadSignatureError, 'bad_signature'],
]);

let client;
/** What handlers do with an event, by its id; undefined: with all others. */
let handling = new Map([[undefined, {}]]);

function write(item) {
  process.stdout.write(`${JSON.stringify(item)}\n`);
}

function codeOf(error) {
  const hasCode = error instanceof CommandError || error instanceof ConnectionEndedError;
  return hasCode ? error.code : (NAMES.get(error.constructor) ?? error.constructor.name);
}

function connect({ url, api_key, token_url, cursor_file, grace_seconds, ...options }) {
  if (grace_seconds !== undefined) timing.grace = grace_seconds * 1_000;
  client = new DaimonWebSocket({
    url,
    apiKey: api_key,
    token: token_url && (() => fetched(token_url)),
    clientId: options.client_id,
    cursorStore: cursor_file && new FileStore(cursor_file),
    inboxIds: options.inbox_ids,
    eventTypes: options.event_types,
    reconnectDelay: options.reconnect_delay * 1_000,
    ack: options.ack,
    concurrency: options.concurrency,
    order: options.order,
  });
  client.on('connected', () => write({ on: 'connected' }));
  client.on('disconnected', (reason) => write({ on: 'disconnected', reason }));
  client.on('gap', ({ count }) => write({ on: 'gap', count }));
  client.on('error', (error) => write({ on: 'error', code: codeOf(error) }));
  client.on('*', handle);
  client.closed.then(
    () => write({ on: 'ended' }),
    ({ code, status }) => write({ on: 'ended', code, status }),
  );
  client.connect().catch(() => {}); // it has ended, then
}

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status}`);
  return await answer.text();
}

async function handle(_, event) {
  write({ on: 'event', type: event.type, event_id: event.event_id, inbox_id: event.inbox_id });
  const { milliseconds = 0, command, fail } = handling.get(event.event_id) ?? handling.get(undefined);
  if (milliseconds > 0) await new Promise((resolve) => setTimeout(resolve, milliseconds));
  if (command) await answered(event.event_id, client.command(command.action, command.params));
  if (fail) throw new Error('the handler was told to fail');
  write({ on: 'handled', event_id: event.event_id });
}

async function answered(id, call) {
  try {
    write({ on: 'answer', id, result: asJson(await call) });
  } catch (error) {
    write({ on: 'answer', id, error: { code: codeOf(error) } });
  }
}

function asJson(result) {
  if (result?.event) return { ...asJson(result.event), code: result.codes, link: result.links };
  if (result?.frame) return { event_id: result.event_id, type: result.type, inbox_id: result.inbox_id };
  return result;
}

const HEARD = {
  connect,
  handle({ event_id, ...told }) {
    if (event_id === undefined) handling = new Map();
    handling.set(event_id, told);
  },
  command: ({ id, action, params, timeout = 30 }) =>
    answered(id, client.command(action, params, { timeout: timeout * 1_000 })),
  subscribe: ({ id, inbox_ids, since }) => answered(id, client.subscribe(inbox_ids, { since })),
  unsubscribe: ({ id, inbox_ids }) => answered(id, client.unsubscribe(inbox_ids)),
  wait_for: ({ id, type, inbox_id, timeout, ...wanted }) =>
    answered(id, client.waitFor(type, { ...wanted, inboxId: inbox_id, timeout: timeout * 1_000 })),
  pause: () => client.pause(),
  resume: () => client.resume(),
  reconnect_now: () => client.reconnectNow(),
  close: () => (client === undefined ? write({ on: 'ended' }) : client.close()),
  verify: ({ id, headers, body, secret }) => answered(id, verify(headers, body, secret)),
};

write({ on: 'started' });
const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const { do: what, ...said } = JSON.parse(line);
  HEARD[what](said);
});
lines.on('close', () => process.exit());
