package websocket

import (
	"context"
	"errors"
	"net/http"
	"slices"
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

func TestATokenIsFetchedForEachOpening(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		tokens := []string{"wst_1", "", "!", "panic", "wst_2"}
		failed := &recorded{}
		client := b.client(Config{AutoReconnect: true, Token: func(context.Context) (string, error) {
			token := tokens[0]
			tokens = tokens[1:]
			switch token {
			case "!":
				return "", errors.New("away")
			case "panic":
				panic(token)
			}
			return token, nil
		}})
		client.OnError(func(err error) { failed.add(strings.Split(err.Error(), "\n")[0]) })
		b.run(client)
		b.next().cut()
		b.next()
		failed.expect(t, "the token function: it gave none", "the token function: away", "the token function: panic: panic")
		var bearers []string
		for _, opened := range b.openers {
			bearers = append(bearers, opened.Header.Get("Authorization"))
		}
		if !slices.Equal(bearers, []string{"Bearer wst_1", "Bearer wst_2"}) {
			t.Errorf("it came with %q", bearers)
		}
	})
}

func TestWhatIsFollowedIsWhatWasFollowedBefore(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true, InboxIDs: []string{"inbox_a"}})
		b.run(client)
		s := b.next()
		s.hearing(func(frame said) said {
			return said{"inbox_ids": []string{"inbox_a", "inbox_b"}, "cursor": "c3", "replay": said{"recovered": true, "count": 2}}
		})
		now, err := client.Subscribe(t.Context(), []string{"inbox_b"}, Since("5m"), EventTypes("message.received"))
		if err != nil || !slices.Equal(now.InboxIDs, []string{"inbox_a", "inbox_b"}) || now.Replay.Count != 2 || now.Cursor != "c3" {
			t.Fatalf("%v %v", now, err)
		}
		s.cut()
		s = b.next(said{"inbox_ids": []string{"inbox_a", "inbox_b"}})
		if s.query["inbox_ids"] != "inbox_a,inbox_b" || s.query["event_types"] != "message.received" || s.query["since"] != "c3" {
			t.Errorf("it asked for %v", s.query)
		}
		s.say(said{"type": "connection.updated", "inbox_ids": []string{"inbox_b"}})
		synctest.Wait()
		s.cut()
		if s = b.next(); s.query["inbox_ids"] != "inbox_b" {
			t.Errorf("it asked for %v", s.query)
		}
	})
}

func TestWhileItIsAwayASubscribeSinceACursorWaitsForTheConnection(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true, InboxIDs: []string{"inbox_a"}})
		b.run(client)
		s := b.next()
		s.say(mail(5))
		synctest.Wait()
		s.cut()
		synctest.Wait()
		done := make(chan error, 1)
		go func() {
			_, err := client.Subscribe(t.Context(), []string{"inbox_b"}, Since("c1"))
			done <- err
		}()
		s = b.next()
		heard := s.hearing(func(said) said { return said{"inbox_ids": []string{"inbox_a", "inbox_b"}, "cursor": "c1"} })
		if err := <-done; err != nil || s.query["since"] != "c5" || s.query["inbox_ids"] != "inbox_a" {
			t.Errorf("%v; it asked for %v", err, s.query)
		}
		expectSaid(t, heard, `{"action":"subscribe","inbox_ids":["inbox_b"],"since":"c1"}`)
	})
}

func TestBeforeItIsOpenASubscribeIsWhatTheOpeningAsksFor(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		for _, names := range [][]string{{"inbox_b"}, {"inbox_a"}} {
			if _, err := client.Subscribe(t.Context(), names, Since("5m")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := client.Unsubscribe(t.Context(), []string{"inbox_b"}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Subscribe(t.Context(), nil); err == nil {
			t.Error("no inbox was taken for some")
		}
		b.run(client)
		s := b.asked()
		if s.query["inbox_ids"] != "inbox_a" || s.query["since"] != "5m" {
			t.Errorf("it asked for %v", s.query)
		}
		if _, err := client.Subscribe(t.Context(), []string{"inbox_c"}); err != nil { // while it is being opened
			t.Fatal(err)
		}
		heard := s.hearing(func(said) said { return said{"inbox_ids": []string{"inbox_a", "inbox_c"}, "cursor": "c1"} })
		s.ready()
		synctest.Wait()
		if said := heard(); len(said) != 1 || said[0]["action"] != "subscribe" || said[0]["inbox_ids"].([]any)[0] != "inbox_c" {
			t.Errorf("it said %v", said)
		}
	})
}

func TestMoreInboxesThanAQueryHoldsAreSubscribedToBehindTheOpening(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		var names []string
		for number := range 500 {
			names = append(names, "inbox_of_someone_"+strings.Repeat("x", 10)+string(rune('a'+number%26))+string(rune('a'+number/26)))
		}
		client := b.client(Config{AutoReconnect: true, InboxIDs: names, ClientID: "agent"})
		b.run(client)
		s := b.next(said{"cursor": "c5"})
		asked := strings.Split(s.query["inbox_ids"], ",")
		first := s.hear()
		rest := first["inbox_ids"].([]any)
		if len(asked)+len(rest) != 500 || len(s.query["inbox_ids"]) > 4_000 || first["since"] != "c5" {
			t.Fatalf("%d in the query, %d behind it since %v", len(asked), len(rest), first["since"])
		}
		s.say(mail(9))
		synctest.Wait()
		s.cut() // not answered: what it was for is asked for again from there
		if s = b.next(); s.query["since"] != "c5" {
			t.Errorf("it went on from %q", s.query["since"])
		}
		s.answer(s.hear(), said{"error": said{"code": "forbidden", "message": "no"}})
		s.say(mail(10))
		synctest.Wait()
		s.cut()
		if s = b.next(); s.query["since"] != "c10" {
			t.Errorf("it went on from %q", s.query["since"])
		}
	})
}

func TestNoInboxesAreNone(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		b.run(b.client(Config{InboxIDs: []string{}}))
		s := b.next(said{"inbox_ids": []string{"inbox_of_key"}})
		if first := s.hear(); first["action"] != "unsubscribe" || first["inbox_ids"].([]any)[0] != "inbox_of_key" {
			t.Errorf("it said %v", first)
		}
	})
}
