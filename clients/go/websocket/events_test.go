package websocket

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestEventsComeInOrderByTypeAndOnce(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		all, mails, prefixed := &recorded{}, &recorded{}, &recorded{}
		client.On("*", ids(all))
		client.On("message.*", ids(prefixed))
		client.OnMessageReceived(func(m *Message) {
			mails.add(fmt.Sprintf("%s %s %s %v %s", m.MessageID, m.InboxID, m.From, m.To, m.Subject))
		})
		b.run(client)
		s := b.next()
		s.say(mail(1, said{"message": said{"to": []string{"a@x"}, "later": true}}))
		s.say(mail(2, said{"type": "agent.thought", "payload": said{}}))
		s.say(mail(1))
		s.say(mail(3, said{"message": said{"to": "not a list", "labels": 7}}))
		s.say(mail(3, said{"inbox_id": "inbox_b", "cursor": "c4"}))
		all.expect(t, "evt_1", "evt_2", "evt_3", "evt_3")
		prefixed.expect(t, "evt_1", "evt_3", "evt_3")
		mails.expect(t,
			"msg_1 inbox_a ada@example.com [a@x] Mail 1", "msg_3 inbox_a ada@example.com [] Mail 3",
			"msg_3 inbox_b ada@example.com [] Mail 3")
	})
}

func TestPayloadsHaveTheirTypesAndKeepWhatIsUnknown(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", func(_ context.Context, event *Event) error {
			var later struct{ Later string }
			if err := event.Decode(&later); err != nil {
				return err
			}
			switch {
			case event.Bounce() != nil:
				got.add(event.Bounce().Recipient + event.Bounce().Reason + later.Later)
			case event.Complaint() != nil:
				got.add(event.Complaint().FeedbackType)
			case event.Account() != nil:
				got.add(event.Account().Tier + event.InboxID + event.CreatedAt.UTC().Format(time.RFC3339Nano))
			case event.Message() != nil:
				got.add(string(event.Message().Raw))
			}
			return nil
		})
		b.run(client)
		s := b.next()
		s.say(mail(1, said{"type": "message.bounced", "payload": said{"recipient": "eve", "reason": "full", "later": "!"}}))
		s.say(mail(2, said{"type": "message.complaint", "payload": said{"feedback_type": "abuse"}}))
		s.say(mail(3, said{"type": "account.upgraded", "inbox_id": nil, "payload": said{"tier": "growth"}}))
		s.say(mail(4, said{"payload": said{"message": said{"later": 1}}}))
		s.say(mail(5, said{"payload": said{}}))
		got.expect(t, "evefull!", "abuse", "growth2026-11-23T10:00:00.123Z", `{"later":1}`, `{}`)
	})
}

func TestWhatALaterBrokerSaysStopsNothing(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got, failed := b.client(Config{}), &recorded{}, &recorded{}
		client.On("*", ids(got))
		client.OnError(func(err error) { failed.add(err.Error()) })
		b.run(client)
		s := b.next()
		s.say(said{"type": "server.later", "cursor": []int{1}, "count": "many", "from": said{}})
		s.say(mail(1, said{"later": said{"a": 1}, "from": 7, "created_at": "yesterday"}))
		got.expect(t, "evt_1")
		failed.expect(t)
		s.say(said{"no": "type"})
		s.say(said{"type": "error", "error": said{"code": "invalid_json", "message": "what?"}})
		failed.expect(t, "a frame that cannot be read: it has no type", "a frame: websocket: invalid_json: what?")
		s.say(mail(2))
		got.expect(t, "evt_1", "evt_2")
	})
}

func TestAHandlerThatFailsOrPanicsIsReportedAndStopsNothing(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got, failed := b.client(Config{}), &recorded{}, &recorded{}
		client.On("*", func(context.Context, *Event) error { return errors.New("not today") })
		client.OnMessageReceived(func(*Message) { panic("never") })
		client.On("*", ids(got))
		client.OnError(func(err error) {
			var panicked *PanicError
			if errors.As(err, &panicked) {
				failed.add(fmt.Sprint(panicked.Value))
				panic("even so")
			}
			failed.add(err.Error())
		})
		b.run(client)
		s := b.next()
		s.say(mail(1))
		s.say(mail(2))
		got.expect(t, "evt_1", "evt_2")
		one := "a handler of message.received: not today"
		failed.expect(t, one, "never", one, "never")
	})
}

func TestWithoutAHandlerOfErrorsTheyAreLogged(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		log := &logged{}
		client := b.client(Config{Logger: log.logger()})
		client.On("*", func(context.Context, *Event) error { return errors.New("not today") })
		b.run(client)
		b.next().say(mail(1))
		synctest.Wait()
		if !strings.Contains(log.String(), "not today") {
			t.Fatalf("logged was %q", log.String())
		}
	})
}

