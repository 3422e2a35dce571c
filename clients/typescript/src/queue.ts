/** Events that wait for their handlers: in order, so many at once, bounded in bytes. */

import type { DaimonEvent } from './events.js';
import { nextTurn, timing } from './timing.js';

const MAX_BYTES = 8_388_608;
/** Read even so while a command waits for its answer. */
const MAX_READ_ON_BYTES = 67_108_864;
/** Events that are looked through for one that may be handled now. */
const LOOK_AHEAD = 1_000;

/** Of what only one handler may be at work at a time, where several may. */
export type Order = 'thread' | 'inbox' | null;

export interface QueueOptions {
  readonly concurrency: number;
  readonly order: Order;
  /** Deals with one event; must not reject. */
  readonly handle: (event: DaimonEvent) => Promise<void>;
  /** Whether something else is to be told first. */
  readonly held: () => boolean;
  /** Whether there may be something behind the events that a handler waits for. */
  readonly mustRead: () => boolean;
  /** Called when there may be room again, or none. */
  readonly changed: () => void;
}

export class Queue {
  #events: (DaimonEvent | undefined)[] = [];
  /** Where the first of them is that waits. */
  #first = 0;
  readonly #busy = new Set<string>();
  #running = 0;
  #bytes = 0;
  #state: 'on' | 'paused' | 'stopped' = 'on';
  #waiting: (() => void)[] = [];
  /** When the rest of the program had its turn last. */
  #turnAt = 0;

  constructor(readonly options: QueueOptions) {
    const { concurrency } = options;
    if (!(concurrency >= 1)) throw new RangeError(`concurrency: ${concurrency} is less than 1`);
  }

  /** Begin with nothing. */
  begin(): void {
    this.#events = [];
    this.#first = 0;
    this.#busy.clear();
    this.#running = 0;
    this.#bytes = 0;
    if (this.#state === 'stopped') this.#state = 'on';
  }

  /** Hand nothing on any more; what waits is left. */
  stop(): void {
    this.#state = 'stopped';
  }

  /** Hand nothing on for now. */
  pause(): void {
    if (this.#state === 'on') this.#state = 'paused';
  }

  /** Hand on again. */
  resume(): void {
    if (this.#state === 'paused') this.#state = 'on';
    this.wake();
  }

  /** Let an event wait for its turn. */
  put(event: DaimonEvent): void {
    this.#events.push(event);
    this.#bytes += event.size;
    this.wake();
  }

  /** Whether nothing more should be read. */
  get isFull(): boolean {
    return this.#bytes > (this.options.mustRead() ? MAX_READ_ON_BYTES : MAX_BYTES);
  }

  /** Resolves when there is room, or at the end of a signal. */
  async room(signal: AbortSignal): Promise<void> {
    const wake = () => this.wake();
    signal.addEventListener('abort', wake);
    while (this.isFull && !signal.aborted) await this.#change();
    signal.removeEventListener('abort', wake);
  }

  /** Resolves when no handler is at work. */
  async idle(): Promise<void> {
    while (this.#running > 0) await this.#change();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Look again what is to be done. */
  wake(): void {
    for (let event = this.#next(); event !== undefined; event = this.#next()) void this.#do(event);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
    this.options.changed();
  }

  #next(): DaimonEvent | undefined {
    if (this.#state !== 'on' || this.#running >= this.options.concurrency || this.options.held()) return undefined;
    const last = Math.min(this.#events.length, this.#first + LOOK_AHEAD);
    for (let place = this.#first; place < last; place += 1) {
      const event = this.#events[place] as DaimonEvent;
      if (!this.#busy.has(this.#key(event))) {
        this.#take(place);
        return event;
      }
    }
    return undefined;
  }

  /** Take an event out: those before it, few, move up. */
  #take(place: number): void {
    this.#events.copyWithin(this.#first + 1, this.#first, place);
    this.#events[this.#first] = undefined;
    this.#first += 1;
    if (this.#first * 2 > this.#events.length) {
      this.#events = this.#events.slice(this.#first);
      this.#first = 0;
    }
  }

  /** What the event shares with those that it must not overtake; empty for nothing. */
  #key(event: DaimonEvent): string {
    const { concurrency, order } = this.options;
    if (order === null || concurrency === 1) return '';
    return (order === 'thread' ? event.thread : event.inbox_id) ?? '';
  }

  /** Quick handlers of many events, one after another, would leave nobody else a turn. */
  async #leaveTurn(): Promise<void> {
    if (performance.now() - this.#turnAt < timing.turn) return;
    await nextTurn();
    this.#turnAt = performance.now();
  }

  async #do(event: DaimonEvent): Promise<void> {
    const key = this.#key(event);
    this.#running += 1;
    if (key !== '') this.#busy.add(key);
    try {
      await this.options.handle(event);
      await this.#leaveTurn();
    } finally {
      this.#running -= 1;
      this.#bytes -= event.size;
      this.#busy.delete(key);
      this.wake();
    }
  }
}
