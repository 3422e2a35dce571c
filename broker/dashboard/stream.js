/**
 * One connection to the broker: opened with a token, come back to by cursor, paused, resumed, replayed.
 *
 *     opening ──ready──► live ◄──resume── paused        each of them ──lost──► lost ──after a wait──► opening
 *                          └────pause──────►┘           (but paused, which comes back when it is resumed)
 *     closed: it does not come back by itself
 *
 * By WebSocket; where two of them failed before they were ready, by an event stream, which proxies let through, and
 * which says why it is refused. Then commands go by HTTP, each by itself.
 */
import { Refusal, eventsOf } from "./access.js";

const WAITS_MS = [500, 1_000, 2_000, 5_000, 10_000];
const PING_MS = 5_000, SILENT_MS = 25_000;
const FAILURES_BEFORE_EVENT_STREAM = 2;
const FINAL_CODES = {
  1002: "the broker did not understand this page",
  1007: "the broker did not understand this page",
  1008: "the broker did not understand this page",
  4401: "the key is no longer good",
  4409: "a newer page took this one's place",
};
const FINAL_STATUSES = [400, 401, 403, 404];

export class Stream extends EventTarget {
  state = "opening";
  /** Where to go on from; while paused it stands still. */
  cursor = null;
  ready = null;
  /** Milliseconds: how far the broker's clock is ahead, and how far the broker is. */
  clockSkew = 0;
  rtt = null;
  #access;
  #first;
  #carrier = null;
  #failures = 0;
  #tries = 0;
  #timer;
  #answers = new Map();
  #numbers = 0;
  #quickest = Infinity;
  #heardAt = 0;
  #pinging;
  #reconnectAfterMs = null;
  #byTime = false;
  #why = "opened";

  /** `since`: where the first connection begins. */
  constructor(access, { since }) {
    super();
    this.#access = access;
    this.#first = since;
  }

  /** How it is connected: `websocket`, `sse`, or null. */
  get transport() {
    return this.#carrier?.kind ?? null;
  }

