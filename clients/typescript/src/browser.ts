/** The client in a browser: with a token for each opening. Plain modules, which a page loads as they are. */

import { BrowserSocket } from './browser-socket.js';
import { Client } from './client.js';
import type { Surroundings } from './handling.js';
import type { DaimonOptions } from './options.js';

export * from './public.js';

/** Handlers that are at work. A page cannot tell which of them a call comes from. */
let atWork = 0;

const surroundings: Surroundings = {
  run: (_, handler) => {
    atWork += 1;
    const answer = handler();
    const done = () => {
      atWork -= 1;
    };
    Promise.resolve(answer).then(done, done);
    return answer;
  },
  handling: undefined,
  get inside() {
    return atWork > 0;
  },
};

/** Options of a client in a browser: `token` is needed, for no key can be sent. */
export interface BrowserOptions extends Omit<DaimonOptions, 'apiKey'> {
  token: NonNullable<DaimonOptions['token']>;
}

/**
 * A client of the stream.
 *
 * `await connect()` opens it; it stays open, over lost connections, until it is closed. A `url` without a scheme, such
 * as `/v1/stream`, is below the page's own address.
 */
export class DaimonWebSocket extends Client {
  constructor(options: BrowserOptions) {
    super(options, {
      prefix: 'web',
      sendsKeys: false,
      seesPings: false,
      surroundings,
      here: globalThis.location?.href,
      environment: () => undefined,
      open: (request, listener) => new BrowserSocket(request, listener),
    });
  }
}
