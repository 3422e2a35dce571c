ws.on('message', async (data) => {
  const event = JSON.parse(data.toString());

  // Pause receiving events while processing
  ws.pause();

  await processEvent(event);

  // Resume receiving events
  ws.resume();
});
