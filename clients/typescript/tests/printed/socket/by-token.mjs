const ws = new WebSocket('wss://ws.daimon.email/v1/stream', {
  headers: {
    'Authorization': `Bearer ${connectionToken}`
  }
});
