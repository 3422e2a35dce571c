const ws = new DaimonWebSocket({ apiKey: inboxApiKey });

ws.on('message.received', (message) => {
  // Check if email is urgent
  if (message.subject.includes('[URGENT]') || message.labels.includes('priority')) {
    // Send push notification to operator
    sendPushNotification({
      title: 'Urgent Email',
      body: `From: ${message.from} - ${message.subject}`
    });
  }
});

await ws.connect();
