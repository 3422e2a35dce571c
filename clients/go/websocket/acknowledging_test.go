package websocket

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatHandlersHaveReturnedFromIsAcknowledgedOnceASecond(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{ClientID: "agent"})
		client.On("*", func(context.Context, *Event) error { return nil })
		b.run(client)
		s := b.next()
		if s.query["client_id"] != "agent" || s.query["since"] != "acked" {
			t.Errorf("it asked for %v", s.query)
		}
		heard := s.hearing(well)
		for number := range 3 {
			s.say(mail(number + 1))
		}
		expectSaid(t, heard)
		time.Sleep(time.Second)
		synctest.Wait()
		s.say(mail(4))
		expectSaid(t, heard, `{"action":"ack","cursor":"c3"}`)
		time.Sleep(3 * time.Second)
		expectSaid(t, heard, `{"action":"ack","cursor":"c3"}`, `{"action":"ack","cursor":"c4"}`)
	})
}

func TestWhatFailedIsNotAcknowledgedAndWhatComesAfterItSinglyForTheWindow(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.OnError(func(error) {})
		client.On("*", func(_ context.Context, event *Event) error {
			if event.EventID == "evt_2" {
				return errors.New("not this one")
			}
			return nil
		})
		b.run(client)
		s := b.next(said{"replay_seconds": 30})
		heard := s.hearing(well)
		for number := range 3 {
			s.say(mail(number + 1))
		}
		time.Sleep(time.Second)
		first := `{"action":"ack","cursor":"c1","event_ids":["evt_3"]}`
		expectSaid(t, heard, first)
		time.Sleep(29 * time.Second)
		s.say(mail(4))
		time.Sleep(time.Second)
		expectSaid(t, heard, first, `{"action":"ack","cursor":"c4"}`)
	})
}

func TestWhatIsDealtWithOutOfOrderIsAcknowledgedSingly(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, may := b.client(Config{Concurrency: 2, Order: OrderNone}), make(chan struct{})
		client.On("*", func(_ context.Context, event *Event) error {
			if event.EventID == "evt_1" {
				<-may
			}
			return nil
		})
		b.run(client)
		s := b.next()
		heard := s.hearing(well)
		s.say(mail(1))
		s.say(mail(2))
		time.Sleep(time.Second)
		expectSaid(t, heard, `{"action":"ack","event_ids":["evt_2"]}`)
		close(may)
		time.Sleep(time.Second)
		expectSaid(t, heard, `{"action":"ack","event_ids":["evt_2"]}`, `{"action":"ack","cursor":"c2"}`)
	})
}

func TestAnEventThatIsUnderWayForTenSecondsIsHeldEachTwenty(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.On("*", func(context.Context, *Event) error {
			time.Sleep(31 * time.Second)
			return nil
		})
		b.run(client)
		s := b.next()
		heard := s.hearing(well)
		s.say(mail(1))
		hold := `{"action":"hold","event_ids":["evt_1"],"seconds":60}`
		time.Sleep(10*time.Second - 1)
		expectSaid(t, heard)
		time.Sleep(1)
		expectSaid(t, heard, hold)
		time.Sleep(20 * time.Second)
		expectSaid(t, heard, hold, hold)
		s.say(said{"type": "connection.cursor", "cursor": "c2"})
		time.Sleep(10 * time.Second)
		expectSaid(t, heard, hold, hold, `{"action":"ack","cursor":"c2"}`)
	})
}

func TestAnAcknowledgementThatCameToNothingIsTriedAgain(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.On("*", func(context.Context, *Event) error { return nil })
		b.run(client)
		s := b.next()
		answers := false
		heard := s.hearing(func(said) said {
			if answers {
				return said{}
			}
			answers = true
			return nil
		})
		s.say(mail(1))
		time.Sleep(13 * time.Second)
		expectSaid(t, heard, `{"action":"ack","cursor":"c1"}`, `{"action":"ack","cursor":"c1"}`)
	})
}

func TestABrokerThatKnowsNoAcknowledgementsIsAskedOnce(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.On("*", func(context.Context, *Event) error { return nil })
		b.run(client)
		s := b.next()
		heard := s.hearing(func(said) said { return said{"error": map[string]any{"code": "unknown_action"}} })
		for number := range 3 {
			s.say(mail(number + 1))
			time.Sleep(2 * time.Second)
		}
		expectSaid(t, heard, `{"action":"ack","cursor":"c1"}`)
	})
}