func TestSoManyHandlersRunAtOnceButOneOfAThread(t *testing.T) {
	for order, expected := range map[Order][]string{
		OrderThread: {"evt_1", "evt_3", "evt_4"},
		OrderInbox:  {"evt_1", "evt_4"},
		OrderNone:   {"evt_1", "evt_2", "evt_3", "evt_4"},
	} {
		played(t, func(t *testing.T, b *fakeBroker) {
			client, got, may := b.client(Config{Concurrency: 4, Order: order}), &recorded{}, make(chan struct{})
			client.On("*", func(ctx context.Context, event *Event) error {
				<-may
				got.add(event.EventID)
				return nil
			})
			b.run(client)
			s := b.next()
			for number, thread := range []string{"t1", "t1", "t2"} {
				s.say(mail(number+1, said{"message": said{"thread_id": thread}}))
			}
			s.say(mail(4, said{"inbox_id": "inbox_b"}))
			synctest.Wait()
			client.mu.Lock()
			running := client.queue.running
			client.mu.Unlock()
			if running != len(expected) {
				t.Errorf("by %q %d run at once instead of %d", order, running, len(expected))
			}
			close(may)
			synctest.Wait()
			if len(got.items) != 4 {
				t.Errorf("by %q only %v were handled", order, got.items)
			}
		})
	}
}

func TestPausedNothingIsHandedOnAndResumedEverythingIs(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", ids(got))
		b.run(client)
		s := b.next()
		client.Pause()
		s.say(mail(1))
		s.say(mail(2))
		got.expect(t)
		client.Resume()
		got.expect(t, "evt_1", "evt_2")
	})
}

func TestWhatIsDealtWithMakesRoom(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{Ack: AckOff}), &recorded{}
		client.On("*", ids(got))
		b.run(client)
		s := b.next()
		for number := range 12 {
			s.say(mail(number+1, said{"message": said{"body": strings.Repeat("x", 900_000)}}))
		}
		synctest.Wait()
		if len(got.items) != 12 {
			t.Fatalf("%d came", len(got.items))
		}
	})
}

func TestAtMostEightMebibytesAreReadUntilACommandWaits(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", ids(got))
		b.run(client)
		s := b.next()
		client.Pause()
		heard := s.hearing(func(frame said) said { return nil })
		sent := make(chan int, 100)
		go func() {
			for number := range 12 {
				s.say(mail(number+1, said{"message": said{"body": strings.Repeat("x", 1_000_000)}}))
				sent <- number
			}
		}()
		synctest.Wait()
		if len(sent) < 8 || len(sent) > 10 {
			t.Fatalf("%d MB were read", len(sent))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Ping(ctx)
		var late *TimedOutError
		if !errors.As(err, &late) || len(sent) != 12 || len(heard()) != 1 {
			t.Fatalf("%v, %d MB were read for the answer to %v", err, len(sent), heard())
		}
		client.Resume()
		synctest.Wait()
		if len(got.items) != 12 {
			t.Fatalf("%d came", len(got.items))
		}
	})
}

func TestAGapIsToldBeforeWhatComesAfterIt(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got := b.client(Config{}), &recorded{}
		client.On("*", ids(got))
		client.OnGap(func(gap Gap) {
			time.Sleep(time.Second / 2)
			if gap.Count == nil {
				got.add(gap.From + "-" + gap.To)
			} else {
				got.add(fmt.Sprintf("%s-%s: %d", gap.From, gap.To, *gap.Count))
			}
		})
		b.run(client)
		s := b.next()
		s.say(said{"type": "replay.gap", "from": "c0", "to": "c5", "count": 5})
		s.say(mail(6))
		s.say(said{"type": "replay.gap", "from": nil, "to": "c8", "count": nil})
		s.say(mail(9))
		got.expect(t)
		time.Sleep(time.Second / 2)
		got.expect(t, "c0-c5: 5")
		time.Sleep(time.Second / 2)
		got.expect(t, "c0-c5: 5", "-c8", "evt_6", "evt_9")
	})
}

func TestWhoIsToldOfAConnectionHoldsEventsUpForASecondAtMost(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, got, may := b.client(Config{}), &recorded{}, make(chan struct{})
		client.On("*", ids(got))
		client.OnConnected(func() { <-may })
		b.run(client)
		b.next().say(mail(1))
		time.Sleep(time.Second - 1)
		got.expect(t)
		time.Sleep(1)
		got.expect(t, "evt_1")
		close(may)
	})
}
