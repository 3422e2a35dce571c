/** A WebSocket of Node's, by `ws`. */

import type { IncomingMessage } from 'node:http';
import type { Socket as TcpSocket } from 'node:net';
import WebSocket from 'ws';
import { closed, notOpened, refused } from './ending.js';
import { placeOf } from './opening.js';
import type { Listener, Request, Socket } from './platform.js';
import { timing } from './timing.js';

const MAX_MESSAGE_BYTES = 67_108_864;
const MAX_REFUSAL_CHARACTERS = 65_536;

/** As Node's TLS takes them. */
export type Certificates = string | Uint8Array | readonly (string | Uint8Array)[];

export class NodeSocket implements Socket {
  readonly #ws: WebSocket;
  #tcp: TcpSocket | undefined;

  constructor({ url, credential }: Request, listener: Listener, ca: Certificates | undefined) {
    const headers = { Authorization: `Bearer ${credential}`, 'User-Agent': 'daimon-email-typescript' };
    const trust = ca === undefined ? {} : { ca: ca as string };
    this.#ws = new WebSocket(url, { headers, maxPayload: MAX_MESSAGE_BYTES, perMessageDeflate: false, ...trust });
    this.#ws.on('upgrade', (answer) => {
      this.#tcp = answer.socket;
    });
    this.#ws.on('open', () => listener.opened());
    this.#ws.on('message', (data: Buffer) => listener.text(data.toString(), data.length));
    this.#ws.on('ping', () => listener.sign());
    this.#ws.on('pong', () => listener.sign());
    this.#ws.on('close', (code, reason) => listener.ended(closed(code, reason.toString())));
    this.#ws.on('error', (error: NodeJS.ErrnoException) => {
      const isOpen = this.#ws.readyState !== WebSocket.CONNECTING && this.#tcp !== undefined;
      const why = error.message || error.code || 'the connection broke';
      listener.ended(isOpen ? closed(undefined, why) : notOpened(`${placeOf(url)} cannot be reached: ${why}`));
    });
    this.#ws.on('unexpected-response', (_, answer) => readRefusal(answer, listener));
  }

  get bytesRead(): number | undefined {
    return this.#tcp?.bytesRead;
  }

  send(text: string): void {
    this.#ws.send(text, () => {}); // that it could not be sent is heard by its end
  }

  read(on: boolean): boolean {
    if (on) this.#ws.resume();
    else this.#ws.pause();
    return true;
  }

  async close(): Promise<void> {
    if (this.#ws.readyState === WebSocket.OPEN || this.#ws.readyState === WebSocket.CLOSING) {
      this.#ws.resume();
      this.#ws.close(1000);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timing.goodbye);
        this.#ws.on('close', () => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
    this.drop();
  }

  drop(): void {
    this.#ws.terminate();
  }
}

/** Read the body of a refusal, and tell what it says. */
function readRefusal(answer: IncomingMessage, listener: Listener): void {
  let body = '';
  const tell = () => {
    const retryAfter = answer.headers['retry-after'];
    listener.ended(refused(answer.statusCode ?? 0, body, retryAfter, Date.now()));
    answer.destroy();
  };
  answer.setEncoding('utf8');
  answer.on('data', (text: string) => {
    body += text;
    if (body.length > MAX_REFUSAL_CHARACTERS) tell();
  });
  answer.on('end', tell);
  answer.on('error', tell);
}
