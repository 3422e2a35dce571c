/** What a client is made with. */

import type { CursorStore } from './keeping.js';
import type { TokenFunction } from './opening.js';
import type { Order } from './queue.js';

export interface DaimonOptions {
  /** An inbox key or an account key; unless given DAIMON_API_KEY of the environment. Not in browsers. */
  apiKey?: string | undefined;
  /** The broker; unless given DAIMON_WS_URL of the environment, else the planned `wss://ws.daimon.email/v1/stream`. */
  url?: string | URL | undefined;
  /** Instead of a key: gives a fresh connection token for each opening. */
  token?: TokenFunction | undefined;
  /** What is followed; unless given all that the key reaches, or what was subscribed to before the opening. */
  inboxIds?: Iterable<string> | undefined;
  /** Exact types or prefixes with `.*`; unless given all. */
  eventTypes?: Iterable<string> | undefined;
  /** Whether a lost connection is opened again; true unless given. */
  autoReconnect?: boolean | undefined;
  /** Milliseconds before the first attempt to do so, at most; then up to twice as long each time. 5,000 unless given. */
  reconnectDelay?: number | undefined;
  /** This client's own name; unless given a random one, kept in the store if there is one. */
  clientId?: string | undefined;
  /** Where the place in the stream is kept over restarts of the program. */
  cursorStore?: CursorStore | undefined;
  /** Whether what handlers have returned from is acknowledged; `auto` unless given. */
  ack?: 'auto' | 'manual' | 'off' | undefined;
  /** How many handlers may run at once; 1 unless given. */
  concurrency?: number | undefined;
  /** Of what only one may run at a time, where several may; `thread` unless given. */
  order?: Order | undefined;
}

/** How a command is given. */
export interface CommandOptions {
  /** The name for which it is done once, instead of the event that is handled; null: not once. */
  once?: string | null | undefined;
  /** Milliseconds that it may take; 30,000 unless given. */
  timeout?: number | undefined;
  /** Its id, instead of a random one. */
  requestId?: string | undefined;
}

export interface SubscribeOptions {
  /** A cursor, a duration such as `5m`, or a time, from where on what is stored comes, too. */
  since?: string | undefined;
  /** Replaces the client's. */
  eventTypes?: Iterable<string> | undefined;
}

/** A mail to send, and what else your deployment knows. */
export interface Email {
  inbox_id: string;
  to: string | readonly string[];
  subject?: string;
  body?: string;
  in_reply_to?: string | undefined;
  [more: string]: unknown;
}

/** An event to publish (PROTOCOL section 6). */
export interface Published {
  type: string;
  payload: object;
  inbox_id?: string | undefined;
  event_id?: string | undefined;
  created_at?: string | undefined;
}
