/** One stream of events, over however many connections it takes. */

import { Acknowledging } from './acknowledging.js';
import { Commanding } from './commanding.js';
import { Commands, randomHex } from './commands.js';
import { Connections } from './connections.js';
import { Deferred } from './deferred.js';
import { ConnectionEndedError, closedError } from './errors.js';
import type { DaimonEvent, Fields, Message } from './events.js';
import { Handlers } from './handlers.js';
import { Incoming } from './incoming.js';
import { Keeping } from './keeping.js';
import { type Lease, leasesOf, Turns } from './leases.js';
import { Listening } from './listening.js';
import { Notices } from './notices.js';
import { urlOf, warnOfClearText } from './opening.js';
import type { CommandOptions, DaimonOptions, SubscribeOptions } from './options.js';
import { Place } from './place.js';
import type { Platform } from './platform.js';
import { Queue } from './queue.js';
import { namesOf, Selection } from './selection.js';
import { timing, within } from './timing.js';
import { taken, told } from './webhooks.js';

/** A client of the stream, on whatever platform. */
export class Client extends Listening {
  readonly #ack: 'auto' | 'manual' | 'off';
  readonly #keeping: Keeping | undefined;
  readonly #prefix: string;
  #clientId: string | undefined;
  #eventTypes: string[] | undefined;
  /** Where the first opening is to begin, if nothing is known. */
  #since: string | undefined;

  readonly #selection: Selection;
  readonly #place: Place;
  readonly #commands = new Commands();
  readonly #handlers: Handlers;
  readonly #notices: Notices;
  readonly #queue: Queue;
  readonly #incoming: Incoming;
  readonly #connections: Connections;
  readonly #commanding: Commanding;
  readonly #acknowledging: Acknowledging;
  readonly #turns = new Turns();

  /** `closed` by `close`, for good; `ended` in any other way: it may connect again. */
  #state: 'new' | 'opening' | 'open' | 'closing' | 'ended' | 'closed' = 'new';
  #hasLoaded = false;
  /** Of the connections, one after another. */
  #life = new AbortController();
  #opened = new Deferred<void>();
  #closed = new Deferred<void>();

