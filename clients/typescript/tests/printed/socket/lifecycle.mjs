ws.on('close', (code, reason) => {
  console.log(`WebSocket closed: ${code} ${reason}`);
  // Reconnect after 5 seconds
  setTimeout(() => connectWebSocket(), 5000);
});

ws.on('error', (error) => {
  console.error('WebSocket error:', error);
});
