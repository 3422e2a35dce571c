const ws = new DaimonWebSocket({
  apiKey: inboxApiKey,
  autoReconnect: true,
  reconnectDelay: 5000
});

ws.on('message.received', async (message) => {
  await processMessage(message);
});

await ws.connect();
