// Package websocket is the client for daimon.email's event stream: events of your agents' inboxes as they happen, none
// missed over a lost connection, and commands the other way.
//
//	client := websocket.New(websocket.Config{AutoReconnect: true}) // DAIMON_API_KEY, from the environment
//	client.On("message.received", func(ctx context.Context, event *websocket.Event) error {
//		message := event.Message()
//		_, err := client.SendEmail(ctx, websocket.Email{
//			InboxID: message.InboxID, To: []string{message.From}, Subject: "Re: " + message.Subject, Body: "Thank you.",
//		})
//		return err
//	})
//	err := client.Run(ctx)
//
// Run runs the client until it is closed, its context is done, or it cannot go on. All methods may be called from any
// goroutine, before Run too: commands wait until there is a connection.
package websocket
