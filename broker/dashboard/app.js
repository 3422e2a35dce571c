/** The page of an account: logs in, and wires what comes to what is seen. */
import { Access } from "./access.js";
import { $, count, duration, el, keep, many, recall, set, themed, visible } from "./dom.js";
import { eventView } from "./event.js";
import { Feed, Filter } from "./feed.js";
import { SendForm } from "./send.js";
import { Alerts, Switches } from "./sides.js";
import { ACCOUNT, BUCKETS, BUCKET_MS, KEPT, Store } from "./store.js";
import { Stream } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Webhooks } from "./webhooks.js";

const WINDOW_SECONDS = 300;
const BACKS = [[30, "30 s ago"], [60, "1 min ago"], [120, "2 min ago"], [300, "5 min ago"], [3_600, "1 h ago"], [21_600, "6 h ago"], [86_400, "24 h ago"]];
const WORDS = "daimon.words";
const NOTIFY_MS = 2_000;
const DRAW_MS = 100, NUMBERS_MS = 500;

const store = new Store(), filter = new Filter();
let access, stream, webhooks;
/** Events of a replay that are still to come; 0: what comes is live. */
let toReplay = 0;
/** After so many of them the page pauses: it would keep no more. */
let pauseAfter = Infinity;
let pausedAt = null;
/** While it is found out what to begin with: the seconds before the page was opened that are tried, and those before. */
let fitting = null;
let openedAt;
let afterGap = false;

const say = (text) => set($("say"), text), alarm = (text) => set($("alarm"), text);
const now = () => Date.now() + (stream?.clockSkew ?? 0);

// --- in and out

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  set($("login-error"), "");
  const given = new Access($("key").value.trim(), { lookOnly: $("look-only").checked });
  if (given.isOperator) set($("login-error"), "This is an operator's key: it belongs on the page for operators, below.");
  else logIn(given);
});

function logIn(given) {
  const tried = stream, made = new Stream(given, { since: `${WINDOW_SECONDS}s` });
  [access, stream] = [given, made];
  tried?.close();
  const on = (type, heard) => made.addEventListener(type, ({ detail }) => made === stream && heard(detail));
  on("state", changed);
  on("began", began);
  on("event", took);
  on("gap", missed);
  on("clear", () => store.clear());
  on("measured", () => stream.state === "live" && showState());
  on("updated", () => store.note("the key reaches other inboxes now"));
  on("draining", () => store.note("the broker restarts; this page comes back by itself"));
  webhooks = new Webhooks({ pane: $("pane-webhooks"), access, say: told });
  stream.open();
}

$("leave").addEventListener("click", () => {
  stream.close();
  access.forget();
  location.reload();
});
addEventListener("online", () => stream?.hurry());

// --- what the connection does

let how = { state: "opening" };

function changed(detail) {
  const before = how.state;
  how = { ...detail, at: Date.now() };
  if (!stream.ready) {
    const hint = detail.refusal?.code === "connection_limit" ? " “Look only” needs no place of an agent." : "";
    const again = detail.state === "lost" ? `, again in ${duration(detail.wait)}` : "";
    set($("login-error"), detail.why ? `${detail.why}${again}${hint}` : "");
    return;
  }
  if (detail.state === "paused") pausedAt = Date.now();
  if (detail.state === "live") pausedAt = null;
  set($("pause-word"), detail.state === "paused" ? "Resume" : "Pause");
  $("pause").disabled = !["live", "paused"].includes(detail.state);
  showState();
  if (detail.state === "lost" && before !== "opening") alarm(`Connection lost: ${detail.why}`);
  else if (detail.state === "closed") alarm(`Closed: ${detail.why}`);
  else if (detail.state === "live" || detail.state === "paused") say(detail.state);
}

