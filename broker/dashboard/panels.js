/** What stands beside the table: accounts, what was closed and refused, and what runs. */
import { bytes, count, duration, el, many, place, set, visible } from "./dom.js";

const MOST_REFUSALS = 6;

/** A list whose entries have two lines, each with something at its end. */
class Entries {
  #list;
  #elements = new Map();
  #nothing;
  #chosen;

  /** `chosen(entry)`: what a click on one does; left out: nothing. */
  constructor(list, nothing, chosen) {
    this.#list = list;
    this.#nothing = nothing;
    this.#chosen = chosen;
  }

  /** Each entry: its `name`, and `texts`, four of them; `warns`: which of those warn. */
  show(entries) {
    const shown = entries.length ? entries : [{ name: "", texts: [this.#nothing, "", "", ""] }];
    place(this.#list, shown, this.#elements, ({ name }) => name, () => this.#make(), (element, entry) => this.#fill(element, entry));
  }

  #make() {
    const texts = [el("span", { class: "name" }), el("span", { class: "number" }), el("span", { class: "sub" }), el("span", { class: "sub number" })];
    const element = el("li");
    if (this.#chosen) element.append(el("button", { onclick: () => element.entry.name && this.#chosen(element.entry) }, ...texts));
    else element.append(...texts);
    element.texts = texts;
    return element;
  }

  #fill(element, entry) {
    element.entry = entry;
    entry.texts.forEach((text, index) => {
      set(element.texts[index], visible(text));
      element.texts[index].classList.toggle("warn", Boolean(entry.warns?.includes(index)));
    });
  }
}

export class Panels {
  #accounts;
  #closed;
  #refused;

  /** `lists`: the elements accounts, closed and refused; `chosen(account_id)`. */
  constructor(lists, chosen) {
    this.#accounts = new Entries(lists.accounts, "There is none yet.", ({ name }) => chosen(name));
    this.#closed = new Entries(lists.closed, "None yet.");
    this.#refused = new Entries(lists.refused, "Nothing.");
  }

  show(snapshot) {
    this.#accounts.show(snapshot.accounts.map((account) => accountEntry(account, snapshot.window.seconds)));
    this.#closed.show(snapshot.closed.map(closedEntry));
    const refused = Object.entries(snapshot.counters.refused).sort(([, one], [, other]) => other - one);
    this.#refused.show(refused.slice(0, MOST_REFUSALS).map(([code, number]) => ({ name: code, texts: [code, count(number), "", ""] })));
  }
}

function accountEntry(account, seconds) {
  const { connections, max_connections: most, squeezed } = account;
  const full = most !== null && connections >= most;
  const reach = squeezed ? (account.window_seconds ?? 0) : seconds;
  return {
    name: account.account_id,
    texts: [
      account.account_id,
      most === null ? count(connections) : `${count(connections)} of ${count(most)}`,
      [account.tier, `${rate(account.events_per_second)} in`, bytes(account.window_bytes)].filter(Boolean).join(" · "),
      `${count(Math.round(reach))} s kept`,
    ],
    warns: [...(full ? [1] : []), ...(squeezed ? [3] : [])],
  };
}

function closedEntry(closed) {
  const who = closed.client_id ?? closed.connection_id;
  const reason = closed.reason.replace(/^closed by the (?:broker|client) with \d+:? ?/, "") || "by the client";
  return {
    name: closed.connection_id,
    texts: [`${who} of ${closed.account_id}`, closed.code === null ? "left" : String(closed.code), reason, `lived ${duration(closed.lived_seconds * 1_000)}`],
    warns: closed.code !== null && closed.code !== 1001 && closed.code !== 1012 ? [1] : [],
  };
}

/** So many a second: 3.2/s, 120/s. */
export const rate = (number) => `${number && number < 10 ? number.toFixed(1) : count(Math.round(number))}/s`;

// --- tasks

/** The last two names of a path through the code: Hub.deliver. */
const short = (name) => name.replace(/:\d+$/, "").split(".").slice(-2).join(".");

/** A tree as indented lines: each is kept, so that what one points at stays where it is. */
export class Tree {
  #list;
  #elements = new Map();
  #chosen;

  /** `chosen(connectionId)`: what a click on a group of clients does. */
  constructor(list, chosen) {
    this.#list = list;
    this.#chosen = chosen;
  }

  /** Show groups of tasks, as `GET /debug/tasks?grouped=1` tells them. */
  showGroups(root) {
    this.#show(root, (group) => ({
      title: group.name,
      name: group.does || short(group.name),
      times: group.tasks,
      what: group.does ? short(group.name) : waits(group),
      connection: group.connection_ids[0],
      under: group.under,
      more: group.more,
    }));
  }

  /** Show tasks, as `GET /debug/tasks?under=…` tells them. */
  showTasks(root) {
    this.#show(root, (task) => ({
      title: `${task.name} at ${task.at}`,
      name: short(task.name),
      times: 1,
      what: waits(task),
      under: task.tasks,
      more: Object.values(task.more).reduce((sum, number) => sum + number, 0),
    }));
  }

  clear() {
    this.#list.replaceChildren();
    this.#elements.clear();
  }

  #show(root, look) {
    const lines = [];
    const walk = (node, depth, path) => {
      const line = look(node);
      lines.push({ ...line, depth, path });
      line.under.forEach((below, index) => walk(below, depth + 1, `${path}/${below.does ?? ""}${below.name}${index}`));
      if (line.more) lines.push({ name: `and ${many(line.more, "task")} more`, times: 1, what: "", depth: depth + 1, path: `${path}/…` });
    };
    walk(root, 0, "");
    place(this.#list, lines, this.#elements, ({ path }) => path, () => this.#make(), (element, line) => this.#fill(element, line));
  }

  #make() {
    const element = el("li");
    const texts = [el("span", { class: "name" }), el("span", { class: "number" }), el("span", { class: "sub" })];
    const button = el("button", { hidden: true, title: "Look at one of them", onclick: () => this.#chosen(element.line.connection) });
    element.append(...texts, button);
    return Object.assign(element, { texts, button });
  }

  #fill(element, line) {
    element.line = line;
    const [name, times, what] = element.texts;
    element.style.setProperty("--depth", Math.min(line.depth, 8));
    element.title = visible(line.title ?? "");
    element.button.hidden = !line.connection;
    set(element.button, line.connection ? line.times > 1 ? `one of ${count(line.times)}` : "look" : "");
    set(name, visible(line.name));
    set(times, line.times > 1 && !line.connection ? `× ${count(line.times)}` : "");
    set(what, visible(line.what));
  }
}

/** Where it is, if that is not what it is called, and in what it waits there. */
function waits({ name, at, waits_for: what }) {
  const place = short(at);
  return [place === short(name) ? "" : place, short(what)].filter(Boolean).join(" · ");
}
