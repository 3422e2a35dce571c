package websocket

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

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
