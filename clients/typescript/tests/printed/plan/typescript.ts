import { DaimonWebSocket } from 'daimon-email';

const client = new DaimonWebSocket({
  apiKey: inboxApiKey,
  autoReconnect: true,
  reconnectDelay: 5000
});

client.on('message.received', (message) => {
  console.log('New message:', message.subject);
});

client.on('connected', () => {
  console.log('WebSocket connected');
});

client.on('disconnected', (reason) => {
  console.log('WebSocket disconnected:', reason);
});

await client.connect();
