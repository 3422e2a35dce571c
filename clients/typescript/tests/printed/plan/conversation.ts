const ws = new DaimonWebSocket({ apiKey: inboxApiKey });

ws.on('message.received', async (message) => {
  console.log(`New email from ${message.from}: ${message.subject}`);

  // Generate AI response
  const response = await generateResponse(message.body);

  // Send reply immediately (no HTTP round-trip)
  await ws.send({
    action: 'send_email',
    inbox_id: message.inbox_id,
    to: message.from,
    subject: `Re: ${message.subject}`,
    body: response,
    in_reply_to: message.message_id
  });

  console.log('Reply sent');
});

await ws.connect();
