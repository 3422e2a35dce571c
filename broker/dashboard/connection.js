/** One connection: all that is known of it, what runs for it, and its end. */
import { Refusal } from "./access.js";
import { $, bytes, count, duration, el, set, visible } from "./dom.js";
import { Tree } from "./panels.js";

const AGAIN_MS = 2_000;
const MOST_NAMES = 200;

export class ConnectionView {
  #access;
  #changed;
  #tree = new Tree($("one-tree"), () => {});
  #facts = new Map();
  #id = null;
  #turn = 0;
  #timer = null;

  /** `changed()` is called when a connection was ended, or nobody is looked at any more. */
  constructor(access, changed) {
    this.#access = access;
    this.#changed = changed;
    $("one-close").onclick = () => this.close();
    $("one-tasks").onclick = () => this.#showTasks();
    $("one-end").onclick = () => this.#end();
    $("one-keep").onclick = () => this.#ask(false);
  }

  get id() {
    return this.#id;
  }

  /** Look at a connection. `focus`: and let the keyboard go there. */
  open(id, focus = false) {
    this.#id = id;
    this.#turn++;
    this.#tree.clear();
    this.#facts.clear();
    $("one-facts").replaceChildren();
    set($("one-state"), "");
    this.#ask(false);
    this.#live(true);
    $("one").hidden = false;
    $("one").scrollIntoView({ block: "start" });
    if (focus) $("one-title").focus();
    clearInterval(this.#timer);
    this.#timer = setInterval(() => document.hidden || this.#look(), AGAIN_MS);
    this.#look();
  }

  close() {
    clearInterval(this.#timer);
    this.#id = null;
    this.#turn++;
    $("one").hidden = true;
    this.#changed();
  }

  async #look() {
    const turn = this.#turn;
    try {
      const one = await this.#access.ask("GET", `v1/operator/connections/${encodeURIComponent(this.#id)}`);
      if (turn === this.#turn) this.#show(one);
    } catch (error) {
      if (turn === this.#turn) this.#lost(error);
    }
  }

  #lost(error) {
    if (!(error instanceof Refusal)) return; // the broker does not answer: that is said at the top
    if (error.code === "not_found") {
      this.#gone("It has ended.");
    } else set($("one-state"), error.message);
  }

  #gone(words) {
    clearInterval(this.#timer);
    this.#turn++;
    this.#live(false);
    set($("one-state"), words);
    this.#changed();
  }

  #live(lives) {
    for (const id of ["one-tasks", "one-end"]) $(id).disabled = !lives;
  }

  #show(one) {
    const some = (names, all, most) => {
      if (names === null) return all;
      const beyond = (most ?? names.length) - Math.min(names.length, MOST_NAMES);
      return `${names.slice(0, MOST_NAMES).join(", ")}${beyond > 0 ? ` and ${count(beyond)} more` : ""}` || "none";
    };
    const facts = {
      connection: one.connection_id,
      account: one.account_id,
      key: one.key_id,
      client: one.client_id ?? "–",
      address: one.remote ?? "–",
      SDK: one.agent ?? "–",
      "carried by": `${one.transport}${one.watch ? ", a look" : ""}`,
      state: one.state,
      opened: one.opened_at,
      inboxes: some(one.inbox_ids, "all", one.inboxes),
      types: some(one.event_types, "all"),
      behind: one.behind_events ? `${count(one.behind_events)} events, ${duration(one.behind_seconds * 1_000)}` : "0",
      held: bytes(one.held_bytes),
      silent: duration(one.silent_seconds * 1_000),
      rtt: one.rtt_seconds === null ? "–" : duration(one.rtt_seconds * 1_000),
      sent: one.bytes_sent === null ? "–" : bytes(one.bytes_sent),
      commands: one.commands ? some(one.request_ids, "", one.commands) : "0",
    };
    for (const [name, text] of Object.entries(facts)) {
      if (!this.#facts.has(name)) {
        const value = el("dd");
        this.#facts.set(name, value);
        $("one-facts").append(el("dt", {}, name), value);
      }
      set(this.#facts.get(name), visible(text));
    }
  }

  async #showTasks() {
    const turn = this.#turn;
    try {
      const { root } = await this.#access.ask("GET", `debug/tasks?under=${encodeURIComponent(this.#id)}`);
      if (turn === this.#turn) this.#tree.showTasks(root);
    } catch (error) {
      if (turn === this.#turn) this.#lost(error);
    }
  }

  // --- its end: asked twice

  #ask(asks) {
    $("one-keep").hidden = !asks;
    $("one-end").dataset.sure = asks ? "yes" : "";
    set($("one-end"), asks ? "Yes, disconnect it" : "Disconnect");
  }

  async #end() {
    if (!$("one-end").dataset.sure) {
      this.#ask(true);
      return;
    }
    this.#ask(false);
    const turn = this.#turn;
    try {
      await this.#access.ask("DELETE", `v1/operator/connections/${encodeURIComponent(this.#id)}`);
      if (turn === this.#turn) this.#gone("It was closed with 1001.");
    } catch (error) {
      if (turn !== this.#turn) return;
      if (error instanceof Refusal) this.#lost(error);
      else set($("one-state"), "The broker does not answer.");
    }
  }
}
