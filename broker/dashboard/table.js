/**
 * All connections, however many: the whole height is there, and of the rows only those that one looks at.
 *
 * They are asked for in pages, of which those are kept that lie round what is seen, and asked for again each two
 * seconds: no more often does the broker look at them itself.
 */
import { bytes, count, duration, el, onChoice, set, visible } from "./dom.js";

const PAGE = 100, MOST_ROWS = 10_100, PAGES_KEPT = 3, MOST_UNDER_WAY = 2;
const AGAIN_MS = 2_000, REST_MS = 100;
const SPARE = 3;
const STEPS = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity };
const MARKS = { live: "●", behind: "▲", paused: "■" };

const age = (row, now) => duration(Math.max(0, now - Date.parse(row.opened_at)));
const some = (number, text) => (number ? text(number) : "");
/** What stands in each column; `sort`: what the broker calls that. */
const COLUMNS = [
  { title: "state", name: "does", text: (row) => `${row.state}${row.watch ? ", looks" : ""}` },
  { title: "account", name: "of", sort: "account_id", up: true, text: (row) => row.account_id },
  { title: "client", name: "client", sort: "client_id", up: true, text: (row) => row.client_id ?? row.connection_id },
  { title: "address", name: "remote", sort: "remote", up: true, text: (row) => row.remote ?? "" },
  { title: "SDK", name: "agent", sort: "agent", up: true, text: (row) => row.agent ?? row.transport },
  { title: "behind", name: "behind-by number", sort: "behind_events", text: (row) => some(row.behind_events, count) },
  { title: "for", name: "behind-for number", sort: "behind_seconds", text: (row) => some(row.behind_events, () => duration(row.behind_seconds * 1_000)) },
  { title: "held", name: "held number", sort: "held_bytes", text: (row) => some(row.held_bytes, bytes) },
  { title: "cmds", name: "commands number", sort: "commands", text: (row) => some(row.commands, count) },
  { title: "rtt", name: "rtt number", text: (row) => (row.rtt_seconds === null ? "" : duration(row.rtt_seconds * 1_000)) },
  { title: "age", name: "age number", sort: "opened_at", text: age },
];

export class Table {
  #parts;
  #ask;
  #now;
  #chosen;
  #failed;
  #wanted = { sort: "behind_events", order: "desc", state: "", q: "", account_id: "" };
  #turn = 0;
  #pages = new Map();
  #underWay = new Set();
  #elements = [];
  #matching = 0;
  #total = 0;
  #known = false;
  #height = 30;
  #timer = null;
  #scrolling = null;
  /** The row that is chosen, by its place; null: none is. */
  #at = null;
  /** The id of the connection that is looked at. */
  selected = null;

