// Subscribe to multiple inboxes
ws.send(JSON.stringify({
  action: 'subscribe',
  inbox_ids: ['inbox_abc123', 'inbox_def456', 'inbox_ghi789']
}));

// Receive events from all subscribed inboxes
ws.on('message', (data) => {
  const event = JSON.parse(data.toString());

  console.log(`Event from ${event.inbox_id}: ${event.type}`);
});
