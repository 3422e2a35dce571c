package websocket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestAWaitReturnsTheFirstEventThatFitsWithWhatWasReadOutOfIt(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		heard := b.next().hearing(func(frame said) said {
			return said{"cursor": "c9", "event": mail(1), "extracted": said{
				"code": []string{"493201"}, "link": []said{{"url": "https://x.example", "same_site": true}},
			}}
		})
		found, err := client.WaitFor(t.Context(), Wait{
			InboxID: "inbox_a", Where: Where{Subject: "code", ThreadID: "t1"}, Since: "5m", Timeout: 20 * time.Second,
			Extract: []string{"code", "link"},
		})
		if err != nil || found.Event.Message().Subject != "Mail 1" || found.Cursor != "c9" ||
			!slices.Equal(found.Codes, []string{"493201"}) || !slices.Equal(found.Links, []Link{{"https://x.example", true}}) {
			t.Errorf("%v %v", found, err)
		}
		expectSaid(t, heard, `{"action":"wait_for","event_types":["message.received"],"extract":["code","link"],"inbox_ids":["inbox_a"],`+
			`"since":"5m","timeout_seconds":20,"where":{"subject":"code","thread_id":"t1"}}`)
	})
}

func TestAWaitFromNowOnGoesOnWhereItBeganOverALostConnection(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		b.run(client)
		s := b.next()
		found := make(chan *Found, 1)
		go func() {
			one, err := client.WaitFor(t.Context(), Wait{Type: "agent.test"})
			if err != nil {
				t.Error(err)
			}
			found <- one
		}()
		now := s.hear()
		if now["since"] != nil || now["timeout_seconds"] != 0.0 {
			t.Errorf("it asks with %v where now is", now)
		}
		s.answer(now, said{"cursor": "c5", "event": nil})
		if wait := s.hear(); wait["since"] != "c5" || wait["timeout_seconds"] != 60.0 {
			t.Errorf("it waits with %v", wait)
		}
		s.cut()
		s = b.next()
		wait := s.hear()
		if wait["since"] != "c5" {
			t.Errorf("it waits with %v", wait)
		}
		s.answer(wait, said{"cursor": "c6", "event": mail(6, said{"type": "agent.test"})})
		if one := <-found; one.Event.EventID != "evt_6" {
			t.Errorf("it found %v", one.Event)
		}
	})
}

func TestWhenTimeIsOverNothingMatched(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		s := b.next(said{"heartbeat_seconds": 3_600})
		s.hearing(func(frame said) said {
			time.Sleep(time.Duration(frame["timeout_seconds"].(float64) * float64(time.Second)))
			return said{"cursor": "c5", "event": nil}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		for waits, wait := range map[time.Duration]Wait{
			0:               {Timeout: -1, Since: "5m"},
			3 * time.Second: {Timeout: 3 * time.Second},
		} {
			began := time.Now()
			if _, err := client.WaitFor(ctx, wait); !errors.Is(err, ErrNoMatch) || time.Since(began) != waits {
				t.Errorf("after %v it came to %v", time.Since(began), err)
			}
		}
		began := time.Now()
		if _, err := client.WaitFor(ctx, Wait{}); !errors.Is(err, ErrNoMatch) || time.Since(began) != 4*time.Second {
			t.Errorf("after %v it came to %v", time.Since(began), err)
		}
		if _, err := client.WaitFor(t.Context(), Wait{}); !errors.Is(err, ErrNoMatch) || time.Since(began) != 64*time.Second {
			t.Errorf("after %v it came to %v", time.Since(began), err)
		}
	})
}

func TestAWaitWithoutAConnectionEndsInTimeAndWhenItIsCanceled(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		began := time.Now()
		if _, err := client.WaitFor(t.Context(), Wait{Timeout: time.Second, Since: "5m"}); !errors.Is(err, ErrNoMatch) || time.Since(began) > 6*time.Second {
			t.Errorf("after %v it came to %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := client.WaitFor(ctx, Wait{}); !errors.Is(err, context.Canceled) {
			t.Errorf("it came to %v", err)
		}
	})
}

func TestAFunctionLooksAtOneEventAfterTheOther(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		number := 0
		heard := b.next().hearing(func(said) said {
			number++
			return said{"cursor": fmt.Sprintf("c%d", number), "event": mail(number)}
		})
		found, err := client.WaitFor(t.Context(), Wait{Since: "c0", Match: func(event *Event) bool { return event.EventID == "evt_3" }})
		if err != nil || found.Event.EventID != "evt_3" {
			t.Errorf("%v %v", found, err)
		}
		var since []any
		for _, frame := range heard() {
			since = append(since, frame["since"])
		}
		if !slices.Equal(since, []any{"c0", "c1", "c2"}) {
			t.Errorf("it asked since %v", since)
		}
	})
}
