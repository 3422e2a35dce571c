package websocket_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/daimon-email/go-sdk/websocket"
)

func Example() {
	client := websocket.New(websocket.Config{
		APIKey:         "dm_live_…",
		AutoReconnect:  true,
		ReconnectDelay: 5 * time.Second,
	})
	client.OnMessageReceived(func(msg *websocket.Message) {
		fmt.Printf("New message: %s\n", msg.Subject)
	})
	log.Fatal(client.Connect())
}

func ExampleClient_On() {
	client := websocket.New(websocket.Config{AutoReconnect: true})
	client.On("message.received", func(ctx context.Context, event *websocket.Event) error {
		message := event.Message()
		_, err := client.SendEmail(ctx, websocket.Email{ // once for the event, however often it comes
			InboxID: message.InboxID, To: []string{message.From}, Subject: "Re: " + message.Subject, Body: "Thank you.",
		})
		return err
	})
	log.Fatal(client.Connect())
}

func ExampleClient_WaitFor() {
	ctx := context.Background()
	client := websocket.New(websocket.Config{AutoReconnect: true})
	go client.Run(ctx)
	found, err := client.WaitFor(ctx, websocket.Wait{
		Where: websocket.Where{Subject: "code"}, Since: "5m", Timeout: time.Minute, Extract: []string{"code"},
	})
	if errors.Is(err, websocket.ErrNoMatch) {
		fmt.Println("none came")
	} else if err == nil {
		fmt.Println(found.Codes)
	}
}

func ExampleClient_Queue() {
	ctx := context.Background()
	client := websocket.New(websocket.Config{AutoReconnect: true, InboxIDs: []string{}})
	go client.Run(ctx)
	err := client.Queue(ctx, "support", func(ctx context.Context, lease *websocket.Lease) error {
		_, err := client.MarkAsRead(ctx, lease.Message().Ref())
		return err
	})
	log.Fatal(err)
}

func ExampleVerify() {
	http.HandleFunc("/webhook", func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 0, 1<<20) // read from r.Body
		event, err := websocket.Verify(r.Header, body, "whsec_…")
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if !websocket.IsProcessed(event) {
			fmt.Println(event.Message().Subject)
			websocket.Processed(event)
		}
	})
}