func TestABrokerThatKnowsNoHoldsIsAskedOnce(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.On("*", func(context.Context, *Event) error {
			time.Sleep(time.Minute)
			return nil
		})
		b.run(client)
		s := b.next(said{"heartbeat_seconds": 3_600})
		heard := s.hearing(func(said) said { return said{"error": map[string]any{"code": "unknown_action"}} })
		s.say(mail(1))
		time.Sleep(2 * time.Minute)
		expectSaid(t, heard, `{"action":"hold","event_ids":["evt_1"],"seconds":60}`)
	})
}

func TestManualAndOffAcknowledgeNothingByThemselves(t *testing.T) {
	for _, mode := range []AckMode{AckManual, AckOff} {
		played(t, func(t *testing.T, b *fakeBroker) {
			client := b.client(Config{Ack: mode, ClientID: "agent"})
			client.On("*", func(context.Context, *Event) error { return nil })
			b.run(client)
			s := b.next()
			if since := s.query["since"]; (since == "acked") != (mode == AckManual) {
				t.Errorf("with %q it asked for what is since %q", mode, since)
			}
			heard := s.hearing(well)
			s.say(mail(1))
			time.Sleep(5 * time.Second)
			_ = client.Close(t.Context())
			expectSaid(t, heard)
			if client.place.owes() {
				t.Error("what nobody takes is kept")
			}
		})
	}
}

func TestAProgramThatStartsAgainGoesOnFromItsStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "place")
	var name string
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{CursorStore: FileStore(path), Concurrency: 2, Order: OrderNone})
		client.On("*", func(ctx context.Context, event *Event) error {
			if event.EventID == "evt_2" {
				<-ctx.Done()
			}
			return nil
		})
		b.run(client)
		s := b.next()
		name = s.query["client_id"]
		for number := range 3 {
			s.say(mail(number + 1))
		}
		synctest.Wait()
		kept, err := FileStore(path).Load(t.Context())
		if err != nil || *kept != (Kept{name, "c1"}) { // it is behind what is still at work
			t.Fatalf("kept is %v, %v", kept, err)
		}
	})
	played(t, func(t *testing.T, b *fakeBroker) {
		if err := (FileStore(path)).Save(t.Context(), Kept{name, "c1"}); err != nil {
			t.Fatal(err)
		}
		client := b.client(Config{CursorStore: FileStore(path)})
		b.run(client)
		if s := b.next(); s.query["client_id"] != name || s.query["since"] != "c1" {
			t.Errorf("it asked for %v", s.query)
		}
	})
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{CursorStore: FileStore(path), ClientID: "mine"})
		b.run(client)
		if s := b.next(); s.query["client_id"] != "mine" || s.query["since"] != "c1" {
			t.Errorf("it asked for %v", s.query)
		}
	})
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{CursorStore: FileStore(path + " of another"), ClientID: "mine"})
		b.run(client)
		if s := b.next(); s.query["since"] != "" {
			t.Errorf("it asked for %v", s.query)
		}
	})
}

func TestAStoreThatHoldsSomethingElseEndsRunAndOneThatFailsIsReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "place")
	if err := os.WriteFile(path, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := New(Config{APIKey: "k", URL: "ws://localhost:1", CursorStore: FileStore(path)})
	if err := client.Connect(); err == nil || !strings.Contains(err.Error(), "is no cursor store") {
		t.Errorf("it ended with %v", err)
	}
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{CursorStore: failing{}})
		failed := &recorded{}
		client.OnError(func(err error) { failed.add(strings.Split(err.Error(), ":")[0]) })
		b.run(client)
		b.next().say(mail(1))
		failed.expect(t, "the cursor store", "the cursor store")
	})
}

type counting struct{ saved *recorded }

func (counting) Load(context.Context) (*Kept, error) { return nil, nil }
func (c counting) Save(_ context.Context, kept Kept) error {
	c.saved.add(kept.Cursor)
	return nil
}

func TestAStoreIsGivenWhatHasChanged(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		saved, may := &recorded{}, make(chan struct{})
		client := b.client(Config{CursorStore: counting{saved}, Concurrency: 2, Order: OrderNone})
		client.On("*", func(_ context.Context, event *Event) error {
			if event.EventID == "evt_1" {
				<-may
			}
			return nil
		})
		b.run(client)
		s := b.next()
		for number := range 3 {
			s.say(mail(number + 1))
		}
		saved.expect(t, "c0")
		close(may)
		saved.expect(t, "c0", "c3")
	})
}

type failing struct{}

func (failing) Load(context.Context) (*Kept, error) { return nil, nil }
func (failing) Save(context.Context, Kept) error    { return errors.New("the disk is full") }
