/** For a program that takes webhooks beside the stream: whether one is genuine, and whether its event is dealt with. */

import { asError, BadSignatureError } from './errors.js';
import { DaimonEvent, type Fields } from './events.js';
import { Memory } from './remembering.js';

const TOLERANCE_SECONDS = 300;

/** Of a request: as `fetch` has them, or as Node has them. */
export type WebhookHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>;

/**
 * The event of a webhook whose signature is good (Standard Webhooks: five minutes of tolerance).
 *
 * @param body as it came, byte for byte
 * @param secret `whsec_…`
 * @throws BadSignatureError
 */
export async function verify<Subject extends Fields = Fields>(
  headers: WebhookHeaders,
  body: string | Uint8Array,
  secret: string,
): Promise<DaimonEvent<Subject>> {
  const bytes = typeof body === 'string' ? new TextEncoder().encode(body) : body;
  const said = headerOf(headers, 'webhook-timestamp');
  const signatures = headerOf(headers, 'webhook-signature');
  const age = Math.abs(Date.now() / 1_000 - Number(said));
  if (!/^\d+$/.test(said) || !(age <= TOLERANCE_SECONDS)) {
    throw new BadSignatureError('webhook-timestamp: it is missing, or not of these five minutes');
  }
  const key = await keyOf(secret);
  const head = new TextEncoder().encode(`${headerOf(headers, 'webhook-id')}.${said}.`);
  const signed = joined(head, bytes);
  for (const signature of signatures.split(' ')) {
    const [version, encoded = ''] = signature.split(',');
    const given = version === 'v1' ? decoded(encoded) : undefined;
    if (given !== undefined && (await crypto.subtle.verify('HMAC', key, given, signed))) return eventOf(bytes);
  }
  throw new BadSignatureError('webhook-signature: none of them is good');
}

function headerOf(headers: WebhookHeaders, name: string): string {
  if (headers instanceof Headers) return headers.get(name) ?? '';
  const found = Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
  return typeof found === 'string' ? found : (found?.join(' ') ?? '');
}

function keyOf(secret: string): Promise<CryptoKey> {
  const bytes = decoded(secret.replace(/^whsec_/, ''));
  if (bytes === undefined || bytes.length === 0) throw new BadSignatureError('the secret is none: whsec_…');
  return crypto.subtle.importKey('raw', bytes, { name: 'HMAC', hash: 'SHA-256' }, false, ['verify']);
}

function decoded(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function joined(head: Uint8Array, body: Uint8Array): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(head.length + body.length);
  all.set(head);
  all.set(body, head.length);
  return all;
}

function eventOf<Subject extends Fields>(bytes: Uint8Array): DaimonEvent<Subject> {
  try {
    return new DaimonEvent<Subject>(JSON.parse(new TextDecoder().decode(bytes)), bytes.length);
  } catch (thrown) {
    throw new BadSignatureError(`the body is no event: ${asError(thrown).message}`);
  }
}

/** What the program has said that it has dealt with: no client hands it to handlers. */
export const told = new Memory();
/** What the handlers of a client have dealt with, or are at work on. */
export const taken = new Memory();

/**
 * Say that an event, or an event_id of whichever inbox, is dealt with; return whether it was not before.
 *
 * No client of this program hands it to its handlers then.
 */
export function processed(event: DaimonEvent | string): boolean {
  const isNew = !isProcessed(event);
  told.add(event);
  return isNew;
}

/** Whether an event is dealt with, or being dealt with: by handlers of a client here, or as `processed` was told. */
export function isProcessed(event: DaimonEvent | string): boolean {
  return told.has(event) || taken.has(event);
}