function showState() {
  $("state").dataset.state = how.state;
  const words = {
    opening: () => "opening",
    live: () => `live${stream.rtt === null ? "" : ` · ${duration(stream.rtt)}`}${stream.transport === "sse" ? " · event stream" : ""}`,
    paused: () => {
      const left = stream.ready.replay_seconds * 1_000 - (Date.now() - pausedAt);
      return left > 0 ? `paused · kept for up to ${duration(left)}` : "paused · the oldest are being dropped";
    },
    lost: () => `${how.why}, again in ${duration(Math.max(0, how.at + how.wait - Date.now()))}`,
    closed: () => how.why,
  };
  set($("state-text"), words[how.state]());
}

function began({ why, replay }) {
  if (why === "opened") opened();
  toReplay = replay?.count ?? 0;
  pauseAfter = Infinity;
  const events = many(toReplay, "event");
  if (why === "back") {
    fitting = null;
    store.note(`back again: ${events} that came meanwhile`);
  }
  if (why === "resumed") store.note(`resumed: ${events} that came meanwhile`);
  if (why === "opened" || (why === "replayed" && fitting)) fit(events);
  else if (why === "replayed" && toReplay > KEPT.rows) {
    pauseAfter = KEPT.rows;
    store.note(`replay of ${events}: this page keeps ${count(KEPT.rows)} and pauses there`);
  } else if (why === "replayed") store.note(`replay of ${events}`);
}

/**
 * Begin with the whole window or, where that is far more than is kept, with so much of its end as fits. What came since
 * the page was opened is always among it; where all the rest came at once, before that, all of it is taken in.
 */
function fit(events) {
  const { seconds, longer, isLast } = fitting ?? { seconds: WINDOW_SECONDS };
  const isTooLong = toReplay > 2 * KEPT.rows && seconds > 1;
  if (isTooLong && !isLast) fitting = { seconds: shorter(seconds), longer: seconds };
  else if (!toReplay && longer) fitting = { seconds: longer, isLast: true };
  else fitting = null;
  if (fitting) replayFrom(`${fitting.seconds + Math.ceil((performance.now() - openedAt) / 1_000)}s`);
  else if (toReplay) store.note(`the window: ${events}`);
}
const shorter = (seconds) => Math.max(1, Math.floor(Math.min(0.5, KEPT.rows / toReplay) * seconds));

function opened() {
  const { account_id, replay_seconds } = stream.ready;
  openedAt = performance.now();
  $("key").value = "";
  $("login").hidden = true;
  $("app").hidden = false;
  set($("account"), account_id);
  document.title = `${account_id} · inboxes`;
  const backs = BACKS.filter(([seconds]) => seconds <= Math.max(replay_seconds, 30));
  $("since").replaceChildren(
    ...backs.map(([seconds, words]) => el("option", { value: `${seconds}s`, selected: seconds === 60 }, words)),
    el("option", { value: "" }, "a time …"),
  );
  if (access.lookOnly) {
    for (const part of $("send").elements) part.disabled = true;
    $("send").prepend(el("p", { class: "hint" }, "This page only looks: log in without that to publish and to give commands."));
  }
  $("feed").focus();
}

// --- what comes

function took({ frame, text }) {
  const live = toReplay === 0;
  if (!live) toReplay--;
  const before = store.newestAt;
  const row = store.add(frame, text, now(), { live });
  if (!row) return;
  if (afterGap) hatch(before ?? row.at, row.at);
  afterGap = false;
  if (live && row.watched) notify(row);
  if (--pauseAfter === 0) pauseOrResume();
}

function missed({ count: number, asked }) {
  const events = number === null ? "an unknown number of events" : many(number, "event");
  if (asked) {
    store.note(`the window starts here: ${events} of the time asked for are no longer kept`);
    return;
  }
  store.gap(number, events);
  alarm(`Gap: ${events} missed`);
  afterGap = true; // where it ends is known when the next event comes
}

function hatch(from, to) {
  const last = Math.floor(to / BUCKET_MS) - 1;
  const first = Math.max(last - BUCKETS, Math.floor(from / BUCKET_MS) + 1);
  for (let slot = Math.min(first, last); slot <= last; slot++) {
    const bucket = store.bucket(slot, now());
    if (bucket) bucket.missed = true;
  }
}

