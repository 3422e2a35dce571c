package websocket

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestALostConnectionIsOpenedAgainAtItsLastCursorWithItsName(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{AutoReconnect: true, InboxIDs: []string{"inbox_b", "inbox_a"}, EventTypes: []string{"message.*"}}), &recorded{}
		client.On("*", ids(got))
		client.OnConnected(func() { got.add("connected") })
		client.OnDisconnected(func(reason string) { got.add(reason) })
		b.run(client)
		first := b.next()
		first.say(mail(1))
		got.expect(t, "connected", "evt_1")
		first.cut()
		second := b.next()
		second.say(mail(2))
		got.expect(t, "connected", "evt_1", "the connection was lost", "connected", "evt_2")
		if first.query["since"] != "" || second.query["since"] != "c1" {
			t.Errorf("it asked for what is since %q, then %q", first.query["since"], second.query["since"])
		}
		if name := first.query["client_id"]; !strings.HasPrefix(name, "go_") || second.query["client_id"] != name {
			t.Errorf("it was %q, then %q", name, second.query["client_id"])
		}
		if first.query["inbox_ids"] != "inbox_a,inbox_b" || second.query["event_types"] != "message.*" {
			t.Errorf("it asked for %v, then %v", first.query, second.query)
		}
		header := b.openers[0].Header
		if header.Get("Authorization") != "Bearer dm_live_key" || !strings.HasPrefix(header.Get("User-Agent"), "daimon-email-go/") {
			t.Errorf("it said %v", header)
		}
	})
}

func TestACursorWithoutAnEventIsGoneOnFrom(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		b.run(client)
		s := b.next(said{"cursor": "c7"})
		s.cut()
		s = b.next(said{"cursor": "c6"})
		s.cut()
		again := b.next(said{"cursor": "c6"})
		again.say(said{"type": "connection.cursor", "cursor": "c9"})
		synctest.Wait()
		again.cut()
		last := b.next()
		if again.query["since"] != "c7" || last.query["since"] != "c9" {
			t.Errorf("it went on from %q, then from %q", again.query["since"], last.query["since"])
		}
	})
}

func TestAnEventThatComesAgainMovesTheCursorOn(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		b.run(b.client(Config{AutoReconnect: true}))
		s := b.next()
		s.say(mail(1))
		s.say(mail(1, said{"cursor": "c9"}))
		synctest.Wait()
		s.cut()
		if s = b.next(); s.query["since"] != "c9" {
			t.Errorf("it went on from %q", s.query["since"])
		}
	})
}

func TestWithoutAutoReconnectALostConnectionIsTheEnd(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		ended := b.run(b.client(Config{}))
		b.next().cut()
		var gone *ConnectionEndedError
		if err := ended(); !errors.As(err, &gone) || gone.CloseCode != 1006 || gone.Message != "the connection was lost" {
			t.Errorf("it ended with %v", err)
		}
	})
}

func TestAfterTheseCodesAndStatusesItStaysAway(t *testing.T) {
	for _, code := range []int{1002, 1007, 1008, 4401, 4409} {
		played(t, func(t *testing.T, b *fakeBroker) {
			client, told := b.client(Config{AutoReconnect: true}), &recorded{}
			client.OnDisconnected(told.add)
			ended := b.run(client)
			b.next().close(code)
			var gone *ConnectionEndedError
			if err := ended(); !errors.As(err, &gone) || gone.CloseCode != code || gone.Status != 0 {
				t.Errorf("after %d it ended with %v", code, err)
			}
			told.expect(t, closeWords[code])
		})
	}
	for _, status := range []int{400, 401, 403, 404, 426} {
		played(t, func(t *testing.T, b *fakeBroker) {
			b.refusing(status, "why_not", "")
			var gone *ConnectionEndedError
			err := b.run(b.client(Config{AutoReconnect: true}))()
			if !errors.As(err, &gone) || gone.Status != status || gone.Code != "why_not" || gone.CloseCode != 0 {
				t.Errorf("after %d it ended with %v", status, err)
			}
		})
	}
}

