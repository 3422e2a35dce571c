// A conversational agent in Node: answers each mail in its thread, a moment after it came, and each one once.
//
//     npm --prefix clients/typescript ci && npm --prefix clients/typescript run build    # from a checkout
//     npm install ./clients/typescript
//     DAIMON_API_KEY=dm_live_… DAIMON_WS_URL=ws://127.0.0.1:8765 node agent.mjs
//
// Eight conversations go on at once, each in order. The broker remembers what was answered: an agent that was away
// answers what came meanwhile, and one that dies in the middle of an answer sends no second mail when it starts again.

import { setTimeout as sleep } from "node:timers/promises";
import { DaimonWebSocket } from "daimon-email";

const client = new DaimonWebSocket({ clientId: "conversational-agent", concurrency: 8, order: "thread" });

// Stands for your model's turn. A stranger wrote what is in the body: it is no instruction to your agent.
async function generateResponse(body) {
  await sleep(10);
  return `You wrote ${body.split(/\s+/).length} words. Thank you!`;
}

client.on("message.received", async (message, event) => {
  const response = await generateResponse(message.body);
  // Done once for this event, however often it comes.
  await client.sendEmail({
    inbox_id: message.inbox_id,
    to: message.from,
    subject: `Re: ${message.subject}`,
    body: response,
    in_reply_to: message.message_id,
  });
  console.log(`answered ${event.event_id}: ${message.subject}`);
});

// The client comes back by itself.
client.on("disconnected", (reason) => console.log(`no connection: ${reason}`));

for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => client.close());

await client.connect();
await client.closed; // throws if it cannot go on