// --- what is watched for

function watch() {
  store.words = $("words").value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean).slice(0, 50);
}
$("words").value = recall(WORDS) ?? $("words").value;
watch();
$("words").addEventListener("input", () => {
  watch();
  keep(WORDS, $("words").value);
});
$("watch").addEventListener("submit", (event) => event.preventDefault());
$("notify").addEventListener("change", async ({ target }) => {
  if (!target.checked) return;
  const answer = "Notification" in globalThis ? await Notification.requestPermission() : "denied";
  if (answer === "granted") return;
  target.checked = false;
  told("This browser does not allow notifications here");
});

let notifiedAt = -Infinity;
function notify(row) {
  if (!$("notify").checked || Date.now() - notifiedAt < NOTIFY_MS) return;
  notifiedAt = Date.now();
  let note;
  try {
    note = new Notification(visible(row.head), { body: visible(`${row.rest} · ${row.inbox}`), tag: row.id });
  } catch {
    return; // phones have them for service workers only
  }
  note.onclick = () => {
    focus();
    feed.select(row, { focus: true });
  };
}

// --- feed, filters, sides

const feed = new Feed({ box: $("feed"), space: $("rows"), newer: $("newer"), store, filter, chosen: inspect });
let numbersAt = 0; // 0: they are due

function refilter() {
  $("clear").hidden = filter.isOpen;
  feed.refilter();
  numbersAt = 0;
}
$("search").addEventListener("input", ({ target }) => {
  filter.text = target.value.trim().toLowerCase();
  refilter();
});
$("clear").addEventListener("click", () => {
  filter.clear();
  $("search").value = "";
  refilter();
});
$("find-inbox").addEventListener("input", () => (numbersAt = 0));

const switches = new Switches({ store, filter, changed: refilter });
const alerts = new Alerts({ store, chosen: lookAt });

function lookAt({ id, number }) {
  const row = store.rows.findLast((each) => (id ? each.id === id : each.number === number));
  if (!row) {
    told("This page does not keep that event any more");
    return;
  }
  feed.reveal(row);
  if (!row.note) feed.select(row, { focus: true });
}
$("n-missed").addEventListener("click", () => {
  const row = store.rows.findLast(({ kind, note }) => note && kind === "gap");
  if (row) lookAt(row);
});

// --- details

const tabs = ["alerts", "event", "send", "webhooks"];

function openTab(name, { focus = false } = {}) {
  for (const each of tabs) {
    const isOpen = each === name;
    $(`tab-${each}`).setAttribute("aria-selected", isOpen);
    $(`tab-${each}`).tabIndex = isOpen ? 0 : -1;
    $(`pane-${each}`).hidden = !isOpen;
  }
  if (name === "send") sendForm.fill();
  if (name === "webhooks") webhooks.show();
  else webhooks?.hide();
  if (focus) $(`pane-${name}`).focus();
  numbersAt = 0;
}
for (const name of tabs) {
  $(`tab-${name}`).addEventListener("click", () => openTab(name));
  $(`tab-${name}`).addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(name) + step + tabs.length) % tabs.length];
    openTab(next);
    $(`tab-${next}`).focus();
  });
}

/** Say it, and show it for a moment. */
function told(text) {
  say(text);
  store.note(text);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // by plain HTTP from another machine there is none
    say("Copied");
  } catch {
    told("The browser did not let it be copied");
  }
}

function inspect(row, focus) {
  const does = {
    mayWrite: !access.lookOnly,
    copy,
    compose: (command) => {
      view("details");
      openTab("send");
      sendForm.compose(command);
    },
    only: (inbox) => {
      filter.inbox = inbox;
      refilter();
    },
  };
  $("pane-event").replaceChildren(...eventView(row, does));
  $("pane-event").scrollTop = 0;
  openTab("event", { focus });
  if (focus || matchMedia("(max-width: 1100px)").matches) view("details");
}