func TestAfterAllOthersItComesBack(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		b.run(b.client(Config{AutoReconnect: true}))
		for _, code := range []int{1000, 1001, 1011, 3999, 4408, 4999} {
			b.next().close(code)
		}
		b.next()
		for _, status := range []int{200, 302, 418, 500} {
			b.refusing(status, "", "")
		}
	})
	played(t, func(t *testing.T, b *fakeBroker) {
		for _, status := range []int{200, 302, 418, 500} {
			b.refusing(status, "", "")
		}
		b.run(b.client(Config{AutoReconnect: true}))
		b.next()
		if len(b.attempts()) != 5 || b.openers[2].URL.Path != "/v1/stream" {
			t.Errorf("it tried %d times", len(b.attempts()))
		}
	})
}

func TestItComesBackWhenItIsToldAndNotBefore(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		in := time.Now().Add(2 * time.Hour).UTC().Format(http.TimeFormat)
		b.refusing(429, "connection_limit", "60")
		b.refusing(503, "draining", in)
		client := b.client(Config{AutoReconnect: true, ReconnectDelay: time.Second})
		b.run(client)
		began := time.Now()
		s := b.next()
		at := b.attempts()
		if first := at[1].Sub(at[0]); first < time.Minute || first > time.Minute+time.Second {
			t.Errorf("after 429 it waited %v", first)
		}
		if second := at[2].Sub(began); second < 2*time.Hour-time.Second || second > 2*time.Hour+2*time.Second {
			t.Errorf("after 503 it came after %v", second)
		}
		s.say(said{"type": "server.draining", "reconnect_after_ms": 12_345})
		synctest.Wait()
		began = time.Now()
		s.close(1012)
		s = b.next()
		if waited := time.Since(began); waited != 12_345*time.Millisecond {
			t.Errorf("after a drain it waited %v", waited)
		}
		began = time.Now()
		s.close(1012)
		b.next()
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("it waited %v, as it was once asked to", waited)
		}
	})
}

func TestWaitsGrowToAMinuteAndASuccessSetsThemBack(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true, ReconnectDelay: time.Second})
		b.run(client)
		s := b.next()
		b.setDrops(true)
		began := time.Now()
		s.cut()
		time.Sleep(30 * time.Minute)
		b.setDrops(false)
		s = b.next()
		last, longest := began, time.Duration(0)
		for number, at := range b.attempts()[1:] {
			wait, limit := at.Sub(last), min(time.Minute, time.Second<<min(number, 10))
			if wait > limit {
				t.Errorf("wait %d was %v", number, wait)
			}
			last, longest = at, max(longest, wait)
		}
		if longest < 30*time.Second {
			t.Errorf("the longest wait was %v", longest)
		}
		began = time.Now()
		s.cut()
		b.next()
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("after a success it waited %v", waited)
		}
	})
}

func TestReconnectNowEndsTheWait(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true, ReconnectDelay: time.Hour})
		client.ReconnectNow() // nothing to end yet
		b.run(client)
		b.next().cut()
		synctest.Wait()
		began := time.Now()
		client.ReconnectNow()
		b.next()
		if waited := time.Since(began); waited != 0 {
			t.Errorf("it waited %v", waited)
		}
	})
}

func TestAConnectionFromWhichNothingComesIsTakenForLost(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, told := b.client(Config{AutoReconnect: true}), &recorded{}
		client.OnDisconnected(told.add)
		b.run(client)
		s := b.next()
		s.hearing(well)
		for range 5 { // pings keep it
			time.Sleep(39 * time.Second)
			if err := s.conn.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		told.expect(t)
		time.Sleep(40*time.Second - 1)
		told.expect(t)
		time.Sleep(1)
		told.expect(t, "the connection was lost (nothing was heard)")
		b.next()
	})
}

func TestABrokerThatDoesNotSayThatItIsReadyIsNone(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, told := b.client(Config{}), &recorded{}
		client.OnConnected(func() { told.add("connected") })
		client.OnDisconnected(told.add)
		ended := b.run(client)
		b.asked().say(said{"type": "hello"})
		if err := ended(); err == nil || !strings.Contains(err.Error(), "no broker") {
			t.Errorf("it ended with %v", err)
		}
		told.expect(t, "the other side is no broker")
	})
}
