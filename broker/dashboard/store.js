/** What a page keeps: the newest events, counters, five minutes by type. Bounded, whatever comes. */

export const KEPT = { rows: 20_000, characters: 32_000_000, inboxes: 5_000, types: 200, alerts: 200 };
export const BUCKETS = 150;
export const BUCKET_MS = 2_000;
export const KINDS = ["received", "bounced", "complaint", "account", "other"];
export const GLYPHS = { received: "●", bounced: "▲", complaint: "◆", account: "■", other: "○", watched: "★", gap: "⌇" };
export const ACCOUNT = "(account)";
export const OTHER_TYPES = "(other types)";

const SLACK = 1_000; // rows over the bound before the oldest go, so that they go in one step
const MOST_CHARACTERS = 200; // of what a row shows
const SPARKS = 30;
const RATE_SECONDS = 10;
const OF_THE_PLAN = { "message.received": "received", "message.bounced": "bounced", "message.complaint": "complaint" };

export const kindOf = (type) => OF_THE_PLAN[type] ?? (type.startsWith("account.") ? "account" : "other");

/** A text of a payload, whatever is there; its beginning. */
export const textOf = (value) => (typeof value === "string" ? value.slice(0, MOST_CHARACTERS) : "");

/** The mail in a payload; null if there is none. */
export function mailOf(payload) {
  const { message } = payload;
  return message && typeof message === "object" && !Array.isArray(message) ? message : null;
}

/** What a row says of an event: what it is about, and from whom or why. */
function summaryOf({ type, payload }) {
  const mail = mailOf(payload);
  if (mail) return [textOf(mail.subject) || "(no subject)", textOf(mail.from)];
  if (payload.recipient) return [textOf(payload.recipient), textOf(payload.reason ?? payload.feedback_type)];
  if (type === "account.upgraded") return [textOf(payload.tier), `was ${textOf(payload.previous_tier)}`];
  for (const [name, value] of Object.entries(payload)) {
    if (typeof value !== "object") return ["", `${name.slice(0, 40)}: ${String(value).slice(0, MOST_CHARACTERS)}`];
  }
  return ["", ""];
}

export class Store {
  rows = [];
  /** Numbers of the first row that is kept, and of the next that comes. */
  first = 0;
  next = 0;
  /** Changes when the rows are others, and not only more or fewer. */
  generation = 0;
  seen = 0;
  /** Events that left the broker's window before this page could have them; null: nobody knows how many. */
  missed = 0;
  inboxes = new Map();
  types = new Map();
  alerts = new Map();
  words = [];
  newestAt = null;
  #buckets = new Array(BUCKETS).fill(null);
  #ids = new Set();
  #characters = 0;
  #ages = new Float64Array(1_000);
  #agesSeen = 0;
  #arrivals = Array.from({ length: RATE_SECONDS + 2 }, () => ({ second: -1, count: 0 }));
  #alarms = 0;

  // --- rows

  #push(row) {
    row.number = this.next++;
    this.rows.push(row);
    this.#characters += row.raw?.length ?? 0;
    if (this.rows.length > KEPT.rows + SLACK || this.#characters > KEPT.characters) this.#shed();
    return row;
  }

