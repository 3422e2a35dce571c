/** Opening connections, one after another, until no other is to be opened. */

import { type Commands, type Pending, tooLarge } from './commands.js';
import { Connection, FULL } from './connection.js';
import { BackOff, closed, comesBack, type Ending, notOpened } from './ending.js';
import { asError, ConnectionEndedError } from './errors.js';
import type { Incoming } from './incoming.js';
import type { Notices } from './notices.js';
import { freshToken, streamUrl, type TokenFunction } from './opening.js';
import type { Platform } from './platform.js';
import type { Queue } from './queue.js';
import type { Selection } from './selection.js';
import { sleep, unlessOver } from './timing.js';

/** What connections are opened with, and by whom they are filled. */
export interface Means {
  readonly platform: Platform;
  readonly url: string;
  /** A key, or what gives tokens. */
  readonly credential: string | TokenFunction;
  readonly autoReconnect: boolean;
  readonly reconnectDelay: number;
  readonly selection: Selection;
  readonly incoming: Incoming;
  readonly commands: Commands;
  readonly queue: Queue;
  readonly notices: Notices;
  /** What an opening asks for beside inboxes; `since` if nothing is known. */
  readonly asked: () => { eventTypes: string[] | undefined; since: string | undefined; clientId: string };
  /** Called when a connection is open. */
  readonly opened: () => void;
}

export class Connections {
  readonly #means: Means;
  readonly #backOff: BackOff;
  #connection: Connection | undefined;
  /** Ends the wait before the next attempt. */
  #hurry = new AbortController();

  constructor(means: Means) {
    this.#means = means;
    this.#backOff = new BackOff(means.reconnectDelay);
  }

  /** Whether a connection is open. */
  get open(): boolean {
    return this.#connection !== undefined;
  }

  /** Wait no longer before the next attempt. */
  hurry(): void {
    this.#hurry.abort();
  }

  /** Send a command, if a connection is open. */
  send(pending: Pending): void {
    if (this.#connection === undefined) return;
    if (pending.size > this.#means.incoming.mostBytes) this.#means.commands.refuse(pending, tooLarge());
    else this.#connection.send(pending.text);
  }

  /** Read on if there is room, else not. */
  settle(): void {
    this.#connection?.read(!this.#means.queue.isFull);
  }

  /** Open connections until the signal ends; or return why no other is opened. */
  async run(life: AbortSignal): Promise<ConnectionEndedError | undefined> {
    for (;;) {
      const ending = await this.#one(life);
      if (life.aborted) return undefined;
      this.#means.notices.tell('disconnected', ending.reason);
      if (!(this.#means.autoReconnect && comesBack(ending))) {
        return new ConnectionEndedError(ending.reason, ending.code, ending.status);
      }
      if (ending === FULL) await this.#means.queue.room(life);
      else await this.#waitAfter(ending, life);
      if (life.aborted) return undefined;
    }
  }

  async #waitAfter(ending: Ending, life: AbortSignal): Promise<void> {
    const { incoming } = this.#means;
    const asked = incoming.waitMs;
    incoming.waitMs = 0;
    const waited = asked > 0 && !ending.waitMs ? { ...ending, waitMs: asked } : ending;
    this.#hurry = new AbortController();
    await sleep(this.#backOff.next(waited, Math.random()), life, this.#hurry.signal);
  }

  async #one(life: AbortSignal): Promise<Ending> {
    const { platform, incoming, selection, commands, asked } = this.#means;
    const { since: first, ...rest } = asked();
    const since = incoming.resumeFrom ?? first;
    const inboxIds = selection.names;
    const { url, late } = streamUrl(this.#means.url, { ...rest, since, inboxIds });
    const credential = await this.#fresh(life);
    if (typeof credential !== 'string') return credential;
    const connection = new Connection(platform, {
      first: (text) => {
        incoming.takeReady(text);
        this.#begin(connection, incoming.rest(since, inboxIds, late));
        return incoming.heartbeatMs;
      },
      text: (text, size) => incoming.take(text, size),
    });
    const ending = await connection.run({ url, credential, signal: life });
    this.#connection = undefined;
    if (ending.code === 1009) commands.refuseLongest(tooLarge());
    return ending;
  }

  /** What opens the next connection; or the ending, where there is nothing. */
  async #fresh(life: AbortSignal): Promise<string | Ending> {
    const { credential, notices } = this.#means;
    if (typeof credential === 'string') return credential;
    try {
      return (await unlessOver(life, freshToken(credential))) ?? closed(1000);
    } catch (thrown) {
      notices.report('the token function', thrown);
      return notOpened(`there is no token: ${asError(thrown).message}`);
    }
  }

  #begin(connection: Connection, rest: string[]): void {
    this.#backOff.succeeded();
    this.#means.notices.tell('connected');
    for (const text of rest) connection.send(text);
    this.#connection = connection;
    this.#means.opened();
    for (const pending of this.#means.commands.unanswered()) this.send(pending);
    this.settle();
  }
}
