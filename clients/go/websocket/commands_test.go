package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// of returns what was said, without the request_ids.
func of(heard []said) []string {
	var found []string
	for _, frame := range heard {
		frame = maps.Clone(frame)
		delete(frame, "request_id")
		text, _ := json.Marshal(frame)
		found = append(found, string(text))
	}
	return found
}

func expectSaid(t *testing.T, heard func() []said, expected ...string) {
	t.Helper()
	synctest.Wait()
	if found := of(heard()); !slices.Equal(found, expected) {
		t.Errorf("it said\n%s\ninstead of\n%s", strings.Join(found, "\n"), strings.Join(expected, "\n"))
	}
}

func TestCommandsSayWhatIsAskedAndReturnWhatIsAnswered(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{Ack: AckManual})
		b.run(client)
		heard := b.next().hearing(func(frame said) said {
			switch frame["action"] {
			case "send_email":
				return said{"message_id": "sent_1", "later": 1}
			case "publish":
				return said{"events": []said{{"event_id": "evt_1", "cursor": "c1", "duplicate": true}}}
			case "ping":
				return said{"server_time": "2026-11-23T10:00:00.123Z"}
			case "ack":
				return said{"cursor": "c1", "acked": 2, "claimed": []string{"evt_2"}}
			}
			return said{"done": true}
		})
		ctx := t.Context()
		sent, err := client.SendEmail(ctx, Email{
			InboxID: "inbox_a", To: []string{"eve@x"}, Subject: "S", Body: "B", InReplyTo: "msg_1", More: map[string]any{"cc": "bob@x"},
		})
		if err != nil || sent.MessageID != "sent_1" || string(sent.Raw) != `{"later":1,"message_id":"sent_1"}` {
			t.Errorf("%v %v", sent, err)
		}
		if read, err := client.MarkAsRead(ctx, (&Message{MessageID: "msg_1", InboxID: "inbox_a"}).Ref()); err != nil || string(read) != `{"done":true}` {
			t.Errorf("%s %v", read, err)
		}
		if published, err := client.Publish(ctx, NewEvent{Type: "a.b", Payload: said{}, InboxID: "inbox_a"}); err != nil || !published[0].Duplicate {
			t.Errorf("%v %v", published, err)
		}
		if at, err := client.Ping(ctx); err != nil || at.UnixMilli() != 1_795_428_000_123 {
			t.Errorf("%v %v", at.UnixMilli(), err)
		}
		if acked, err := client.Ack(ctx, Acknowledge{EventIDs: []string{"evt_1"}}); err != nil || acked.Acked != 2 || acked.Claimed[0] != "evt_2" {
			t.Errorf("%v %v", acked, err)
		}
		if _, err := client.Ack(ctx, Acknowledge{}); err != nil {
			t.Error(err)
		}
		if err := client.Hold(ctx, []string{"evt_1"}, 90*time.Second); err != nil {
			t.Error(err)
		}
		if _, err := client.Command(ctx, "label", struct {
			Label *string `json:"label"`
			Name  string  `json:"name"`
		}{nil, "n"}, RequestID("r1"), Once("mine")); err != nil {
			t.Error(err)
		}
		expectSaid(
			t, heard,
			`{"action":"send_email","body":"B","cc":"bob@x","in_reply_to":"msg_1","inbox_id":"inbox_a","subject":"S","to":["eve@x"]}`,
			`{"action":"mark_as_read","inbox_id":"inbox_a","message_id":"msg_1"}`,
			`{"action":"publish","events":[{"inbox_id":"inbox_a","payload":{},"type":"a.b"}]}`,
			`{"action":"ping"}`,
			`{"action":"ack","event_ids":["evt_1"]}`,
			`{"action":"ack","cursor":"c0"}`,
			`{"action":"hold","event_ids":["evt_1"],"seconds":90}`,
			`{"action":"label","name":"n","once":"mine"}`,
		)
		if heard()[7]["request_id"] != "r1" {
			t.Errorf("its request_id was %v", heard()[7]["request_id"])
		}
		if _, err := client.Command(ctx, "label", "no object"); err == nil {
			t.Error("what is no object was taken for one")
		}
	})
}

func TestARefusalHasItsCode(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		s := b.next()
		go func() {
			frame := s.hear()
			s.say(said{
				"type": "response", "request_id": frame["request_id"], "action": "send_email", "duplicate": true,
				"error": said{"code": "rate_limited", "message": "slowly", "retry_after_ms": 1_500},
			})
		}()
		_, err := client.SendEmail(t.Context(), Email{})
		var refused *CommandError
		if !errors.As(err, &refused) || *refused != (CommandError{"rate_limited", "slowly", 1_500 * time.Millisecond, true}) {
			t.Errorf("it came to %v", err)
		}
		if err.Error() != "websocket: rate_limited: slowly" {
			t.Errorf("in words: %v", err)
		}
	})
}

