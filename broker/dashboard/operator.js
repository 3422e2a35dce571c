/** The page of operators: logs in, watches the broker, and wires what it tells to what is seen. */
import { Access, Refusal, eventsOf } from "./access.js";
import { Chart } from "./charts.js";
import { ConnectionView } from "./connection.js";
import { $, bytes, count, duration, set, themed, visible } from "./dom.js";
import { ratesBetween } from "./figures.js";
import { Panels, Tree, rate } from "./panels.js";
import { Table } from "./table.js";

const WAITS_MS = [1_000, 2_000, 5_000, 10_000];
const SILENT_MS = 10_000;
const SEARCH_MS = 250;
const TASKS_MS = 5_000;

let access, view, table, tasks, panels, charts;
/** The last snapshot, and how far the broker's clock is before ours. */
let last = null, skew = 0;
let watching = null;
let over = true;

const alarm = (text) => set($("alarm"), text);
const now = () => Date.now() + skew;

// --- in and out

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  set($("login-error"), "");
  const given = new Access($("key").value.trim());
  if (given.isOperator) logIn(given);
  else set($("login-error"), "This is no operator's key: what accounts have belongs on the page for accounts, below.");
});

async function logIn(given) {
  access = given;
  over = false;
  for (let tries = 0; !over; ) {
    const why = await watch(() => (tries = 0));
    if (over) return;
    const wait = WAITS_MS[Math.min(tries++, WAITS_MS.length - 1)] * (0.75 + Math.random() / 2);
    if ($("app").hidden) {
      over = true;
      set($("login-error"), why);
      return;
    }
    lost(`${why}, again in ${duration(wait)}`);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** Watch until that ends; returns why. `told` is called with each snapshot. */
async function watch(told) {
  watching = new AbortController();
  // A connection whose network is gone says nothing: the broker tells of itself each second.
  let silence = setTimeout(() => watching.abort(), SILENT_MS);
  try {
    const answer = await access.open("v1/operator/live?every=1", { signal: watching.signal });
    for await (const data of eventsOf(answer)) {
      clearTimeout(silence);
      silence = setTimeout(() => watching.abort(), SILENT_MS);
      told();
      show(JSON.parse(data));
    }
    return last?.draining ? "the broker restarts" : "the connection ended";
  } catch (error) {
    if (!(error instanceof Refusal)) return "the broker does not answer";
    if ([401, 403, 404].includes(error.status) && !$("app").hidden) end(error.message);
    return error.message;
  } finally {
    clearTimeout(silence);
  }
}

/** The key is gone: there is nothing to come back with. */
function end(why) {
  over = true;
  table.stop();
  $("state").dataset.state = "closed";
  set($("state-text"), `closed: ${why}`);
  alarm(`Closed: ${why}`);
}

function lost(why) {
  if ($("state").dataset.state !== "lost") alarm(`Connection lost: ${why}`);
  $("state").dataset.state = "lost";
  set($("state-text"), why);
  last = null;
  charts.in.push(null);
  charts.out.push(null);
  charts.delay.push(null, null);
}

$("leave").addEventListener("click", () => {
  over = true;
  watching?.abort();
  access.forget();
  location.reload();
});

// --- what the broker tells of itself

function began() {
  $("key").value = "";
  $("login").hidden = true;
  $("app").hidden = false;
  charts ??= { in: new Chart($("g-in"), "line"), out: new Chart($("g-out"), "line"), delay: new Chart($("g-delay"), "line", "line second") };
  panels ??= new Panels({ accounts: $("accounts"), closed: $("closed"), refused: $("refused") }, (id) => only(id));
  view ??= new ConnectionView(access, () => {
    table.selected = view.id;
    table.hurry();
    table.draw();
  });
  tasks ??= new Tree($("tasks"), (id) => look(id));
  table ??= new Table(
    { box: $("table"), head: $("head"), rows: $("rows"), empty: $("empty"), shown: $("shown") },
    { ask: (query) => access.ask("GET", `v1/operator/connections?${query}`), now, chosen: (row, focus) => look(row.connection_id, focus), failed },
  );
  table.start();
  $("table").focus();
  setInterval(showTasks, TASKS_MS);
  showTasks();
}

function look(id, focus = false) {
  table.selected = id;
  view.open(id, focus);
  if (innerWidth <= 1100) showView("aside");
  table.draw();
}

function failed(error) {
  if (error instanceof Refusal && error.status === 401 && !over) end(error.message);
}

function show(snapshot) {
  skew = Date.parse(snapshot.at) - Date.now();
  if ($("app").hidden) began();
  const rates = last && ratesBetween(last, snapshot);
  last = snapshot;
  if (rates) {
    charts.in.push(rates.published);
    charts.out.push(rates.delivered);
    charts.delay.push(rates.delayP99, rates.delayP50);
    showRates(rates);
  }
  $("state").dataset.state = snapshot.draining ? "paused" : "live";
  set($("state-text"), snapshot.draining ? "draining" : "serving");
  if (!document.hidden) draw(snapshot);
}

function showRates({ published, delivered, delayP50, delayP99, lagP99 }) {
  const ms = (seconds) => (seconds === null ? "–" : milliseconds(seconds));
  set($("c-in"), rate(published));
  set($("c-out"), rate(delivered));
  set($("c-delay"), `p50 ${ms(delayP50)} · p99 ${ms(delayP99)}`);
  $("c-delay").title = `The event loop is late by ${ms(lagP99)} at most, 99 times in 100`;
}

const milliseconds = (seconds) => (seconds < 0.01 ? `${(seconds * 1_000).toFixed(1)} ms` : duration(seconds * 1_000));

function draw(snapshot) {
  const { connections, counters, window } = snapshot;
  set($("version"), visible(snapshot.version));
  set($("n-total"), count(connections.total));
  $("n-total").title = `websocket ${count(connections.websocket)}, sse ${count(connections.sse)}, poll ${count(connections.poll)}`;
  set($("n-behind"), count(connections.behind + connections.paused));
  set($("n-held"), bytes(snapshot.held_bytes));
  set($("n-gaps"), count(counters.gaps));
  $("n-gaps").title = `${count(counters.gap_events)} events were missed in them`;
  $("gaps").classList.toggle("bad", counters.gaps > 0);
  set($("n-up"), duration(snapshot.uptime_seconds * 1_000));
  set($("c-window"), `${count(window.events)} events`);
  bar("b-bytes", window.bytes / window.max_bytes, `${bytes(window.bytes)} of ${bytes(window.max_bytes)}`);
  const disk = window.disk_seconds === null ? "" : `, ${duration(window.disk_seconds * 1_000)} on disk`;
  bar("b-seconds", window.shortest_seconds / window.seconds, `${count(Math.round(window.shortest_seconds))} of ${count(window.seconds)} s${disk}`);
  $("b-bytes").classList.toggle("full", window.bytes > 0.9 * window.max_bytes);
  $("b-seconds").classList.toggle("full", window.shortest_seconds < window.seconds);
  panels.show(snapshot);
  for (const chart of Object.values(charts)) chart.draw();
}

function bar(id, share, text) {
  $(id).value = Math.min(1, share);
  set($(`${id}-text`), text);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden || !last) return;
  draw(last);
  table.hurry();
});

