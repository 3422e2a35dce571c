import WebSocket from 'ws';

const ws = new WebSocket('wss://ws.daimon.email/v1/stream', {
  headers: {
    'Authorization': `Bearer ${inboxApiKey}`
  }
});

ws.on('open', () => {
  console.log('Connected to daimon.email WebSocket');
});