  constructor(options: DaimonOptions, platform: Platform) {
    const { surroundings } = platform;
    const handlers = new Handlers(surroundings);
    super(handlers);
    this.#handlers = handlers;
    const url = urlOf(options.url ?? (platform.environment('DAIMON_WS_URL') || undefined), platform.here);
    const credential = options.token ?? keyOf(options, platform);
    if (typeof credential === 'string') warnOfClearText(url);
    this.#prefix = platform.prefix;
    this.#clientId = options.clientId;
    this.#eventTypes = options.eventTypes && [...options.eventTypes];
    this.#ack = options.ack ?? 'auto';
    this.#place = new Place(this.#ack === 'auto');
    this.#keeping = options.cursorStore && new Keeping(options.cursorStore, (e) => this.#failed('the cursor store', e));
    if (options.clientId !== undefined && this.#keeping === undefined && this.#ack !== 'off') this.#since = 'acked';

    this.#selection = new Selection(options.inboxIds);
    this.#notices = new Notices(this.#handlers, () => this.#queue.wake());
    this.#queue = new Queue({
      concurrency: options.concurrency ?? 1,
      order: options.order === undefined ? 'thread' : options.order,
      handle: (event) => this.#handle(event),
      held: () => this.#notices.unheard,
      mustRead: () => this.#commands.waiting,
      changed: () => this.#connections.settle(),
    });
    this.#incoming = new Incoming(
      this.#place,
      this.#selection,
      this.#commands,
      this.#queue,
      this.#notices,
      () => this.#keep(), //
    );
    this.#connections = new Connections({
      platform,
      url,
      credential,
      autoReconnect: options.autoReconnect ?? true,
      reconnectDelay: options.reconnectDelay ?? 5_000,
      selection: this.#selection,
      incoming: this.#incoming,
      commands: this.#commands,
      queue: this.#queue,
      notices: this.#notices,
      asked: () => ({ eventTypes: this.#eventTypes, since: this.#since, clientId: this.#name }),
      opened: () => this.#isOpen(),
    });
    this.#commanding = new Commanding(this.#commands, surroundings, (pending) => {
      this.#connections.settle(); // who reads, reads on
      this.#connections.send(pending);
    });
    this.#acknowledging = new Acknowledging(
      this.#place,
      () => this.#connections.open,
      (action, fields, timeoutMs) => this.#commanding.give(action, fields, timeoutMs),
    );
  }

  // --- its life

  /**
   * Open the stream, and keep it open. Resolves when it is.
   *
   * Rejects with `ConnectionEndedError` if it cannot be, or the client was closed before: what comes to nothing for now
   * is tried again. That it cannot go on later is told by `closed`, and by `error`.
   */
  async connect(): Promise<void> {
    this.#beOpen();
    if (this.#state === 'opening' || this.#state === 'open') throw new Error('the client is connected already');
    if (this.#state === 'ended') this.#closed = new Deferred();
    this.#state = 'opening';
    this.#life = new AbortController();
    this.#opened = new Deferred();
    this.#commands.begin();
    this.#queue.begin();
    this.#incoming.begin();
    void this.#run(this.#opened);
    await this.#opened.promise;
  }

  /** Resolves when the client is closed; rejects with `ConnectionEndedError` if it cannot go on. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  async #run(opened: Deferred<void>): Promise<void> {
    let error: Error | undefined;
    try {
      await this.#load();
      error = this.#life.signal.aborted ? undefined : await this.#connections.run(this.#life.signal);
    } catch (thrown) {
      error = thrown as Error; // of the store
    }
    const end = closedError();
    if (error !== undefined && this.#state === 'open') this.#failed('the client', error);
    this.#commands.end(error instanceof ConnectionEndedError ? error : end);
    this.#queue.stop();
    this.#acknowledging.stop();
    await within(timing.command, Promise.all([this.#queue.idle(), this.#notices.told(), this.#keeping?.kept()]));
    this.#state = this.#state === 'closing' ? 'closed' : 'ended';
    opened.reject(error ?? end);
    if (error === undefined) this.#closed.resolve();
    else this.#closed.reject(error);
  }

  #isOpen(): void {
    if (this.#state === 'opening') this.#state = 'open';
    this.#opened.resolve();
    this.#acknowledgeSoon();
  }

  async #load(): Promise<void> {
    if (this.#keeping === undefined || this.#hasLoaded) return;
    const kept = await this.#keeping.load();
    this.#hasLoaded = true;
    this.#clientId ??= kept?.client_id;
    this.#place.begin(kept?.cursor ?? undefined);
  }

  get #name(): string {
    this.#clientId ??= `${this.#prefix}_${randomHex(8)}`;
    return this.#clientId;
  }

  /**
   * End: finish the handlers that are at work, acknowledge, say goodbye.
   *
   * In a handler it returns at once, and the client ends when the handler has returned. A client that was closed, also
   * before it connected, stays so: `connect` rejects.
   */
  async close(): Promise<void> {
    if (this.#state === 'opening' || this.#state === 'open') {
      this.#state = 'closing';
      void this.#finish();
    } else if (this.#state !== 'closing') {
      this.#state = 'closed';
      this.#commands.end(closedError());
      this.#closed.resolve();
    }
    if (this.#state === 'closing' && !this.#handlers.surroundings.inside) {
      await this.#closed.promise.catch(() => {});
    }
  }

  /** Throw `ConnectionEndedError` if the client was closed. */
  #beOpen(): void {
    if (this.#state === 'closing' || this.#state === 'closed') throw closedError(', and stays so: make another');
  }

  async #finish(): Promise<void> {
    this.#queue.stop();
    await within(timing.command, this.#finishWork());
    this.#life.abort();
  }

  async #finishWork(): Promise<void> {
    await this.#queue.idle();
    if (this.#ack === 'auto' && this.#connections.open) await this.#acknowledging.now();
  }

  /** Wait no longer before the next attempt to connect. */
  reconnectNow(): void {
    this.#connections.hurry();
  }

  /** Hand no more events to handlers; what comes waits, and beyond 8 MiB the broker keeps it. */
  pause(): void {
    this.#queue.pause();
  }

  /** Hand on again. */
  resume(): void {
    this.#queue.resume();
  }

  // --- events

  #failed(what: string, thrown: unknown): void {
    this.#notices.report(what, thrown);
  }

  #keep(): void {
    this.#keeping?.save({ client_id: this.#name, cursor: this.#place.handled });
  }

  async #handle(event: DaimonEvent): Promise<void> {
    let well = told.has(event); // by a webhook, say
    if (!well) {
      taken.add(event);
      const letGo = this.#ack === 'auto' ? this.#acknowledging.hold(event) : () => {};
      well = await this.#handlers.handle(event);
      letGo();
    }
    if (!well) taken.remove(event);
    this.#place.dealtWith(event, performance.now(), !well, this.#incoming.windowMs);
    this.#keep();
    this.#acknowledgeSoon();
  }

  #acknowledgeSoon(): void {
    if (this.#ack === 'auto') this.#acknowledging.soon();
  }

  /** Acknowledge all up to a cursor, or single events; neither: all that is dealt with. Rejects as `command`. */
  async ack(what: { cursor?: string; eventIds?: readonly string[] } = {}): Promise<Fields> {
    const cursor = what.cursor ?? (what.eventIds === undefined ? this.#place.handled : undefined);
    return await this.command('ack', { cursor, event_ids: what.eventIds });
  }

  // --- commands

  async command<Result = Fields>(action: string, params: object = {}, options: CommandOptions = {}): Promise<Result> {
    return (await this.#commanding.command(action, params, options)) as Result;
  }

  /** Follow more inboxes, `*` for all, from now on or from `since`, over reconnects too. Rejects as `command`. */
  async subscribe(inboxIds: string | Iterable<string> = '*', options: SubscribeOptions = {}): Promise<Fields> {
    const names = namesOf(inboxIds);
    const { since } = options;
    const types = options.eventTypes && [...options.eventTypes];
    this.#beOpen();
    if (!this.#connections.open && (since === undefined || this.#place.received === undefined)) {
      this.#selection.add(names);
      this.#since = since ?? this.#since;
      this.#eventTypes = types ?? this.#eventTypes;
      return { inbox_ids: this.#selection.names };
    }
    const result = await this.command('subscribe', { inbox_ids: names, since, event_types: types });
    this.#selection.hold(result.inbox_ids);
    this.#eventTypes = types ?? this.#eventTypes;
    return result;
  }

  async unsubscribe(inboxIds: string | Iterable<string> = '*'): Promise<Fields> {
    const names = namesOf(inboxIds);
    this.#beOpen();
    if (!this.#connections.open) {
      this.#selection.remove(names);
      return { inbox_ids: this.#selection.names };
    }
    const result = await this.command('unsubscribe', { inbox_ids: names });
    this.#selection.hold(result.inbox_ids);
    return result;
  }

  /**
   * The events of a queue, one after another, as they are given to this worker:
   * `for await (const lease of client.queue('support')) await lease.work(…)`. Ends when the client is closed.
   */
  queue<Subject extends Fields = Message>(queueId: string): AsyncGenerator<Lease<Subject>, void, undefined> {
    return leasesOf<Subject>(queueId, this.#turns, {
      give: (action, fields, timeoutMs) => this.#commanding.give(action, fields, timeoutMs),
      report: (what, error) => this.#handlers.report(what, error),
      surroundings: this.#handlers.surroundings,
    });
  }
}

function keyOf({ apiKey }: DaimonOptions, platform: Platform): string {
  if (!platform.sendsKeys) throw new TypeError('token: a browser sends no key; give a function that fetches tokens');
  const key = apiKey || platform.environment('DAIMON_API_KEY');
  if (!key) throw new TypeError('apiKey: there is none, and no DAIMON_API_KEY in the environment');
  return key;
}
