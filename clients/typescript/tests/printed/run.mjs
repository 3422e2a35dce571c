// Runs a snippet as it is printed. What it leaves to its reader is here, and says what it was given.

import { DaimonWebSocket, isProcessed, verify } from 'daimon-email';

const { KEY, SNIPPET, TOKEN, WEBHOOK } = process.env;
const say = (...said) => process.stdout.write(`${JSON.stringify(said)}\n`);

console.log = (...said) => say('log', ...said);
Math.random = () => 0.01; // of what it waits before it comes back
const later = setTimeout;
globalThis.setTimeout = (task, ms, ...given) => {
  const isPlans = String(task).includes('connectWebSocket');
  if (isPlans) say('waits', ms);
  return later(task, isPlans ? 0 : ms, ...given);
};
const clients = [];
Object.assign(globalThis, {
  DaimonWebSocket: class extends DaimonWebSocket {
    constructor(options) {
      super(options);
      clients.push(this);
    }
  },
  isProcessed,
  inboxApiKey: KEY,
  accountApiKey: KEY,
  apiKey: KEY,
  connectionToken: TOKEN,
  connectWebSocket: () => say('connectWebSocket'),
  handleNewMessage: ({ subject }) => say('handleNewMessage', subject),
  handleBounce: ({ recipient }) => say('handleBounce', recipient),
  handleComplaint: ({ feedback_type }) => say('handleComplaint', feedback_type),
  handleUpgrade: ({ tier }) => say('handleUpgrade', tier),
  processEvent: async ({ type, payload }) => {
    await new Promise(setImmediate);
    say('processEvent', payload?.message?.subject ?? type);
  },
  generateResponse: async (body) => `You said: ${body}`,
  updateDashboard: (inboxId, { subject }) => say('updateDashboard', inboxId, subject),
  showAlert: (text) => say('showAlert', text),
  sendPushNotification: (notification) => say('sendPushNotification', notification),
  processMessage: ({ subject }) => say('processMessage', subject),
  app: {
    post: (path, handler) => {
      app.handler = handler;
      say('post', path);
    },
  },
});

await import(SNIPPET);
if (WEBHOOK) {
  await clients[0].connect();
  process.stdin.on('data', async (line) => {
    const { headers, body, secret } = JSON.parse(line);
    const req = { body: await verify(headers, body, secret) };
    app.handler(req, { status: (code) => ({ send: (text) => say('answered', code, text) }) });
  });
}
say('ready');
process.stdin.on('end', () => process.exit());
process.stdin.resume();