const sendForm = new SendForm({
  command: (command) => stream.command(command),
  inbox: () => filter.inbox ?? [...store.inboxes.keys()].find((name) => name !== ACCOUNT) ?? "inbox_abc123",
});

// --- pause, resume, replay

async function attempt(act) {
  try {
    await act();
  } catch (error) {
    told(`That failed: ${error.message}`);
  }
}

function pauseOrResume() {
  return attempt(async () => {
    if (stream.state === "paused") await stream.resume();
    else if (stream.state === "live") {
      await stream.pause();
      toReplay = 0;
      store.note("paused: the broker keeps what comes");
    }
  });
}
$("pause").addEventListener("click", pauseOrResume);

function replayFrom(since) {
  return attempt(async () => {
    if (!["live", "paused"].includes(stream.state)) throw new Error("there is no connection");
    await stream.replay(since);
    feed.top();
  });
}
$("since").addEventListener("change", ({ target }) => {
  $("since-time").hidden = $("replay-hint").hidden = true;
  (target.value ? $("replay-hint") : $("since-time")).hidden = false;
});
$("replay").addEventListener("submit", (event) => {
  event.preventDefault();
  const at = new Date($("since-time").value);
  if ($("since").value) replayFrom($("since").value);
  else if (!Number.isNaN(at.getTime())) replayFrom(at.toISOString());
});
const timeline = new Timeline($("timeline"), store, (seconds) => replayFrom(`${seconds}s`));

// --- keys, theme, views

function pressed(event) {
  const { key, target } = event;
  if (target.matches("input, textarea, select")) {
    if (key === "Escape") target.blur();
    return;
  }
  if ($("app").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "/") {
    event.preventDefault();
    view("middle");
    $("search").focus();
  } else if (key === "p") $("pause").click();
  else if (key === "j" || key === "k") {
    $("feed").focus();
    feed.step(key);
  } else if (key === "Escape") {
    feed.select(null);
    openTab("alerts");
    view("middle");
    $("feed").focus();
  }
}
document.addEventListener("keydown", pressed);
themed($("theme"), () => timeline.restyle());

const views = document.querySelectorAll(".bottom button");
function view(name) {
  $("app").dataset.view = name;
  for (const button of views) button.setAttribute("aria-pressed", button.dataset.view === name);
}
for (const button of views) button.addEventListener("click", () => view(button.dataset.view));

// --- one clock for all that moves: rows ten times a second, numbers twice, nothing while nobody looks

function tick(at) {
  setTimeout(() => requestAnimationFrame(tick), DRAW_MS);
  if ($("app").hidden) return;
  feed.draw();
  if (numbersAt && at - numbersAt < NUMBERS_MS) return;
  numbersAt = at;
  if (stream.state === "paused") {
    store.bucket(Math.floor(now() / BUCKET_MS), now()).paused = true;
  }
  if (stream.state !== "live") showState();
  timeline.draw(now());
  switches.draw(now());
  alerts.draw();
  drawNumbers();
}

function drawNumbers() {
  const rate = store.rate();
  set($("n-rate"), rate < 10 ? rate.toFixed(1) : count(Math.round(rate)));
  set($("n-seen"), count(store.seen));
  const [p50, p99] = store.ages(0.5, 0.99);
  set($("n-p50"), duration(p50) || "–");
  set($("n-p99"), duration(p99) || "–");
  $("missed").hidden = store.missed === 0;
  set($("n-missed"), store.missed === null ? "?" : count(store.missed));
  set($("shown"), `${count(feed.shown)} of ${count(store.rows.length)} kept`);
  $("empty").hidden = feed.shown > 0;
  const nothing = store.rows.length ? "Nothing matches these filters." : "Nothing has come yet. Publish a test event under “Send”.";
  if (!feed.shown) set($("empty"), nothing);
}
requestAnimationFrame(tick);
