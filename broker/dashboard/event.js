/** One event, whole: its mail as text, its ids, its payload; to copy, to publish again, to answer. */
import { count, duration, el, json, parseExactly, visible } from "./dom.js";
import { ACCOUNT, GLYPHS, mailOf } from "./store.js";

const MOST_OF_A_BODY = 20_000;

/** What stands in a mail, if it is text; the beginning of it. */
const written = (value, most = 1_000) => (typeof value === "string" ? visible(value.slice(0, most).replaceAll("\r\n", "\n")) : "");

function mailBox(mail) {
  const to = [mail.to ?? []].flat().slice(0, 50).map((name) => written(name)).filter(Boolean).join(", ");
  const labels = (Array.isArray(mail.labels) ? mail.labels.slice(0, 50) : []).map((label) => el("span", {}, written(label, 100)));
  const long = typeof mail.body === "string" && mail.body.length > MOST_OF_A_BODY;
  const body = `${written(mail.body, MOST_OF_A_BODY)}${long ? "\n…" : ""}`;
  return el("div", { class: "mail" },
    el("p", { class: "subject" }, written(mail.subject)),
    el("p", { class: "hint" }, el("bdi", {}, written(mail.from)), to ? " → " : "", el("bdi", {}, to)),
    labels.length ? el("p", { class: "labels" }, ...labels) : null,
    el("p", { class: "body" }, body),
  );
}

/** The elements that show a row's event. `does` has `copy`, `compose`, `only`, and whether one `mayWrite`. */
export function eventView(row, does) {
  const event = parseExactly(row.raw);
  const mail = mailOf(event.payload);
  const again = () => {
    const { type, inbox_id, payload } = event;
    does.compose({ action: "publish", events: [{ type, inbox_id, payload }] });
  };
  const answer = () => does.compose({
    action: "send_email",
    inbox_id: event.inbox_id,
    to: mail.from,
    subject: `Re: ${mail.subject ?? ""}`,
    body: "",
    in_reply_to: mail.message_id,
  });
  const facts = {
    inbox: event.inbox_id ?? ACCOUNT,
    event_id: event.event_id,
    cursor: event.cursor,
    created: event.created_at,
    "here after": row.age === null ? "replayed" : duration(row.age),
    size: `${count(row.raw.length)} characters`,
  };
  return [
    el("h2", {}, el("span", { class: `glyph ${row.kind}`, "aria-hidden": "true" }, GLYPHS[row.kind]), ` ${event.type}`),
    mail && mailBox(mail),
    el("dl", { class: "facts" }, ...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("div", { class: "buttons" },
      el("button", { onclick: () => does.copy(JSON.stringify(event, null, 2)) }, "Copy JSON"),
      el("button", { onclick: () => does.copy(event.event_id) }, "Copy event_id"),
      does.mayWrite ? el("button", { onclick: again }, "Publish again") : null,
      does.mayWrite && mail && event.inbox_id ? el("button", { onclick: answer }, "Answer") : null,
      event.inbox_id ? el("button", { onclick: () => does.only(event.inbox_id) }, "Only this inbox") : null,
    ),
    json(event.payload),
  ].filter(Boolean);
}
