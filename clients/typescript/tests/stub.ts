/** A broker of a few lines, which a test steers: it says what it is told to, and keeps what it hears. */

import type { IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type WebSocket, WebSocketServer } from 'ws';
import type { Fields } from '../src/public.js';

/** How a stub answers a command: with a result, an error, or (undefined) not at all. */
export type Answer = (command: Fields) => { result: unknown } | { error: Fields } | undefined;

export class Stub {
  readonly requests: IncomingMessage[] = [];
  readonly sockets: WebSocket[] = [];
  readonly commands: Fields[] = [];
  /** The codes with which connections ended. */
  readonly ends: number[] = [];
  readonly answers = new Map<string, Answer>();
  /** Refuses the openings to come. */
  refusal: { status: number; headers: Record<string, string>; body: string } | undefined;
  /** What `connection.ready` says. */
  ready: Fields = { heartbeat_seconds: 30, replay_seconds: 300, inbox_ids: ['*'], cursor: 'c0' };
  #waiting: (() => void)[] = [];
  #count = 0;

  constructor(readonly server: WebSocketServer) {
    server.on('connection', (socket, request) => this.#serve(socket, request));
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  #serve(socket: WebSocket, request: IncomingMessage): void {
    this.requests.push(request);
    this.sockets.push(socket);
    socket.on('message', (data) => this.#hear(socket, JSON.parse(String(data))));
    socket.on('close', (code) => {
      this.ends.push(code);
      this.#happened();
    });
    socket.on('error', () => {});
    socket.send(JSON.stringify({ type: 'connection.ready', ...this.ready }));
    this.#happened();
  }

  #hear(socket: WebSocket, command: Fields): void {
    this.commands.push(command);
    const { action, request_id } = command;
    const answer = (this.answers.get(action) ?? usual)(command);
    if (answer !== undefined) socket.send(JSON.stringify({ type: 'response', request_id, action, ...answer }));
    this.#happened();
  }

  #happened(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const look of waiting) look();
  }

  /** Resolves when something that the stub sees is so. */
  async until(condition: () => unknown): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** The commands of an action. */
  of(action: string): Fields[] {
    return this.commands.filter((command) => command.action === action);
  }

  /** Send a frame over the newest connection. */
  say(frame: Fields): void {
    this.sockets.at(-1)?.send(JSON.stringify(frame));
  }

  /** Let an event come in. */
  publish(type: string, payload: object, more: Fields = {}): void {
    this.#count += 1;
    const ids = { event_id: `evt_${this.#count}`, inbox_id: 'inbox_a', cursor: `c${this.#count}` };
    this.say({ type, ...ids, created_at: '2026-11-23T10:00:00.123Z', payload, ...more });
  }

  /** Let a mail come in. */
  mail(message: Fields = {}, more: Fields = {}): void {
    this.publish('message.received', { message: { message_id: 'msg_1', subject: 'Hello', ...message } }, more);
  }

  async end(): Promise<void> {
    for (const socket of this.server.clients) socket.terminate();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

function usual({ action, inbox_ids, cursor }: Fields): ReturnType<Answer> {
  if (action === 'subscribe' || action === 'unsubscribe') return { result: { inbox_ids, cursor: 'c0' } };
  if (action === 'ack') return { result: { cursor, acked: 1, claimed: [] } };
  return { result: { server_time: '2026-11-23T10:00:00.123Z' } };
}

/** Start a stub on a free port. */
export async function openStub(): Promise<Stub> {
  const server = new WebSocketServer({
    port: 0,
    host: '127.0.0.1',
    handleProtocols: (offered) => (offered.has('daimon.v1') ? 'daimon.v1' : false),
  });
  const stub = new Stub(server);
  server.on('headers', () => {});
  server.shouldHandle = () => true;
  server.options.verifyClient = (_, done) => {
    const { status, headers, body } = stub.refusal ?? { status: 200, headers: {}, body: '' };
    done(stub.refusal === undefined, status, body, headers);
  };
  await new Promise((resolve) => server.on('listening', resolve));
  return stub;
}
