/** The feed: the newest first, as many elements as fit, whatever the number of rows. It holds still while it is read. */
import { clock, count, duration, el, onChoice, set, visible } from "./dom.js";
import { GLYPHS } from "./store.js";

const SPARE = 4; // rows above and below what is seen
const STEPS = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };

/** Which events are shown: of one inbox, of types that are not hidden, with a text in them. */
export class Filter {
  inbox = null;
  hidden = new Set();
  text = "";

  get isOpen() {
    return this.inbox === null && !this.hidden.size && !this.text;
  }

  clear() {
    this.inbox = null;
    this.hidden.clear();
    this.text = "";
  }

  matches = (row) => {
    if (row.note) return true;
    if (this.inbox !== null && row.inbox !== this.inbox) return false;
    if (this.hidden.has(row.listed)) return false;
    return !this.text || `${row.type}\n${row.inbox}\n${row.head}\n${row.rest}\n${row.id}`.toLowerCase().includes(this.text);
  };
}

export class Feed {
  selected = null;
  #box;
  #space;
  #newer;
  #store;
  #filter;
  #chosen;
  #height = 34;
  #elements = [];
  #shown = [];
  #generation = 0;
  /** The number of the first row that was not looked at; while somebody reads, new ones are counted only. */
  #through = 0;
  #counted = 0;
  #fresh = 0;
  #reads = false;

  /** `chosen(row, focus)` is called when somebody chooses one. */
  constructor({ box, space, newer, store, filter, chosen }) {
    this.#box = box;
    this.#space = space;
    this.#newer = newer;
    this.#store = store;
    this.#filter = filter;
    this.#chosen = chosen;
    box.addEventListener("scroll", () => this.#scrolled());
    box.addEventListener("keydown", (event) => this.#pressed(event));
    newer.addEventListener("click", () => this.top());
    onChoice(space, (target) => target.closest(".row")?.row, (row) => row.note || this.select(row));
    new ResizeObserver(() => this.#resized()).observe(box);
  }

  get shown() {
    return this.#shown.length;
  }

  /** Show what the filter says now. */
  refilter() {
    this.#generation = null;
    this.top();
  }

  top() {
    this.#reads = false;
    this.#box.scrollTop = 0;
    this.draw();
  }

  #scrolled() {
    this.#reads = this.#box.scrollTop > 4;
    this.draw();
  }

  #resized() {
    this.#height = parseInt(getComputedStyle(this.#box).getPropertyValue("--row")) || 34;
    for (const element of this.#elements) element.row = null;
    this.draw();
  }

  draw() {
    this.#update();
    this.#newer.hidden = !this.#fresh;
    if (this.#fresh) set(this.#newer, `${count(this.#fresh)} newer ↑`);
    const height = this.#height, all = this.#shown.length, { scrollTop, clientHeight } = this.#box;
    const first = Math.max(0, Math.floor(scrollTop / height) - SPARE);
    const last = Math.min(all, Math.ceil((scrollTop + clientHeight) / height) + SPARE);
    this.#space.style.height = `${all * height}px`;
    while (this.#elements.length < last - first) this.#elements.push(this.#element());
    this.#elements.forEach((element, index) => {
      const at = first + index;
      element.hidden = at >= last;
      if (!element.hidden) this.#fill(element, this.#shown[all - 1 - at], at, all);
    });
  }

  /** Look at what came and what went since the last time, and at nothing else. */
  #update() {
    const store = this.#store;
    if (this.#generation !== store.generation) {
      this.#generation = store.generation;
      this.#shown = [];
      this.#through = this.#counted = store.first;
      this.#fresh = 0;
    }
    if (this.#shown.length && this.#shown[0].number < store.first) {
      const kept = this.#shown.findIndex((row) => row.number >= store.first);
      this.#shown.splice(0, kept < 0 ? this.#shown.length : kept);
    }
    if (!this.#reads) {
      for (const row of store.since(this.#through)) if (this.#filter.matches(row)) this.#shown.push(row);
      this.#through = this.#counted = store.next;
      this.#fresh = 0;
    } else if (this.#counted < store.next) {
      for (const row of store.since(this.#counted)) if (!row.note && this.#filter.matches(row)) this.#fresh++;
      this.#counted = store.next;
    }
  }

  #element() {
    const element = el("div", { class: "row", role: "option" });
    element.cells = ["time", "type", "inbox", "what", "who", "age"].map((name) => el("span", { class: name }));
    element.append(...element.cells);
    this.#space.append(element);
    return element;
  }

  #fill(element, row, at, all) {
    element.style.transform = `translateY(${at * this.#height}px)`;
    element.setAttribute("aria-posinset", at + 1);
    element.setAttribute("aria-setsize", all);
    const selected = this.selected === row;
    if (element.row === row && element.wasSelected === selected) return;
    Object.assign(element, { row, wasSelected: selected, id: `row-${row.number}` });
    element.setAttribute("aria-selected", selected);
    const [time, type, ...others] = element.cells;
    set(time, clock(row.at));
    for (const cell of others) cell.hidden = Boolean(row.note);
    if (row.note) {
      element.className = `row note ${row.kind}`;
      set(type, row.note);
      for (const cell of others) set(cell, ""); // of the event that was shown here
      return;
    }
    element.className = `row ${row.kind}${row.watched ? " watched" : ""}`;
    const [prefix, word] = row.type.startsWith("message.") ? ["message.", row.type.slice(8)] : ["", row.type];
    type.replaceChildren(
      el("span", { class: `glyph ${row.kind}`, "aria-hidden": "true" }, GLYPHS[row.kind]),
      el("span", { class: "word" }, el("span", { class: "unseen" }, prefix), word),
    );
    const who = row.kind === "received" ? row.rest.replace(/\s*<[^>]*>$/, "") : row.rest;
    [row.inbox, visible(row.head), visible(who), duration(row.age)].forEach((text, index) => set(others[index], text));
  }

  // --- choosing

  /** Scroll to a row. */
  reveal(row) {
    const index = this.#shown.indexOf(row);
    if (index < 0) return;
    this.#reads = true;
    const y = (this.#shown.length - 1 - index) * this.#height;
    this.#box.scrollTop = Math.max(0, y - this.#box.clientHeight / 3);
    this.#box.focus();
    this.draw();
  }

  select(row, { focus = false } = {}) {
    this.selected = row;
    if (row) this.#box.setAttribute("aria-activedescendant", `row-${row.number}`);
    else this.#box.removeAttribute("aria-activedescendant");
    this.draw();
    if (row) this.#chosen(row, focus);
  }

  /** Go up or down by a key, from wherever it was pressed. */
  step(key) {
    const all = this.#shown.length, by = STEPS[key];
    const here = this.selected ? all - 1 - this.#shown.indexOf(this.selected) : -1;
    const direction = Math.sign(by);
    let at = Math.max(0, Math.min(all - 1, here + by));
    while (at > 0 && at < all - 1 && this.#shown[all - 1 - at].note) at += direction;
    const row = this.#shown[all - 1 - at];
    if (!row || row.note) return;
    const y = at * this.#height, { scrollTop, clientHeight } = this.#box;
    if (y < scrollTop) this.#box.scrollTop = y;
    else if (y + this.#height > scrollTop + clientHeight) this.#box.scrollTop = y + this.#height - clientHeight;
    this.select(row);
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && this.selected) this.#chosen(this.selected, true);
    else if (event.key in STEPS) this.step(event.key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
