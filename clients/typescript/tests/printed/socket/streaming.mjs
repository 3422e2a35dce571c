ws.on('message', (data) => {
  const event = JSON.parse(data.toString());

  switch (event.type) {
    case 'message.received':
      handleNewMessage(event.payload.message);
      break;

    case 'message.bounced':
      handleBounce(event.payload);
      break;

    case 'message.complaint':
      handleComplaint(event.payload);
      break;

    case 'account.upgraded':
      handleUpgrade(event.payload);
      break;
  }
});
