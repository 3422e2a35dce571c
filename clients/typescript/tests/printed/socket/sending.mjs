// Mark message as read
ws.send(JSON.stringify({
  action: 'mark_as_read',
  message_id: 'msg_abc123'
}));

// Send an email
ws.send(JSON.stringify({
  action: 'send_email',
  inbox_id: 'inbox_abc123',
  to: 'user@example.com',
  subject: 'Hello',
  body: 'Message from agent'
}));
