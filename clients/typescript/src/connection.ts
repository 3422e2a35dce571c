/** One connection, from its opening to its end. */

import { closed, EndedError, type Ending, notOpened } from './ending.js';
import { asError } from './errors.js';
import { Patience } from './patience.js';
import type { Listener, Platform, Request, Socket } from './platform.js';
import { timing } from './timing.js';

/** What is done with what comes. */
export interface Taking {
  /** The first frame; return how often something is to be heard, in milliseconds. Throws `EndedError`. */
  first(text: string): number;
  /** Every other frame, of so many bytes. */
  text(text: string, size: number): void;
}

/** Its ending when it was let go because nothing more could be taken. */
export const FULL: Ending = { reason: 'what came waits for its handlers', code: 1006 };

export class Connection implements Listener {
  #state: 'opening' | 'first' | 'open' | 'ended' = 'opening';
  #reading = true;
  readonly #platform: Platform;
  readonly #taking: Taking;
  #socket: Socket | undefined;
  #patience: Patience | undefined;
  #deadline: ReturnType<typeof setTimeout> | undefined;
  #end!: (ending: Ending) => void;

  constructor(platform: Platform, taking: Taking) {
    this.#platform = platform;
    this.#taking = taking;
  }

  /** Open it, and serve it until it ends, or the request's signal does: then goodbye is said. */
  async run(request: Request): Promise<Ending> {
    const ended = new Promise<Ending>((resolve) => {
      this.#end = resolve;
    });
    const stop = () => this.#finish(closed(1000));
    this.#wait(timing.open, `${new URL(request.url).host} did not answer in time`);
    try {
      this.#socket = this.#platform.open(request, this);
    } catch (thrown) {
      this.#finish(notOpened(asError(thrown).message));
    }
    request.signal.addEventListener('abort', stop);
    if (request.signal.aborted) stop();
    const ending = await ended;
    request.signal.removeEventListener('abort', stop);
    if (request.signal.aborted) await this.#socket?.close();
    else this.#socket?.drop();
    return ending;
  }

  #wait(ms: number, otherwise: string): void {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.ended(notOpened(otherwise)), ms);
  }

  #finish(ending: Ending): void {
    if (this.#state === 'ended') return;
    this.#state = 'ended';
    clearTimeout(this.#deadline);
    this.#patience?.watch(false);
    this.#end(ending);
  }

  /** Send a text; one that is lost with the connection is lost. */
  send(text: string): void {
    if (this.#state === 'open') this.#socket?.send(text);
  }

  get #isOpen(): boolean {
    return this.#state === 'open';
  }

  /** Take more, or nothing for now. */
  read(on: boolean): void {
    if (this.#state !== 'open' || on === this.#reading) return;
    this.#reading = on;
    if (this.#socket?.read(on)) this.#patience?.watch(on);
    else this.#finish(FULL);
  }

  // --- what the socket tells

  opened(): void {
    if (this.#state !== 'opening') return;
    this.#state = 'first';
    this.#wait(timing.ready, 'nothing was heard');
  }

  text(text: string, size: number): void {
    if (this.#state === 'first') this.#take(text);
    else if (this.#state === 'open') {
      this.#patience?.heard();
      this.#taking.text(text, size);
    }
  }

  #take(text: string): void {
    clearTimeout(this.#deadline);
    this.#state = 'open';
    try {
      const heartbeatMs = this.#taking.first(text);
      const ask = () => this.send('{"action":"ping","request_id":"sign of life"}');
      this.#patience = new Patience(
        heartbeatMs,
        () => this.#socket?.bytesRead,
        this.#platform.seesPings ? undefined : ask,
        () => this.#finish(closed(undefined, 'nothing was heard')),
      );
      this.#patience.watch(this.#reading && this.#isOpen);
    } catch (error) {
      if (!(error instanceof EndedError)) throw error;
      this.#finish(error.ending);
    }
  }

  sign(): void {
    this.#patience?.heard();
  }

  ended(ending: Ending): void {
    this.#finish(ending);
  }
}
