// Keep existing webhook for reliability
// Add WebSocket for low-latency events

const ws = new DaimonWebSocket({ apiKey: inboxApiKey });

ws.on('message.received', (message) => {
  // Fast path: process via WebSocket
  processMessage(message);
});

// Webhook still processes events if WebSocket is down
app.post('/webhook', (req, res) => {
  const event = req.body;

  // Check if already processed via WebSocket
  if (!isProcessed(event.event_id)) {
    processMessage(event.message);
  }

  res.status(200).send('OK');
});
