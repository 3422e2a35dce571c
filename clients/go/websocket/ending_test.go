package websocket

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

func TestClosedWhileAHandlerRunsThatOneEndsIsAcknowledgedAndGoodbyeIsSaid(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", func(ctx context.Context, event *Event) error {
			time.Sleep(5 * time.Second)
			got.add(event.EventID)
			return nil
		})
		ended := b.run(client)
		s := b.next()
		heard := s.hearing(well)
		s.say(mail(1))
		s.say(mail(2))
		synctest.Wait()
		began := time.Now()
		if err := client.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != 5*time.Second {
			t.Errorf("it waited %v", waited)
		}
		if err := ended(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		got.expect(t, "evt_1")
		if said := heard(); len(said) != 1 || said[0]["action"] != "ack" || said[0]["cursor"] != "c1" {
			t.Errorf("it said %v", said)
		}
		var gone *ConnectionEndedError
		if _, err := client.Ping(t.Context()); !errors.As(err, &gone) || gone.CloseCode != 1000 {
			t.Errorf("after it a command came to %v", err)
		}
		if err := client.Run(t.Context()); !errors.As(err, &gone) {
			t.Errorf("run again, it ended with %v", err)
		}
	})
}

func TestAClientThatEndsForGoodFinishesWhatIsAtWorkAndNoMore(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{AutoReconnect: true}), &recorded{}
		client.On("*", func(_ context.Context, event *Event) error {
			time.Sleep(5 * time.Second)
			got.add(event.EventID)
			return nil
		})
		client.OnDisconnected(func(string) {
			time.Sleep(10 * time.Second)
			got.add("disconnected")
		})
		ended := b.run(client)
		s := b.next()
		s.say(mail(1))
		s.say(mail(2))
		synctest.Wait()
		s.close(4401)
		_ = ended()
		if !slices.Equal(got.items, []string{"evt_1", "disconnected"}) {
			t.Errorf("when it had ended, handlers had got %q", got.items)
		}
	})
}

func TestItSaysGoodbye(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		s := b.next()
		heard := make(chan error, 1)
		go func() {
			_, _, err := s.conn.Read(context.Background())
			heard <- err
		}()
		_ = client.Close(t.Context())
		if err := <-heard; websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("it went with %v", err)
		}
	})
}

func TestCloseInAHandlerReturnsAtOnce(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.OnMessageReceived(func(message *Message) {
			if err := client.Close(message.Context()); err != nil {
				t.Error(err)
			}
			got.add(message.MessageID)
		})
		ended := b.run(client)
		s := b.next()
		heard := s.hearing(well)
		s.say(mail(1))
		if err := ended(); err != nil {
			t.Error(err)
		}
		got.expect(t, "msg_1")
		if !slices.Equal(actions(heard()), []string{"ack"}) {
			t.Errorf("it said %v", heard())
		}
	})
}

func TestCloseInWhoIsToldOfTheConnectionDoesNotWaitForItself(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.OnConnected(func() { _ = client.Close(context.Background()) })
		ended := b.run(client)
		began := time.Now()
		b.next().hearing(well)
		if err := ended(); err != nil || time.Since(began) > time.Second {
			t.Errorf("it ended with %v after %v", err, time.Since(began))
		}
	})
}

func TestAHandlerThatDoesNotReturnIsWaitedForThirtySeconds(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", func(ctx context.Context, _ *Event) error {
			<-ctx.Done()
			got.add("told")
			return ctx.Err()
		})
		ended := b.run(client)
		s := b.next()
		s.hearing(well)
		s.say(mail(1))
		synctest.Wait()
		began := time.Now()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := client.Close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it waited longer than it was to, and came to %v", err)
		}
		if err := ended(); err != nil || time.Since(began) < endTimeout || time.Since(began) > 2*endTimeout {
			t.Errorf("it ended with %v after %v", err, time.Since(began))
		}
		got.expect(t, "told")
	})
}

