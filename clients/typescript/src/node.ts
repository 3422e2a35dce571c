/** The client in Node: with a key or a token in a header, and a file that keeps its place. */

import { AsyncLocalStorage } from 'node:async_hooks';
import { Client } from './client.js';
import type { Handling, Surroundings } from './handling.js';
import { type Certificates, NodeSocket } from './node-socket.js';
import type { DaimonOptions } from './options.js';

export { FileStore } from './file-store.js';
export * from './public.js';

interface Inside {
  readonly handling: Handling | undefined;
}

const inside = new AsyncLocalStorage<Inside>();

const surroundings: Surroundings = {
  run: (handling, handler) => inside.run({ handling }, handler),
  get handling() {
    return inside.getStore()?.handling;
  },
  get inside() {
    return inside.getStore() !== undefined;
  },
};

export interface NodeOptions extends DaimonOptions {
  /** The certificates of authorities to trust instead of the system's, in PEM. */
  ca?: Certificates | undefined;
}

/**
 * A client of the stream.
 *
 * `await connect()` opens it; it stays open, over lost connections, until it is closed.
 */
export class DaimonWebSocket extends Client {
  constructor(options: NodeOptions = {}) {
    super(options, {
      prefix: 'ts',
      sendsKeys: true,
      seesPings: true,
      surroundings,
      here: undefined,
      environment: (name) => process.env[name],
      open: (request, listener) => new NodeSocket(request, listener, options.ca),
    });
  }
}
