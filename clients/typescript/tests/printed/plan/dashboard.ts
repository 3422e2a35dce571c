const ws = new DaimonWebSocket({ apiKey: accountApiKey });

// Subscribe to all inboxes
ws.send({
  action: 'subscribe',
  inbox_ids: ['inbox_1', 'inbox_2', 'inbox_3', 'inbox_4']
});

ws.on('message.received', (message) => {
  // Update dashboard in real-time
  updateDashboard(message.inbox_id, message);
});

ws.on('message.bounced', (bounce) => {
  // Show alert for bounced emails
  showAlert(`Bounce: ${bounce.recipient}`);
});

await ws.connect();