  #shed() {
    let gone = Math.max(0, this.rows.length - KEPT.rows);
    let freed = 0;
    const enough = this.#characters - KEPT.characters * 0.95;
    for (let index = 0; index < gone || (freed < enough && index < this.rows.length - 1); index++) {
      const row = this.rows[index];
      freed += row.raw?.length ?? 0;
      if (row.id) this.#ids.delete(row.id);
      gone = Math.max(gone, index + 1);
    }
    this.rows.splice(0, gone);
    this.first += gone;
    this.#characters -= freed;
  }

  /** A row of the page's own: it was paused, it came back. */
  note(text, kind = "", at = Date.now()) {
    return this.#push({ note: text, kind, at });
  }

  clear() {
    this.rows = [];
    this.first = this.next;
    this.#ids.clear();
    this.#characters = 0;
    this.generation++;
  }

  find(id) {
    return this.rows.findLast((row) => row.id === id);
  }

  /** The rows from a number on. */
  since(number) {
    return this.rows.slice(Math.max(0, number - this.first));
  }

  /** Take an event, with its text as it came; false if it is here already. `now` is the broker's clock. */
  add(frame, raw, now, { live }) {
    const id = `${frame.inbox_id ?? ""}\n${frame.event_id}`;
    if (this.#ids.has(id)) return false;
    this.#ids.add(id);
    const kind = kindOf(frame.type);
    const at = Date.parse(frame.created_at);
    const [head, rest] = summaryOf(frame);
    const age = live ? Math.max(0, now - at) : null;
    const watched = kind === "received" && this.#isWatched(mailOf(frame.payload));
    const inbox = frame.inbox_id ?? ACCOUNT;
    const row = this.#push({ id, kind, type: frame.type, inbox, at, age, head, rest, raw, watched });
    this.seen++;
    this.newestAt = at;
    this.#count(row, now);
    if (live) this.#arrive();
    if (age !== null) this.#ages[this.#agesSeen++ % this.#ages.length] = age;
    if (kind === "bounced" || kind === "complaint") this.#alert(kind, textOf(frame.payload.recipient), row, rest);
    if (watched) this.#alert("watched", head, row, rest);
    return row;
  }

  #count(row, now) {
    const { type, inbox: name, kind, at } = row;
    row.listed = this.types.has(type) || this.types.size < KEPT.types ? type : OTHER_TYPES;
    this.types.set(row.listed, (this.types.get(row.listed) ?? 0) + 1);
    let inbox = this.inboxes.get(name);
    if (!inbox) {
      if (this.inboxes.size >= KEPT.inboxes) this.#forgetQuietInboxes();
      this.inboxes.set(name, (inbox = { name, count: 0, bad: 0, sparks: new Uint16Array(SPARKS), slot: 0 }));
    }
    inbox.count++;
    if (kind === "bounced" || kind === "complaint") inbox.bad++;
    const slot = Math.floor(at / BUCKET_MS);
    const bucket = this.bucket(slot, now);
    if (bucket) {
      bucket.kinds[kind]++;
      spark(inbox, slot);
    }
  }

  #arrive() {
    const second = Math.floor(performance.now() / 1_000);
    const arrivals = this.#arrivals[second % this.#arrivals.length];
    if (arrivals.second !== second) Object.assign(arrivals, { second, count: 0 });
    arrivals.count++;
  }

  #forgetQuietInboxes() {
    const quiet = [...this.inboxes.values()].sort((a, b) => a.slot - b.slot || a.count - b.count);
    for (const { name } of quiet.slice(0, KEPT.inboxes / 5)) this.inboxes.delete(name);
  }

  // --- what is to be looked at

  #isWatched(mail) {
    if (!mail || !this.words.length) return false;
    const labels = Array.isArray(mail.labels) ? mail.labels.slice(0, 50) : [];
    const texts = [mail.subject, ...labels].map((text) => textOf(text).toLowerCase());
    return this.words.some((word) => texts.some((text) => text.includes(word)));
  }

  #alert(kind, who, { id, inbox, at }, why) {
    const key = `${kind}\n${who}`;
    const alert = this.alerts.get(key) ?? { kind, who, times: 0 };
    this.#keep(key, Object.assign(alert, { times: alert.times + 1, why, at, id, inbox }));
  }

  #keep(key, alert) {
    this.alerts.delete(key); // the newest is the last
    this.alerts.set(key, alert);
    if (this.alerts.size > KEPT.alerts) this.alerts.delete(this.alerts.keys().next().value);
  }

  /** What the broker had no more: `count` events, or null. */
  gap(number, text) {
    const row = this.note(`gap: ${text} left the window before this page could have them`, "gap");
    this.missed = number === null || this.missed === null ? null : this.missed + number;
    const why = "left the window before this page could have them";
    this.#keep(`gap\n${++this.#alarms}`, { kind: "gap", who: `${text} missed`, why, at: row.at, number: row.number, times: 1 });
  }

  // --- five minutes by type, and how quick it is

  /** Two seconds of the window, by their number; null if they are older than it, or ahead of the clock. */
  bucket(slot, now) {
    const last = Math.floor(now / BUCKET_MS);
    if (!(slot > last - BUCKETS && slot <= last + 1)) return null;
    const index = slot % BUCKETS;
    let bucket = this.#buckets[index];
    if (bucket?.slot !== slot) {
      const kinds = Object.fromEntries(KINDS.map((kind) => [kind, 0]));
      bucket = this.#buckets[index] = { slot, kinds, missed: false, paused: false };
    }
    return bucket;
  }

  /** What is kept of two seconds; null if nothing is. */
  kept(slot) {
    const bucket = this.#buckets[slot % BUCKETS];
    return bucket?.slot === slot ? bucket : null;
  }

  /** Live events a second, over the last ten. */
  rate() {
    const now = Math.floor(performance.now() / 1_000);
    const lately = this.#arrivals.filter(({ second }) => second >= now - RATE_SECONDS && second < now);
    return lately.reduce((sum, { count }) => sum + count, 0) / RATE_SECONDS;
  }

  /** Ages in milliseconds that so many of the last thousand live events are below; null before there is one. */
  ages(...quantiles) {
    const known = this.#ages.slice(0, Math.min(this.#agesSeen, this.#ages.length)).sort();
    return quantiles.map((q) => (known.length ? known[Math.min(known.length - 1, Math.floor(q * known.length))] : null));
  }
}

function spark(inbox, slot) {
  for (let next = inbox.slot + 1, done = 0; next <= slot && done < SPARKS; next++, done++) inbox.sparks[next % SPARKS] = 0;
  if (slot > inbox.slot) inbox.slot = slot;
  if (slot > inbox.slot - SPARKS) inbox.sparks[slot % SPARKS]++;
}

/** What an inbox got in the two seconds of a number. */
export const sparkOf = (inbox, slot) =>
  slot > inbox.slot - SPARKS && slot <= inbox.slot ? inbox.sparks[slot % SPARKS] : 0;
