/** Elements, text and numbers as people read them. What comes over the network is always text, never markup. */

export const $ = (id) => document.getElementById(id);

/** An element: `class`, attributes, and `on…` listeners; children are elements or texts, what is null is left out. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Give an element a text, if it has another. */
export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Let a list show these items: each one's element is made once and filled again. Keeps the focus. */
export function place(list, items, elements, nameOf, make, fill) {
  const order = items.map((item) => {
    const name = nameOf(item);
    let element = elements.get(name);
    if (!element) elements.set(name, (element = make(item)));
    fill(element, item);
    return element;
  });
  const now = list.children;
  if (now.length === order.length && order.every((element, index) => now[index] === element)) return;
  const focused = document.activeElement;
  list.replaceChildren(...order);
  if (list.contains(focused)) focused.focus();
  if (elements.size > 2 * order.length + 100) {
    const kept = new Set(order);
    for (const [name, element] of elements) if (!kept.has(element)) elements.delete(name);
  }
}

// What is not seen, or turns round what is: controls, overrides of direction, line ends of other alphabets, tags.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff]|[\u{e0000}-\u{e007f}]/gu;
const escaped = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Text with what would not be seen in it made visible, as JSON writes it: `\u202e`. */
export const visible = (text) => text.replace(UNSEEN, (found) => found.split("").map(escaped).join(""));

const two = (number) => String(number).padStart(2, "0");

/** A time of day, 10:21:28. */
export function clock(ms) {
  const at = new Date(ms);
  return Number.isNaN(at.getTime()) ? "–" : `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** How long something took: <1 ms, 45 ms, 3.2 s, 4:30, 2.1 h, 1.1 d; "" for null. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "";
  if (ms < 1) return "<1 ms";
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)}:${two(Math.floor(ms / 1_000) % 60)}`;
  return ms < 86_400_000 ? `${(ms / 3_600_000).toFixed(1)} h` : `${(ms / 86_400_000).toFixed(1)} d`;
}

const NUMBERS = new Intl.NumberFormat("en");
/** A whole number with narrow spaces between its thousands. */
export const count = (number) => NUMBERS.format(number).replaceAll(",", "\u202f");

/** How many, and of what: 1 event, 2 events. */
export const many = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;

/** 512 B, 34 kB, 1.1 GB. */
export function bytes(number) {
  const power = number < 1_000 ? 0 : Math.min(4, Math.floor(Math.log10(number) / 3));
  const value = number / 1_000 ** power;
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** JSON, with its numbers as they are written where the browser can say so, be they longer than a double. */
export function parseExactly(text) {
  if (!JSON.rawJSON) return JSON.parse(text);
  const asWritten = (_, value, { source } = {}) =>
    typeof value === "number" && source !== undefined && String(value) !== source ? JSON.rawJSON(source) : value;
  return JSON.parse(text, asWritten);
}

const COLOURED = 12_000, SHOWN = 60_000;
const TOKEN = /("(?:\\.|[^"\\])*"(?=\s*:))|("(?:\\.|[^"\\])*")|(-?\d[\d.eE+-]*)|(true|false|null)|[^"\dtfn-]+|./gs;

/** A value as indented JSON in colours; of what is very long the beginning. */
export function json(value) {
  const box = el("pre", { tabindex: 0 });
  const text = visible(JSON.stringify(value, null, 2) ?? "");
  for (const [token, key, string, number, literal] of text.slice(0, COLOURED).matchAll(TOKEN)) {
    const kind = key ? "k" : string ? "s" : number ? "n" : literal ? "b" : null;
    box.append(kind ? el("span", { class: kind }, token) : token);
  }
  box.append(text.slice(COLOURED, SHOWN));
  if (text.length > SHOWN) box.append(`\n… ${count(text.length - SHOWN)} more characters: copy to see all`);
  return box;
}

/** Let a click choose what was under the pointer when it went down, though other rows have moved there since. */
export function onChoice(list, of, choose) {
  let down = null;
  list.addEventListener("pointerdown", ({ target }) => (down = of(target)));
  list.addEventListener("click", ({ target, detail }) => {
    const chosen = (detail && down) || of(target); // a click without a pointer has no detail
    down = null;
    if (chosen) choose(chosen);
  });
}

// --- light or dark: kept, since it says nothing of anybody

const THEME = "daimon.theme";
const isDark = () => {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

/** Let a button change between light and dark; `changed` is called when the colours are others. */
export function themed(button, changed = () => {}) {
  const kept = recall(THEME);
  if (kept) document.documentElement.dataset.theme = kept;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    keep(THEME, document.documentElement.dataset.theme);
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

/** What this browser was told to remember; null if it was not, or remembers nothing. */
export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}
export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that keeps nothing shows the page all the same
  }
}