func TestWhenItsContextIsDoneItEndsInOrderAndMayBeRunAgain(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", func(ctx context.Context, event *Event) error {
			time.Sleep(time.Second / 2)
			got.add(event.EventID)
			return ctx.Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- client.Run(ctx) }()
		s := b.next()
		heard := s.hearing(well)
		s.say(mail(1))
		s.say(mail(2))
		synctest.Wait()
		if err := client.Run(t.Context()); err == nil {
			t.Error("it runs twice")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		got.expect(t, "evt_1")
		if !slices.Equal(actions(heard()), []string{"ack"}) {
			t.Errorf("it said %v", heard())
		}
		b.run(client)
		s = b.next()
		if s.query["since"] != "c1" {
			t.Errorf("it went on from %q", s.query["since"])
		}
		s.say(mail(2))
		time.Sleep(time.Second / 2)
		got.expect(t, "evt_1", "evt_2")
	})
}

func TestCloseWhileItEndsWaitsToo(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.On("*", func(context.Context, *Event) error {
			time.Sleep(5 * time.Second)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- client.Run(ctx) }()
		s := b.next()
		s.hearing(well)
		s.say(mail(1))
		synctest.Wait()
		cancel()
		synctest.Wait()
		began := time.Now()
		for range 2 {
			_ = client.Close(t.Context())
		}
		waited := time.Since(began)
		if err := <-done; err != nil || waited != 5*time.Second {
			t.Errorf("it waited %v, and ended with %v", waited, err)
		}
		var gone *ConnectionEndedError
		if err := client.Run(t.Context()); !errors.As(err, &gone) || gone.CloseCode != 1000 {
			t.Error("it was closed, and is run again")
		}
	})
}

func TestClosedBeforeItIsRunItIsNotRun(t *testing.T) {
	client := New(Config{APIKey: "dm_live_key", URL: "ws://localhost:1"})
	if err := client.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	subscribed := func(_ *Subscription, err error) error { return err }
	for _, err := range []error{
		client.Connect(),
		subscribed(client.Subscribe(t.Context(), []string{All})),
		subscribed(client.Unsubscribe(t.Context(), []string{"in_1"})),
	} {
		var gone *ConnectionEndedError
		if !errors.As(err, &gone) || gone.CloseCode != 1000 || !strings.Contains(gone.Message, "make another") {
			t.Errorf("it ended with %v", err)
		}
	}
}

func TestItEndsWhileItWaitsAndWhileItOpens(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		b.setDrops(true)
		client := b.client(Config{AutoReconnect: true, ReconnectDelay: time.Hour})
		ended := b.run(client)
		time.Sleep(time.Minute)
		_ = client.Close(t.Context())
		if err := ended(); err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{Token: func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}})
		failed := &recorded{}
		client.OnError(func(err error) { failed.add(err.Error()) })
		ended := b.run(client)
		synctest.Wait()
		_ = client.Close(t.Context())
		if err := ended(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		failed.expect(t)
	})
}

func TestNoGoroutineIsLeftBehind(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		_ = conn.Write(r.Context(), websocket.MessageText, []byte(`{"type":"connection.ready","cursor":"c0"}`))
		_ = conn.Write(r.Context(), websocket.MessageText, []byte(
			`{"type":"message.received","event_id":"evt_1","cursor":"c1","payload":{"message":{}}}`))
		for {
			_, text, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			_, id, _ := strings.Cut(string(text), `"request_id":"`)
			id, _, _ = strings.Cut(id, `"`)
			_ = conn.Write(r.Context(), websocket.MessageText, fmt.Appendf(nil, `{"type":"response","request_id":%q,"result":{}}`, id))
		}
	}))
	defer server.Close()
	before := runtime.NumGoroutine()
	for range 20 {
		client := New(Config{APIKey: "dm_live_key", URL: server.URL, AutoReconnect: true})
		client.OnMessageReceived(func(message *Message) {
			if _, err := client.Ping(message.Context()); err != nil {
				t.Error(err)
			}
			_ = client.Close(message.Context())
		})
		if err := client.Connect(); err != nil {
			t.Fatal(err)
		}
	}
	server.CloseClientConnections()
	for range 1000 { // those of the server end in their own time
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Fatalf("%d goroutines were, %d are left:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
}
