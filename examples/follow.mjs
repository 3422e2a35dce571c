// Follow inboxes from Node, and miss nothing: come back by cursor.
//
//     npm install ws
//     BROKER_KEY=dm_live_… node follow.mjs inbox_abc123

import WebSocket from "ws";

const url = (process.env.BROKER_URL ?? "http://127.0.0.1:8765").replace(/^http/, "ws");
const inboxIds = process.argv.slice(2).join(",") || "*";
const stayAway = new Set([1002, 1007, 1008, 4401, 4409]); // close codes after which coming back is of no use
const tryAgain = new Set([429, 500, 502, 503, 504]); // the same for refusals of HTTP: all others stay as they are

let cursor = "";
let failures = 0;

function connect() {
  // A name of its own: a client that lost its connection takes its slot over at once (docs/access.md).
  const query = new URLSearchParams({ inbox_ids: inboxIds, client_id: "follow", ...(cursor && { since: cursor }) });
  const headers = { Authorization: `Bearer ${process.env.BROKER_KEY}` };
  const ws = new WebSocket(`${url}/v1/stream?${query}`, { headers });
  let pause = Math.min(5000, 250 * 2 ** failures++) * (0.5 + Math.random() / 2);

  ws.on("message", (data) => {
    const frame = JSON.parse(data);
    failures = 0;
    if (frame.event_id) console.log(frame.type, frame.inbox_id, JSON.stringify(frame.payload));
    else if (frame.type === "replay.gap") console.log(`missed for good: ${frame.count}`);
    else if (frame.type === "server.draining") pause = frame.reconnect_after_ms;
    cursor = frame.to ?? frame.cursor ?? cursor; // last: only what was dealt with counts as seen
  });
  ws.on("unexpected-response", (request, response) => {
    if (!tryAgain.has(response.statusCode)) {
      console.error(`refused: ${response.statusCode}`);
      process.exit(1);
    }
    setTimeout(connect, 1000 * (response.headers["retry-after"] ?? pause / 1000));
    request.destroy();
  });
  ws.on("close", (code, reason) => {
    if (stayAway.has(code)) {
      console.error(`closed for good: ${code} ${reason}`);
      process.exit(1);
    }
    setTimeout(connect, pause);
  });
  ws.on("error", (error) => console.error(`no connection: ${error.message || error.code}`));
}

connect();
