/** What a page asks the broker for, with the key that somebody typed. */

const HOME = new URL("..", import.meta.url); // the broker, wherever a proxy has put it

/** The broker's refusal, in its own words. */
export class Refusal extends Error {
  constructor(status, { code = "unknown", message = `the broker answered ${status}`, retry_after_ms } = {}, retryAfter) {
    super(message);
    Object.assign(this, { status, code, retryAfterMs: retry_after_ms ?? (retryAfter ? retryAfter * 1_000 : null) });
  }
}

/** A key: in this one private field, in no URL and no storage, and gone with the page. */
export class Access {
  #key;
  /** Whether what the key opens may only be read. */
  lookOnly;

  constructor(key, { lookOnly = false } = {}) {
    this.#key = key;
    this.lookOnly = lookOnly;
  }

  get isToken() {
    return this.#key.startsWith("wst_");
  }

  get isOperator() {
    return this.#key.startsWith("dm_operator_");
  }

  /** Ask, and return `result`. Raises `Refusal`, and `TypeError` if nobody answers. */
  async ask(method, path, body, signal) {
    const answer = await this.open(path, { method, body, signal });
    return (await answer.json()).result;
  }

  /** Ask, and return the whole `Response`, whose body may go on for ever. Raises as `ask` does. */
  async open(path, { method = "GET", body, signal, token = this.#key } = {}) {
    const headers = { Authorization: `Bearer ${token}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const content = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
    const answer = await fetch(new URL(path, HOME), { method, headers, body: content, signal, cache: "no-store" });
    if (answer.ok) return answer;
    const { error } = await answer.json().catch(() => ({}));
    throw new Refusal(answer.status, error, Number(answer.headers.get("Retry-After")));
  }

  /** A token that opens one stream: of this key, or less. */
  async token() {
    if (this.isToken) return this.#key;
    const narrowed = this.lookOnly ? { scopes: ["subscribe"] } : {};
    return (await this.ask("POST", "v1/websocket/token", narrowed)).token;
  }

  /** Open the stream. The token is offered as a subprotocol: in no URL, so in no log and no console. */
  webSocket(token, query) {
    const url = new URL(`v1/stream?${query}`, HOME);
    url.protocol = url.protocol.replace("http", "ws");
    return new WebSocket(url, ["daimon.v1", `bearer.${token}`]);
  }

  forget() {
    this.#key = "";
  }
}

/** The `data` of each event of an event stream, as it comes. Ends with the answer. */
export async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const lines = rest.slice(0, end).split("\n");
        rest = rest.slice(end + 2);
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
