/** The account's webhooks: endpoints and how they do, what became of events, tests, and sending again. */
import { clock, duration, el, visible } from "./dom.js";

const EVERY_MS = 5_000;
const PAGE = 20;
const STATES = ["", "waiting", "sending", "delivered", "acked", "dead"];
const NO_SCOPE = "This key has not the scope `webhooks`, so it may not see to them.";

export class Webhooks {
  #pane;
  #access;
  #say;
  #timer;
  #open = null;
  #state = "";
  #asked = 0;
  #failed = false;

  /** `say(text)` tells what became of what somebody did. */
  constructor({ pane, access, say }) {
    Object.assign(this, { visible: false });
    this.#pane = pane;
    this.#access = access;
    this.#say = say;
  }

  /** Look at them, and again while they are shown. */
  show() {
    this.visible = true;
    this.#look();
  }

  hide() {
    this.visible = false;
    clearTimeout(this.#timer);
  }

  async #look() {
    clearTimeout(this.#timer);
    const asked = ++this.#asked;
    const shown = await this.#read();
    if (asked !== this.#asked || !this.visible) return;
    if (!this.#pane.querySelector("button:active, select:focus")) this.#pane.replaceChildren(...shown);
    if (!this.#failed) this.#timer = setTimeout(() => this.#look(), EVERY_MS);
  }

  async #read() {
    this.#failed = false;
    try {
      const { webhooks } = await this.#access.ask("GET", "v1/webhooks");
      if (!webhooks.length) return [el("p", { class: "hint" }, "No endpoints yet: `broker webhooks add URL` makes one.")];
      if (!webhooks.some(({ webhook_id }) => webhook_id === this.#open)) this.#open = webhooks[0].webhook_id;
      const page = await this.#access.ask("GET", `v1/webhooks/${this.#open}/deliveries?${this.#query()}`);
      return webhooks.map((hook) => this.#hook(hook, hook.webhook_id === this.#open ? page.deliveries : null));
    } catch (error) {
      this.#failed = true; // until somebody looks again
      const why = error.status === 403 && !this.#access.isToken ? NO_SCOPE : error.message;
      return [el("p", { class: "hint" }, why)];
    }
  }

  #query() {
    return new URLSearchParams({ limit: PAGE, ...(this.#state ? { state: this.#state } : {}) });
  }

  #hook(hook, deliveries) {
    const { webhook_id, url, status, disabled_because, failing_since, mode, order, configured } = hook;
    const how = status === "disabled" ? `disabled: ${disabled_because}` : failing_since ? `failing since ${clock(Date.parse(failing_since))}` : status;
    const facts = { state: how, events: this.#whichOf(hook), posts: `${mode}${order === "inbox" ? ", in order by inbox" : ""}` };
    const isBad = status === "disabled" || failing_since;
    const other = status === "active" ? "paused" : "active";
    const buttons = [
      el("button", { onclick: () => this.#try(webhook_id) }, "Test"),
      configured ? null : el("button", { onclick: () => this.#set(webhook_id, other) }, other === "paused" ? "Pause posts" : "Go on"),
      el("button", { onclick: () => this.#resend(webhook_id, { state: "dead" }) }, "Send the dead again"),
      deliveries ? null : el("button", { onclick: () => this.#choose(webhook_id) }, "Deliveries"),
    ];
    return el("section", { class: "hook", "aria-label": webhook_id },
      el("h3", {}, webhook_id, configured ? " (configured)" : ""),
      el("p", { class: "url" }, visible(url)),
      el("dl", { class: "facts" }, ...Object.entries(facts).flatMap(([name, value]) => [
        el("dt", {}, name), el("dd", { class: name === "state" && isBad ? "bad" : "" }, value)])),
      this.#access.lookOnly ? null : el("div", { class: "buttons" }, ...buttons),
      deliveries && this.#deliveries(webhook_id, deliveries),
    );
  }

  #whichOf({ inbox_ids, event_types }) {
    const inboxes = inbox_ids.includes("*") ? "all inboxes" : inbox_ids.slice(0, 5).join(", ");
    return `${inboxes}${inbox_ids.length > 5 ? " …" : ""}; ${event_types ? event_types.slice(0, 5).join(", ") : "all types"}`;
  }

  #deliveries(webhookId, deliveries) {
    const choose = ({ target }) => {
      this.#state = target.value;
      target.blur();
      this.#look();
    };
    const options = STATES.map((state) => el("option", { value: state, selected: state === this.#state }, state || "all"));
    const again = (id) => el("button", { onclick: () => this.#resend(webhookId, { event_ids: [id] }) }, "Again");
    const rows = deliveries.map(({ event_id, type, state, attempts, last, due_at }) => el("tr", {},
      el("td", { class: state }, state, due_at ? ` ${clock(Date.parse(due_at))}` : ""),
      el("td", {}, type, el("br"), el("span", { class: "hint" }, event_id)),
      el("td", {}, last ? `${last.status ?? last.error} ${duration(last.duration_ms)}` : "", attempts > 1 ? `, attempt ${attempts}` : ""),
      el("td", {}, this.#access.lookOnly || state === "sending" ? "" : again(event_id)),
    ));
    const heads = ["state", "event", "answer", ""].map((name) => (name ? el("th", { scope: "col" }, name) : el("td")));
    return el("div", {},
      el("label", { class: "check" }, "Deliveries ", el("select", { onchange: choose }, ...options)),
      rows.length
        ? el("table", { class: "deliveries" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows))
        : el("p", { class: "hint" }, "None."),
    );
  }

  // --- what may be done

  #choose(webhookId) {
    this.#open = webhookId;
    this.#look();
  }

  async #do(act) {
    try {
      this.#say(await act());
    } catch (error) {
      this.#say(error.message);
    }
    this.#look();
  }

  #try(webhookId) {
    return this.#do(async () => {
      const { status, error, duration_ms } = await this.#access.ask("POST", `v1/webhooks/${webhookId}/test`);
      return `The test was answered with ${status ?? error} after ${duration(duration_ms)}`;
    });
  }

  #set(webhookId, status) {
    return this.#do(async () => {
      await this.#access.ask("PATCH", `v1/webhooks/${webhookId}`, { status });
      return `${webhookId} is ${status}`;
    });
  }

  #resend(webhookId, which) {
    return this.#do(async () => {
      const { resent } = await this.#access.ask("POST", `v1/webhooks/${webhookId}/resend`, which);
      return `Sent again: ${resent}`;
    });
  }
}
