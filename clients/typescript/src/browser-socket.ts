/** A browser's own WebSocket. The token goes as a subprotocol: it stands in no URL, and in no log. */

import { closed } from './ending.js';
import type { Listener, Request, Socket } from './platform.js';
import { timing } from './timing.js';

export class BrowserSocket implements Socket {
  readonly bytesRead = undefined;
  readonly #ws: WebSocket;
  readonly #silenced = new AbortController();

  constructor({ url, credential }: Request, listener: Listener) {
    this.#ws = new WebSocket(url, ['daimon.v1', `bearer.${credential}`]);
    const { signal } = this.#silenced;
    this.#ws.addEventListener('open', () => listener.opened(), { signal });
    this.#ws.addEventListener('message', ({ data }) => listener.text(String(data), String(data).length), { signal });
    // Why an opening was refused is told no page: it is 1006, like a broken connection.
    this.#ws.addEventListener('close', ({ code, reason }) => listener.ended(closed(code, reason)), { signal });
  }

  send(text: string): void {
    this.#ws.send(text);
  }

  /** A page cannot stop reading. */
  read(on: boolean): boolean {
    return on;
  }

  async close(): Promise<void> {
    if (this.#ws.readyState === WebSocket.OPEN) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timing.goodbye);
        this.#ws.addEventListener('close', () => {
          clearTimeout(timer);
          resolve();
        });
        this.#ws.close(1000);
      });
    }
    this.drop();
  }

  drop(): void {
    this.#silenced.abort();
    this.#ws.close();
  }
}