async function showTasks() {
  if (over || document.hidden) return;
  try {
    const tree = await access.ask("GET", "debug/tasks?grouped=1");
    set($("n-tasks"), count(tree.tasks));
    tasks.showGroups(tree.root);
  } catch {
    // the top says so if the broker does not answer
  }
}

// --- which connections

let searching;
$("search").addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(() => table.want({ q: $("search").value.trim() }), SEARCH_MS);
});

for (const button of $("states").children) {
  button.addEventListener("click", () => {
    for (const other of $("states").children) other.setAttribute("aria-pressed", other === button);
    table.want({ state: button.dataset.only });
  });
}

function only(accountId) {
  $("account").hidden = !accountId;
  set($("account"), accountId ? `${visible(accountId)} ✕` : "");
  $("account").title = accountId ? "Show those of all accounts" : "";
  table.want({ account_id: accountId });
  if (accountId) showView("table");
}
$("account").addEventListener("click", () => {
  only("");
  $("table").focus();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("app").hidden) return;
  const typing = event.target.matches("input");
  if (event.key === "Escape" && view.id !== null) view.close();
  else if (event.key === "Escape" && typing) $("table").focus();
  else if (event.key === "/" && !typing) $("search").focus();
  else return;
  event.preventDefault();
});

// --- narrow screens

function showView(name) {
  $("app").dataset.view = name;
  for (const button of document.querySelectorAll(".bottom button")) button.setAttribute("aria-pressed", button.dataset.view === name);
}
for (const button of document.querySelectorAll(".bottom button")) button.addEventListener("click", () => showView(button.dataset.view));
themed($("theme"));
