const ws = new WebSocket(`wss://ws.daimon.email/v1/stream?key=${apiKey}`);