  /**
   * `parts`: the elements box, head, rows, empty and shown; `ask(query)` gives a page, `now()` the broker's time;
   * `chosen(row)` is told which connection is to be looked at, `failed(error)` what cannot be had.
   */
  constructor(parts, { ask, now, chosen, failed }) {
    this.#parts = parts;
    this.#ask = ask;
    this.#now = now;
    this.#chosen = chosen;
    this.#failed = failed;
    parts.head.append(...COLUMNS.map((column) => this.#header(column)));
    parts.box.setAttribute("aria-colcount", COLUMNS.length);
    parts.box.addEventListener("scroll", () => this.#scrolled());
    parts.box.addEventListener("keydown", (event) => this.#pressed(event));
    onChoice(parts.rows, (target) => this.#under(target), ({ place, row }) => this.#choose(place, false, row));
    new ResizeObserver(() => this.#resized()).observe(parts.box);
    this.#showSort();
  }

  start() {
    this.#timer ??= setInterval(() => this.#refresh(), AGAIN_MS);
    this.#load();
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
  }

  /** Show other connections, or these in another order. */
  want(changes) {
    this.#wanted = { ...this.#wanted, ...changes };
    this.#turn++;
    this.#pages.clear();
    this.#underWay.clear();
    this.#known = false;
    this.#at = null;
    this.#parts.box.scrollTop = 0;
    this.#showSort();
    this.draw();
  }

  /** Ask again for what is seen. */
  hurry() {
    this.#refresh();
  }

  // --- what is asked for

  get #query() {
    const query = new URLSearchParams({ limit: PAGE });
    for (const [name, value] of Object.entries(this.#wanted)) if (value) query.set(name, value);
    return query;
  }

  #seen() {
    const { scrollTop, clientHeight } = this.#parts.box;
    const rows = Math.min(this.#matching, MOST_ROWS);
    const first = Math.max(0, Math.floor(scrollTop / this.#height) - SPARE);
    return [first, Math.max(first, Math.min(rows, Math.ceil((scrollTop + clientHeight) / this.#height) + SPARE))];
  }

  #pagesSeen() {
    const [first, last] = this.#seen();
    const pages = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(first, last - 1) / PAGE); page++) pages.push(page);
    return pages;
  }

  #refresh() {
    if (document.hidden) return;
    for (const page of this.#pagesSeen()) if (this.#pages.has(page)) this.#pages.get(page).old = true;
    this.#load();
  }

  /** What one scrolls over is not asked for: only what is seen when that rests. */
  #scrolled() {
    clearTimeout(this.#scrolling);
    this.#scrolling = setTimeout(() => {
      this.#scrolling = null;
      this.#load();
    }, REST_MS);
    this.draw();
  }

  /** Ask for pages that are seen, a few at a time. */
  #load() {
    if (this.#timer === null || this.#scrolling !== null) return;
    for (const page of this.#pagesSeen()) {
      const kept = this.#pages.get(page);
      if ((!kept || kept.old) && !this.#underWay.has(page) && this.#underWay.size < MOST_UNDER_WAY) this.#get(page);
    }
  }

  async #get(page) {
    const turn = this.#turn, query = this.#query;
    this.#underWay.add(page);
    if (page) query.set("offset", page * PAGE);
    try {
      const { total, matching, connections } = await this.#ask(query);
      if (turn !== this.#turn) return;
      this.#pages.set(page, { rows: connections, old: false });
      this.#total = total;
      this.#matching = matching;
      this.#known = true;
    } catch (error) {
      if (turn === this.#turn) this.#failed(error);
      return;
    } finally {
      if (turn === this.#turn) this.#underWay.delete(page);
    }
    this.draw();
  }

  // --- what is shown

  #row(place) {
    return this.#pages.get(Math.floor(place / PAGE))?.rows[place % PAGE] ?? null;
  }

  draw() {
    const { box, rows, shown, empty } = this.#parts;
    const showing = Math.min(this.#matching, MOST_ROWS);
    rows.style.height = `${showing * this.#height}px`;
    box.setAttribute("aria-rowcount", showing + 1);
    const [first, last] = this.#seen();
    while (this.#elements.length < last - first) this.#elements.push(this.#element());
    this.#elements.forEach((element, index) => {
      const place = first + index;
      element.hidden = place >= last;
      if (!element.hidden) this.#fill(element, place);
    });
    for (const page of this.#pages.keys()) if (Math.abs(page * PAGE - first) > PAGES_KEPT * PAGE) this.#pages.delete(page);
    const beyond = this.#matching > MOST_ROWS ? `, ${count(MOST_ROWS)} shown: search for the others` : "";
    set(shown, this.#known ? `${count(this.#matching)} of ${count(this.#total)}${beyond}` : "");
    empty.hidden = !this.#known || this.#matching > 0;
    set(empty, this.#total ? "No connection is like this." : "Nobody is connected.");
    this.#load();
  }

  #element() {
    const element = el("div", { class: "cells crow", role: "row" });
    element.append(...COLUMNS.map(({ name }) => el("span", { class: name, role: "gridcell" })));
    this.#parts.rows.append(element);
    return element;
  }

  #fill(element, place) {
    const row = this.#row(place);
    Object.assign(element, { place, connection: row?.connection_id ?? null, id: `row-${place}` });
    element.style.transform = `translateY(${place * this.#height}px)`;
    element.setAttribute("aria-rowindex", place + 2);
    element.setAttribute("aria-selected", row !== null && row.connection_id === this.selected);
    element.className = `cells crow ${row ? row.state : "blank"}${place === this.#at ? " here" : ""}`;
    const now = this.#now();
    COLUMNS.forEach(({ text }, index) => set(element.children[index], row ? visible(text(row, now)) : index === 2 ? "…" : ""));
    element.children[0].dataset.mark = row ? MARKS[row.state] : "";
  }

  #resized() {
    this.#height = parseInt(getComputedStyle(this.#parts.box).getPropertyValue("--crow")) || 30;
    this.draw();
  }

  // --- sorting

  #header(column) {
    const name = column.name.endsWith("number") ? "number" : "";
    const header = el("span", { role: "columnheader", class: `${column.name.split(" ")[0]} ${name}` });
    column.header = header;
    if (!column.sort) {
      header.append(el("span", {}, column.title));
      return header;
    }
    header.append(el("button", { onclick: () => this.#sortBy(column) }, column.title));
    return header;
  }

  #sortBy({ sort, up }) {
    const { sort: before, order } = this.#wanted;
    this.want({ sort, order: sort === before ? (order === "desc" ? "asc" : "desc") : up ? "asc" : "desc" });
  }

  #showSort() {
    for (const { sort, title, header } of COLUMNS) {
      if (!sort) continue;
      const sorted = sort === this.#wanted.sort, up = this.#wanted.order === "asc";
      if (sorted) header.setAttribute("aria-sort", up ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
      set(header.firstChild, sorted ? `${title} ${up ? "↑" : "↓"}` : title);
    }
  }

  // --- choosing

  #under(target) {
    const place = target.closest("[role=row]")?.place, row = this.#row(place);
    return row && { place, row };
  }

  #choose(place, focus, row = this.#row(place)) {
    this.#at = place;
    this.#parts.box.setAttribute("aria-activedescendant", `row-${place}`);
    if (row) {
      this.selected = row.connection_id;
      this.#chosen(row, focus);
    }
    this.draw();
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
    const rows = Math.min(this.#matching, MOST_ROWS);
    if (event.key === "Enter" && this.#at !== null) this.#choose(this.#at, true);
    else if (event.key in STEPS && rows) this.#go(Math.max(0, Math.min(rows - 1, (this.#at ?? -1) + STEPS[event.key])));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #go(place) {
    const { box } = this.#parts, head = box.firstElementChild.offsetHeight, y = place * this.#height;
    if (y < box.scrollTop) box.scrollTop = y;
    else if (y + this.#height > box.scrollTop + box.clientHeight - head) box.scrollTop = y + this.#height - box.clientHeight + head;
    this.#at = place;
    box.setAttribute("aria-activedescendant", `row-${place}`);
    this.draw();
  }
}
