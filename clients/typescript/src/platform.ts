/** What the client needs of where it runs: Node or a browser. */

import type { Ending } from './ending.js';
import type { Surroundings } from './handling.js';

/** An opening: where to, and as whom. */
export interface Request {
  readonly url: string;
  /** A key, or a token. */
  readonly credential: string;
  /** Gives the opening up, within a bounded time. */
  readonly signal: AbortSignal;
}

/** What a socket tells. Nothing more after `ended`. */
export interface Listener {
  /** It is open. */
  opened(): void;
  /** A text came, of so many bytes. */
  text(text: string, size: number): void;
  /** Something came that is no text. */
  sign(): void;
  /** It could not be opened, or is closed. */
  ended(ending: Ending): void;
}

/** A WebSocket, which opens as soon as it is made. */
export interface Socket {
  /** Bytes that were read so far, where that can be told. */
  readonly bytesRead: number | undefined;
  /** Send a text; on one that is closing it is lost. */
  send(text: string): void;
  /** Stop reading, or go on; false where that cannot be done. */
  read(on: boolean): boolean;
  /** Say goodbye. Resolves when it is answered, or when nothing came in time. */
  close(): Promise<void>;
  /** Let go of it at once. */
  drop(): void;
}

export interface Platform {
  /** Begins the names of clients. */
  readonly prefix: string;
  /** Whether a key can be sent; if not, tokens are needed. */
  readonly sendsKeys: boolean;
  /** Whether pings of the broker are seen; if not, the client asks for signs of life itself. */
  readonly seesPings: boolean;
  readonly surroundings: Surroundings;
  /** What a URL without a scheme is below. */
  readonly here: string | undefined;
  /** The environment's value of this name. */
  environment(name: string): string | undefined;
  open(request: Request, listener: Listener): Socket;
}
