/** Commands by hand: a form of JSON, and what the broker answered, with how long it took. */
import { $, duration, el, json, parseExactly, set, visible } from "./dom.js";

const ANSWERS_KEPT = 20;

function examples(inbox_id) {
  const message = {
    message_id: "msg_test",
    from: "me@example.com",
    to: ["agent@example.com"],
    subject: "A test from the dashboard",
    body: "Hello",
    labels: ["inbox"],
  };
  return {
    publish: { action: "publish", events: [{ type: "message.received", inbox_id, payload: { message } }] },
    send_email: { action: "send_email", inbox_id, to: "user@example.com", subject: "Hello", body: "From the dashboard" },
    mark_as_read: { action: "mark_as_read", inbox_id, message_id: "msg_abc123" },
    ping: { action: "ping" },
  };
}

export class SendForm {
  #command;
  #inbox;

  /** `command(object)` gives one and resolves with its answer; `inbox()` is one that an example may be about. */
  constructor({ command, inbox }) {
    this.#command = command;
    this.#inbox = inbox;
    $("action").addEventListener("change", () => this.#example());
    $("command").addEventListener("input", () => this.#check());
    $("command").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      $("send").requestSubmit();
    });
    $("send").addEventListener("submit", (event) => {
      event.preventDefault();
      const command = this.#check();
      if (command) this.#send(command);
    });
  }

  /** Have an example in the form, if nothing is. */
  fill() {
    if (!$("command").value) this.#example();
  }

  /** Have a command in the form, to be looked at and sent. */
  compose(command) {
    $("action").value = command.action;
    $("command").value = JSON.stringify(command, null, 2);
    this.#check();
    $("command").focus();
  }

  #example() {
    $("command").value = JSON.stringify(examples(this.#inbox())[$("action").value], null, 2);
    this.#check();
  }

  /** The command that stands in the form; null, and why is said, if it is none. */
  #check() {
    let command = null, problem = "";
    try {
      command = parseExactly($("command").value);
      if (typeof command?.action !== "string") problem = "A command is an object with an `action`.";
    } catch (error) {
      problem = error.message;
    }
    set($("command-error"), problem);
    $("command").toggleAttribute("aria-invalid", Boolean(problem));
    return problem ? null : command;
  }

  async #send(command) {
    let shown;
    try {
      const { action, result, error, ms } = await this.#command(command);
      const outcome = ` ${error ? visible(error.code) : "done"} after ${duration(ms)}`;
      shown = el("div", { class: `answer${error ? " failed" : ""}` }, el("p", {}, el("b", {}, action), outcome), json(error ?? result));
    } catch (error) {
      shown = el("div", { class: "answer failed" }, el("p", {}, error.message));
    }
    $("answers").prepend(shown);
    while ($("answers").children.length > ANSWERS_KEPT) $("answers").lastChild.remove();
  }
}