  #say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #become(state, detail = {}) {
    this.state = state;
    this.#say("state", { state, ...detail });
  }

  // --- opening, losing, coming back

  /** Connect: where the last one was, or since a duration or a time. */
  async open(since = this.cursor ?? this.#first, why = this.ready ? "back" : "opened") {
    clearTimeout(this.#timer);
    this.#drop();
    this.#why = why;
    this.#byTime = since !== this.cursor;
    this.#become("opening");
    let token;
    try {
      token = await this.#access.token();
    } catch (error) {
      this.#ended({ refusal: error instanceof Refusal ? error : null, why: "the broker does not answer" });
      return;
    }
    if (this.state !== "opening") return;
    const query = new URLSearchParams({ inbox_ids: "*", since });
    if (this.#access.lookOnly) query.set("watch", "1");
    const carry = this.#failures >= FAILURES_BEFORE_EVENT_STREAM ? overEventStream : overWebSocket;
    const carrier = carry(this.#access, token, query, {
      frame: (text) => carrier === this.#carrier && this.#frame(text),
      end: (how) => carrier === this.#carrier && this.#ended(how),
    });
    this.#carrier = carrier;
  }

  #drop() {
    this.#carrier?.close();
    this.#carrier = null;
    clearInterval(this.#pinging);
    for (const { reject } of this.#answers.values()) reject(new Error("the connection was lost"));
    this.#answers.clear();
  }

  #ended({ code, reason, refusal = null, why = `connection lost${code === 1006 ? "" : ` (${code})`}` }) {
    const { kind } = this.#carrier ?? {};
    const neverReady = this.state === "opening";
    this.#drop();
    if (this.state === "paused") return; // its cursor is all that a resume needs
    if (kind === "websocket" && neverReady) this.#failures++;
    if (kind === "sse") this.#failures = FAILURES_BEFORE_EVENT_STREAM - 1; // once more by WebSocket
    if (refusal && (FINAL_STATUSES.includes(refusal.status) || !this.ready)) {
      this.#become("closed", { why: refusal.message, refusal });
    } else if (code in FINAL_CODES) {
      this.#become("closed", { why: reason || FINAL_CODES[code] });
    } else {
      this.#retry(code === 1012 ? "the broker restarts" : refusal?.message ?? why, refusal?.retryAfterMs);
    }
  }

  #retry(why, atLeastMs) {
    const usual = WAITS_MS[Math.min(this.#tries++, WAITS_MS.length - 1)] * (0.5 + Math.random());
    const wait = this.#reconnectAfterMs ?? Math.max(usual, atLeastMs ?? 0);
    this.#reconnectAfterMs = null;
    this.#become("lost", { why, wait });
    this.#timer = setTimeout(() => this.open(), wait);
  }

  /** Do not wait any longer. */
  hurry() {
    if (this.state === "lost") this.open();
  }

  close() {
    this.#become("closed", { why: "logged out" });
    clearTimeout(this.#timer);
    this.#drop();
  }

  // --- what comes

  #frame(text) {
    this.#heardAt = performance.now();
    const frame = JSON.parse(text);
    if (frame.event_id) {
      if (this.state !== "paused") this.cursor = frame.cursor;
      this.#say("event", { frame, text });
      return;
    }
    switch (frame.type) {
      case "connection.ready":
        this.#opened(frame);
        break;
      case "replay.gap":
        if (this.state !== "paused") this.cursor = frame.to;
        this.#say("gap", { ...frame, asked: this.#byTime });
        break;
      case "connection.cursor":
        if (this.state !== "paused") this.cursor = frame.cursor;
        break;
      case "server.draining":
        this.#reconnectAfterMs = frame.reconnect_after_ms;
        this.#say("draining", frame);
        break;
      case "response":
        this.#answers.get(frame.request_id)?.resolve(frame);
        this.#answers.delete(frame.request_id);
        break;
      case "connection.updated":
        this.#say("updated", frame);
        break;
      default: // of a later version
    }
  }

  #opened(frame) {
    this.#tries = 0;
    if (this.transport === "websocket") this.#failures = 0;
    this.ready = frame;
    this.cursor = frame.cursor;
    this.#quickest = Infinity;
    this.#become("live");
    this.#say("began", { why: this.#why, replay: frame.replay ?? null });
    this.#ping();
    this.#pinging = setInterval(() => this.#ping(), PING_MS);
  }

  // --- commands

  /** Give a command; resolves with the answer, `{result}` or `{error}`, and its time in `ms`. */
  async command(command) {
    if (this.#access.lookOnly && command.action !== "ping") throw new Error("this page may only look: log in without that");
    const begun = performance.now();
    const frame = this.transport === "websocket" ? await this.#overStream(command) : await this.#overHttp(command);
    return { ...frame, ms: performance.now() - begun };
  }

  #overStream(command) {
    const request_id = command.request_id ?? `page_${++this.#numbers}_${Math.random().toString(36).slice(2, 10)}`;
    return new Promise((resolve, reject) => {
      this.#answers.set(request_id, { resolve, reject });
      this.#carrier.send(JSON.stringify({ ...command, request_id }));
    });
  }

  async #overHttp(command) {
    if (this.#access.isToken) throw new Error("a token gives no commands by HTTP: log in with a key");
    const isPublish = command.action === "publish" && command.events;
    try {
      const result = isPublish
        ? await this.#access.ask("POST", "v1/events", command.events)
        : await this.#access.ask("POST", "v1/commands", command);
      return { action: command.action, result };
    } catch (error) {
      if (!(error instanceof Refusal)) throw new Error("the broker does not answer");
      return { action: command.action, error: { code: error.code, message: error.message } };
    }
  }

  async #told(command) {
    const answer = await this.#overStream(command);
    if (answer.error) throw new Error(answer.error.message);
    return answer;
  }

  /** Measure the clocks and the way; who says nothing at all any more is lost. */
  async #ping() {
    if (this.transport === "websocket" && performance.now() - this.#heardAt > SILENT_MS) {
      this.#ended({ why: "the broker fell silent" });
      return;
    }
    if (this.transport === "sse" && (this.#access.isToken || this.#access.lookOnly)) return;
    const before = Date.now();
    const answer = await this.command({ action: "ping" }).catch(() => null);
    if (!answer?.result) return;
    this.rtt = answer.ms;
    // The quickest answer tells most about the clocks: a slow one may have waited behind a replay.
    if (answer.ms < this.#quickest) {
      this.#quickest = answer.ms;
      this.clockSkew = Date.parse(answer.result.server_time) - (before + answer.ms / 2);
    }
    this.#say("measured");
  }

  // --- pause, resume, replay

  /** Take no events; they stay with the broker for as long as its window lasts. */
  async pause() {
    if (this.transport === "websocket") {
      const { result } = await this.#told({ action: "unsubscribe", inbox_ids: ["*"] });
      this.cursor = result.cursor; // the answer's: an account's event that comes meanwhile is ahead of the inboxes
    } else {
      this.#drop();
    }
    this.#become("paused");
  }

  /** Go on where the pause began. */
  async resume() {
    await this.#from(this.cursor, "resumed");
  }

  /** Everything again since a duration or a time; what came before is not shown again by itself. */
  async replay(since) {
    if (this.state === "live" && this.transport === "websocket") {
      await this.#told({ action: "unsubscribe", inbox_ids: ["*"] });
    }
    await this.#from(since, "replayed");
  }

  async #from(since, why) {
    if (this.transport !== "websocket") {
      if (why === "replayed") this.#say("clear");
      await this.open(since, why);
      return;
    }
    const byTime = since !== this.cursor;
    const { result } = await this.#told({ action: "subscribe", inbox_ids: ["*"], since });
    this.#byTime = byTime;
    this.cursor = result.cursor;
    if (why === "replayed") this.#say("clear");
    this.#become("live");
    this.#say("began", { why, replay: result.replay ?? null });
  }
}

// --- what carries it: each tells of its frames and, once, of its end

function overWebSocket(access, token, query, heard) {
  const socket = access.webSocket(token, query);
  socket.onmessage = ({ data }) => heard.frame(data);
  socket.onclose = ({ code, reason }) => heard.end({ code, reason });
  return { kind: "websocket", send: (text) => socket.send(text), close: () => socket.close(1000) };
}

function overEventStream(access, token, query, heard) {
  const stop = new AbortController();
  const carry = async () => {
    try {
      const answer = await access.open(`v1/events/stream?${query}`, { token, signal: stop.signal });
      for await (const text of eventsOf(answer)) heard.frame(text);
      heard.end({ code: 1006 });
    } catch (error) {
      heard.end({ code: 1006, refusal: error instanceof Refusal ? error : null });
    }
  };
  carry();
  return { kind: "sse", send: null, close: () => stop.abort() };
}
