// Server sends ping every 30 seconds
ws.on('ping', () => {
  ws.pong(); // Client responds with pong
});

// Client can also send pings
setInterval(() => {
  ws.ping();
}, 30000);