func TestACommandHasThirtySecondsOrItsContextsTime(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		b.run(client)
		s := b.next()
		heard := s.hearing(func(said) said { return nil })
		canceled, cancel := context.WithCancel(t.Context())
		time.AfterFunc(3*time.Second, cancel)
		short, done := context.WithTimeout(t.Context(), 5*time.Second)
		defer done()
		long, done := context.WithTimeout(t.Context(), 35*time.Second)
		defer done()
		for _, given := range []struct {
			ctx      context.Context
			waits    time.Duration
			timedOut bool
		}{{t.Context(), 30 * time.Second, true}, {canceled, 3 * time.Second, false}, {short, 5 * time.Second, true}, {long, 35 * time.Second, true}} {
			go func() {
				began := time.Now()
				_, err := client.Ping(given.ctx)
				var late *TimedOutError
				if time.Since(began) != given.waits || errors.As(err, &late) != given.timedOut {
					t.Errorf("after %v instead of %v it came to %v", time.Since(began), given.waits, err)
				}
				if given.timedOut && (!errors.Is(err, context.DeadlineExceeded) || !late.Timeout()) || !given.timedOut && !errors.Is(err, context.Canceled) {
					t.Errorf("%v is not what it is", err)
				}
			}()
		}
		synctest.Wait()
		if len(heard()) != 4 {
			t.Fatalf("it said %v", heard())
		}
		s.conn.Ping(t.Context())
		time.Sleep(35 * time.Second)
		s.cut()
		again := b.next().hearing(well)
		expectSaid(t, again) // none whose time is over
	})
}

func TestACommandWithoutAnAnswerIsSentAgainWithItsRequestID(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		results := make(chan string, 3)
		for number := range 3 { // before it is run
			go func() {
				result, err := client.Command(t.Context(), "do", said{"number": number})
				results <- fmt.Sprint(string(result), err)
			}()
			synctest.Wait()
		}
		b.run(client)
		s := b.next()
		heard := s.hearing(func(frame said) said {
			if frame["number"] != 0.0 {
				return nil
			}
			return said{"ok": true}
		})
		synctest.Wait()
		s.cut()
		again := b.next().hearing(func(said) said { return said{"ok": true} })
		synctest.Wait()
		if of := len(results); of != 3 {
			t.Fatalf("%d were answered", of)
		}
		var sent, resent []any
		for _, frame := range heard() {
			sent = append(sent, frame["request_id"])
		}
		for _, frame := range again() {
			resent = append(resent, frame["request_id"])
		}
		if len(sent) != 3 || !slices.Equal(sent[1:], resent) {
			t.Errorf("sent were %v, then %v", sent, resent)
		}
	})
}

func TestACommandOfAHandlerIsDoneOnceForItsEvent(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, failed := b.client(Config{Ack: AckOff}), &recorded{}
		client.OnError(func(err error) { failed.add(err.Error()) })
		give := func(ctx context.Context, action string, params said, options ...CommandOption) {
			if _, err := client.Command(ctx, action, params, options...); err != nil {
				failed.add(err.Error())
			}
		}
		client.On("agent.test", func(ctx context.Context, event *Event) error {
			inbox := said{"inbox_id": "inbox_a"}
			give(ctx, "send_email", inbox)
			give(ctx, "send_email", inbox)
			give(ctx, "send_email", said{"inbox_id": "inbox_b"})
			give(ctx, "label", inbox)
			give(ctx, "label", nil)
			give(ctx, "send_email", inbox, Once("mine"))
			give(ctx, "send_email", inbox, Once(""))
			give(ctx, "wait_for", inbox)
			give(ctx, "send_email", said{"inbox_id": "inbox_a", "once": "my own"})
			give(t.Context(), "send_email", inbox)
			return nil
		})
		client.OnMessageReceived(func(message *Message) {
			_, _ = client.SendEmail(message.Context(), Email{InboxID: "inbox_a"})
		})
		b.run(client)
		s := b.next()
		heard := s.hearing(well)
		s.say(mail(1, said{"type": "agent.test"}))
		s.say(mail(2))
		synctest.Wait()
		var once []string
		for _, frame := range heard() {
			once = append(once, fmt.Sprint(frame["once"]))
		}
		expected := []string{"evt_1", "evt_1:2", "evt_1", "evt_1", "<nil>", "mine", "<nil>", "<nil>", "my own", "<nil>", "evt_2"}
		if !slices.Equal(once, expected) {
			t.Errorf("once was %v", once)
		}
		failed.expect(t)
	})
}

func TestWhatWaitsFailsWhenTheClientEndsForGood(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		failed := make(chan error, 1)
		go func() {
			_, err := client.Ping(t.Context())
			failed <- err
		}()
		b.refusing(401, "unauthorized", "")
		ended := b.run(client)()
		var gone *ConnectionEndedError
		if err := <-failed; !errors.As(err, &gone) || gone.Status != 401 || err.Error() != ended.Error() {
			t.Errorf("it came to %v, %v", err, ended)
		}
	})
}
