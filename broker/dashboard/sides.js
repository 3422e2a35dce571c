/** What stands beside the feed: inboxes and types, to choose from, and what is to be looked at. */
import { $, clock, count, el, place, set, visible } from "./dom.js";
import { ACCOUNT, GLYPHS, KINDS, kindOf } from "./store.js";
import { drawSpark, sparkline } from "./timeline.js";

const INBOXES_SHOWN = 200, ALERTS_SHOWN = 60;
const ALL = { name: null };

/** Inboxes and types: each a switch of the filter. */
export class Switches {
  #store;
  #filter;
  #changed;
  #inboxes = new Map();
  #types = new Map();

  constructor({ store, filter, changed }) {
    this.#store = store;
    this.#filter = filter;
    this.#changed = changed;
  }

  draw(now) {
    const wanted = $("find-inbox").value.trim().toLowerCase();
    const busiest = [...this.#store.inboxes.values()]
      .filter(({ name }) => name.toLowerCase().includes(wanted))
      .sort((a, b) => b.count - a.count || (a.name < b.name ? -1 : 1))
      .slice(0, INBOXES_SHOWN);
    const fillInbox = (item, inbox) => this.#fillInbox(item, inbox, now);
    place($("inboxes"), [ALL, ...busiest], this.#inboxes, ({ name }) => name, (inbox) => this.#inbox(inbox), fillInbox);
    const order = ([type]) => `${KINDS.indexOf(kindOf(type))}${type}`;
    const types = [...this.#store.types].sort((a, b) => (order(a) < order(b) ? -1 : 1));
    place($("types"), types, this.#types, ([type]) => type, ([type]) => this.#type(type), (item, [type, number]) => {
      const [button] = item.children;
      button.setAttribute("aria-pressed", !this.#filter.hidden.has(type));
      set(button.lastChild, count(number));
    });
  }

  #inbox({ name }) {
    const choose = () => {
      this.#filter.inbox = name;
      this.#changed();
    };
    const picture = name === null ? el("span") : sparkline();
    const label = el("span", { class: "name" }, name ?? "all inboxes");
    return el("li", {}, el("button", { onclick: choose }, label, picture, el("span", { class: "count" })));
  }

  #fillInbox(item, inbox, now) {
    const [button] = item.children, [, picture, number] = button.children;
    button.setAttribute("aria-pressed", this.#filter.inbox === inbox.name);
    set(number, count(inbox === ALL ? this.#store.seen : inbox.count));
    if (inbox === ALL) return;
    button.title = inbox.bad ? `${inbox.name}: ${count(inbox.bad)} bounced or complained` : inbox.name;
    drawSpark(picture, inbox, now);
  }

  #type(type) {
    const { hidden } = this.#filter, kind = kindOf(type);
    const turn = () => {
      if (!hidden.delete(type)) hidden.add(type);
      this.#changed();
    };
    const glyph = el("span", { class: `glyph ${kind}`, "aria-hidden": "true" }, GLYPHS[kind]);
    const name = el("span", { class: "name" }, type);
    return el("li", {}, el("button", { onclick: turn, title: type }, glyph, name, el("span", { class: "count" })));
  }
}

const SAID = { bounced: "Bounced: ", complaint: "Complained: ", watched: "", gap: "" };

/** Bounces and complaints by recipient, gaps, and mail with words that are watched for. */
export class Alerts {
  #store;
  #chosen;

  /** `chosen(alert)` is called when somebody chooses one. */
  constructor({ store, chosen }) {
    this.#store = store;
    this.#chosen = chosen;
  }

  draw() {
    const alerts = [...this.#store.alerts.values()].reverse();
    const bad = alerts.filter(({ kind }) => kind !== "watched").length;
    set($("n-alerts"), count(bad));
    $("n-alerts").hidden = !bad;
    const isRead = $("alerts").matches(":hover, :focus-within");
    if ($("pane-alerts").hidden || (isRead && $("alerts").querySelector("button"))) return;
    const none = el("li", { class: "hint" }, "No bounces, no complaints and no gaps in what this page has seen.");
    $("alerts").replaceChildren(...(alerts.length ? alerts.slice(0, ALERTS_SHOWN).map((alert) => this.#item(alert)) : [none]));
  }

  #item(alert) {
    const { kind, who, why, times, inbox, at } = alert;
    const about = [`${SAID[kind]}${visible(why)}`, inbox && inbox !== ACCOUNT ? inbox : null, clock(at)];
    return el("li", {}, el("button", { onclick: () => this.#chosen(alert) },
      el("span", { class: `glyph ${kind}`, "aria-hidden": "true" }, GLYPHS[kind]),
      el("span", {}, visible(who)),
      el("span", { class: "times" }, times > 1 ? `${count(times)} ×` : ""),
      el("span", { class: "why" }, about.filter(Boolean).join(" · ")),
    ));
  }
}
