// A webhook receiver on Node without a package: verifies what the broker posts, and does each event once.
//
//     WEBHOOK_SECRET=whsec_… STORE=./seen node receiver.mjs 9002
//
// STORE is where the ids of events stand that were dealt with; receiver.py, or a WebSocket client, may share it.

import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { mkdirSync, openSync, closeSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";

const SECRET = Buffer.from(process.env.WEBHOOK_SECRET.replace(/^whsec_/, ""), "base64");
const STORE = process.env.STORE ?? "seen";
const TOLERANCE_SECONDS = 300;

// Standard Webhooks: HMAC-SHA256 over id.timestamp.body; more than one signature while a secret is changed.
function verifies(headers, body) {
  const [id, timestamp, given] = ["id", "timestamp", "signature"].map((name) => headers[`webhook-${name}`] ?? "");
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_SECONDS) return false;
  const ours = createHmac("sha256", SECRET).update(`${id}.${timestamp}.`).update(body).digest();
  return given.split(" ").some((signature) => {
    const theirs = Buffer.from(signature.replace(/^v1,/, ""), "base64");
    return theirs.length === ours.length && timingSafeEqual(theirs, ours);
  });
}

// Whether nobody has dealt with this event yet; from here on somebody has. An id is unique in its inbox.
function firstTime(event) {
  const name = createHash("sha256").update(`${event.inbox_id ?? ""}\n${event.event_id}`).digest("hex");
  try {
    closeSync(openSync(join(STORE, name), "wx"));
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  }
}

mkdirSync(STORE, { recursive: true });
const server = createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const body = Buffer.concat(pieces);
  if (!verifies(request.headers, body)) return response.writeHead(403).end("not signed by our broker");
  const event = JSON.parse(body);
  if (event.type !== "webhook.test" && firstTime(event)) {
    console.log(`done ${event.event_id} ${event.type}`); // your work, or a queue for it
  }
  return response.writeHead(200).end("taken");
});
server.listen(Number(process.argv[2] ?? 9002), "127.0.0.1", () => console.log(`listening ${server.address().port}`));
