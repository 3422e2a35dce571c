// Send email
ws.send(JSON.stringify({
  action: 'send_email',
  inbox_id: 'inbox_abc123',
  params: {
    to: 'user@example.com',
    subject: 'Hello',
    body: 'Message from agent'
  }
}));

// Listen for response
ws.on('message', (data) => {
  const response = JSON.parse(data.toString());

  if (response.request_id === 'send_email_123') {
    console.log('Email sent:', response.result.message_id);
  }
});
