/** What the broker sends: frames to events, notices, answers, and how far the client has come. No I/O here. */

import type { Commands } from './commands.js';
import { EndedError, notOpened } from './ending.js';
import { CommandError } from './errors.js';
import { DaimonEvent, type Fields, type Gap, isObject } from './events.js';
import type { Notices } from './notices.js';
import type { Place } from './place.js';
import type { Queue } from './queue.js';
import { Memory } from './remembering.js';
import { chunks, type Selection } from './selection.js';

/** Begins the ids of subscribes that belong to an opening. */
const LATE = 'late:';

/** Takes the frames of one connection after another. */
export class Incoming {
  readonly #seen = new Memory();
  #ready: Fields = {};
  /** Subscribes that belong to the opening and are not answered yet. */
  readonly #late = new Set<string>();
  /** Where to open again while there are any. */
  #lateSince: string | undefined;
  /** How long the broker asked to wait before it went. */
  waitMs = 0;

  /** `keep` is called when the client's place has changed. */
  constructor(
    readonly place: Place,
    readonly selection: Selection,
    readonly commands: Commands,
    readonly queue: Queue,
    readonly notices: Notices,
    readonly keep: () => void,
  ) {}

  /** Begin at what is handled: what came beyond it comes again. */
  begin(): void {
    for (const event of this.place.beginAgain()) this.#seen.remove(event);
  }

  // --- what the broker said of itself

  /** Where the next connection is to begin; undefined: nothing came yet. */
  get resumeFrom(): string | undefined {
    return this.#lateSince ?? this.place.received;
  }

  /** How often something comes from the broker at least. */
  get heartbeatMs(): number {
    return Number(this.#ready.heartbeat_seconds || 30) * 1_000;
  }

  /** How long an event stays in the window. */
  get windowMs(): number {
    return Number(this.#ready.replay_seconds || 300) * 1_000;
  }

  /** Of a message to the broker. */
  get mostBytes(): number {
    return Number(this.#ready.limits?.max_message_bytes || 1_048_576);
  }

  // --- the opening

  /**
   * Take the first frame of a connection.
   *
   * @throws EndedError if it is none that a broker would send
   */
  takeReady(text: string): void {
    const ready = parsed(text);
    if (!isObject(ready) || ready.type !== 'connection.ready' || typeof ready.cursor !== 'string') {
      throw new EndedError(notOpened('the other side is no broker'));
    }
    this.#ready = ready;
    if (this.place.received === undefined) this.#moved(ready.cursor);
  }

  /**
   * What is to be sent after an opening with `names` at `since`, for what it did not name: `late` did not fit into
   * it; other inboxes may have been subscribed to, or unsubscribed, meanwhile.
   */
  rest(since: string | undefined, names: readonly string[], late: readonly string[]): string[] {
    const { added, removed } = this.selection.since(names);
    // The key's own inboxes, where nothing is named.
    const unwanted = names.length === 0 && this.#ready.inbox_ids?.length > 0 ? this.#ready.inbox_ids : removed;
    this.#late.clear();
    const from = since === undefined || since === 'acked' ? this.#ready.cursor : since;
    this.#lateSince = late.length > 0 ? from : undefined;
    const texts = unwanted.length > 0 ? [JSON.stringify({ action: 'unsubscribe', inbox_ids: unwanted })] : [];
    for (const part of chunks(late, this.mostBytes / 2)) texts.push(this.#lateSubscribe(part, this.#lateSince));
    for (const part of chunks(added, this.mostBytes / 2)) texts.push(this.#lateSubscribe(part, undefined));
    return texts;
  }

  #lateSubscribe(inboxIds: string[], since: string | undefined): string {
    const requestId = `${LATE}${this.#late.size}`;
    this.#late.add(requestId);
    return JSON.stringify({ action: 'subscribe', request_id: requestId, inbox_ids: inboxIds, since });
  }

  // --- frames

  /** Take a frame of so many bytes. One that cannot be read is reported. */
  take(text: string, size: number): void {
    try {
      const frame = JSON.parse(text);
      this.#takeFrame(frame.type, frame, size);
    } catch (thrown) {
      this.notices.report('reading a frame', thrown);
    }
  }

  #takeFrame(type: string, frame: Fields, size: number): void {
    if (type === 'response') this.#takeAnswer(frame);
    else if (type === 'connection.cursor') this.#moved(frame.cursor);
    else if (type === 'connection.updated') this.selection.narrow(frame.inbox_ids);
    else if (type === 'replay.gap') this.#takeGap({ from: frame.from, to: frame.to, count: frame.count });
    else if (type === 'server.draining') this.waitMs = Number(frame.reconnect_after_ms);
    else if (type === 'error') this.notices.report('a frame', refusal(frame));
    else if ('event_id' in frame && 'cursor' in frame) this.#takeEvent(new DaimonEvent(frame, size));
  }

  #takeGap(gap: Gap): void {
    this.notices.tell('gap', gap);
    this.#moved(gap.to);
  }

  #takeAnswer(frame: Fields): void {
    const { action, request_id: requestId, result } = frame;
    if ((action === 'subscribe' || action === 'unsubscribe') && result !== undefined) {
      // The cursor to go on from with the inboxes as they are now; a replay begins there.
      this.#moved(result.cursor);
    }
    if (!this.#late.delete(requestId)) {
      this.commands.answer(frame);
      return;
    }
    if (this.#late.size === 0) this.#lateSince = undefined;
    if (frame.error !== undefined) this.notices.report('a subscribe that belongs to the opening', refusal(frame));
  }

  #takeEvent(event: DaimonEvent): void {
    if (!this.#seen.add(event)) {
      this.#moved(event.cursor);
      return;
    }
    this.place.came(event);
    this.queue.put(event);
  }

  #moved(cursor: string): void {
    this.place.moved(cursor);
    this.keep();
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function refusal({ error }: Fields): CommandError {
  return new CommandError(String(error.code), String(error.message));
}
