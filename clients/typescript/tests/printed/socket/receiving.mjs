ws.on('message', (data) => {
  const event = JSON.parse(data.toString());

  if (event.type === 'message.received') {
    console.log('New message:', event.payload.message.subject);
    // Process the message immediately
  }
});
