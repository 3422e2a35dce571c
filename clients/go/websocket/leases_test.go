package websocket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func leased(number int) said {
	return said{"leases": []said{{
		"lease_id": fmt.Sprintf("lease_%d", number), "attempt": number, "expires_at": "2026-11-23T10:01:00Z", "event": mail(number),
	}}}
}

var nothing = said{"leases": []said{}, "lost": []string{}}

func TestWorkOfAQueueIsHeldAndAcknowledgedAndItsCommandsFenced(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		number := 0
		heard := b.next().hearing(func(frame said) said {
			if frame["action"] == "lease" && number < 1 {
				number++
				return leased(number)
			}
			if frame["action"] == "lease" {
				return nil
			}
			return nothing
		})
		done := make(chan error, 1)
		go func() {
			done <- client.Queue(t.Context(), "support", func(ctx context.Context, lease *Lease) error {
				time.Sleep(50 * time.Second)
				_, err := client.SendEmail(ctx, Email{InboxID: lease.Message().InboxID})
				_, _ = client.Ping(ctx)
				if lease.ID != "lease_1" || lease.Attempt != 1 || lease.ExpiresAt.IsZero() {
					t.Errorf("it had %v", lease)
				}
				return err
			})
		}()
		synctest.Wait()
		time.Sleep(55 * time.Second)
		ask := `{"action":"lease","max":1,"queue_id":"support","seconds":60,"wait_seconds":50}`
		hold := `{"action":"hold","lease_ids":["lease_1"],"seconds":60}`
		expectSaid(t, heard, ask, hold, hold,
			`{"action":"send_email","body":"","inbox_id":"inbox_a","lease_id":"lease_1","once":"evt_1","subject":""}`,
			`{"action":"ping"}`,
			`{"action":"ack","lease_ids":["lease_1"]}`, ask)
		_ = client.Close(t.Context())
		if err := <-done; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
}

func TestWorkThatFailsIsReportedAndGivenBack(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, failed := b.client(Config{}), &recorded{}
		client.OnError(func(err error) { failed.add(err.Error()) })
		b.run(client)
		number := 0
		heard := b.next().hearing(func(frame said) said {
			if frame["action"] != "lease" {
				return nothing
			}
			number++
			switch number {
			case 1, 4:
				return leased(number)
			case 2:
				return nothing
			case 3:
				return said{"error": said{"code": "rate_limited", "message": "slowly", "retry_after_ms": 2_500}}
			}
			return said{"error": said{"code": "not_found", "message": "gone"}}
		})
		began := time.Now()
		err := client.Queue(t.Context(), "support", func(context.Context, *Lease) error {
			if number == 4 {
				panic("never")
			}
			return errors.New("not today")
		})
		var refused *CommandError
		if !errors.As(err, &refused) || refused.Code != "not_found" || time.Since(began) != 2_500*time.Millisecond {
			t.Errorf("after %v it ended with %v", time.Since(began), err)
		}
		if len(failed.items) != 2 || failed.items[0] != "work on evt_1: not today" {
			t.Errorf("reported was %q", failed.items)
		}
		synctest.Wait()
		if said := of(heard()); said[1] != `{"action":"nack","lease_ids":["lease_1"],"reason":"not today"}` {
			t.Errorf("it said %v", said)
		}
	})
}

func TestWorkWhoseLeaseIsLostIsCanceledAndReported(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, failed := b.client(Config{}), &recorded{}
		client.OnError(func(err error) { failed.add(err.Error()) })
		b.run(client)
		number := 0
		heard := b.next().hearing(func(frame said) said {
			if frame["action"] == "hold" {
				return said{"lost": []string{"lease_1"}}
			}
			number++
			if number == 1 {
				return leased(1)
			}
			return said{"error": said{"code": "forbidden", "message": "no"}}
		})
		_ = client.Queue(t.Context(), "support", func(ctx context.Context, _ *Lease) error {
			<-ctx.Done()
			if cause := context.Cause(ctx); cause != error(errLeaseLost) {
				t.Errorf("it was canceled because of %v", cause)
			}
			return nil
		})
		failed.expect(t, "work on evt_1: websocket: lease_lost: The event is another worker's by now")
		if !slices.Equal(actions(heard()), []string{"lease", "hold", "lease"}) {
			t.Errorf("it said %v", heard())
		}
	})
}

func TestTheClientWaitsForWorkOfAQueueWhenItIsClosed(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		given := false
		heard := b.next().hearing(func(frame said) said {
			if frame["action"] == "lease" && !given {
				given = true
				return leased(1)
			}
			if frame["action"] == "lease" {
				return nil
			}
			return nothing
		})
		done := make(chan error, 2)
		for range 2 { // they take turns at waiting
			go func() {
				done <- client.Queue(t.Context(), "support", func(context.Context, *Lease) error {
					time.Sleep(5 * time.Second)
					return nil
				})
			}()
		}
		synctest.Wait()
		began := time.Now()
		go func() { _ = client.Close(t.Context()) }()
		synctest.Wait()
		if len(done) != 1 {
			t.Errorf("who waits at a queue is not told that nothing comes: %d", len(done))
		}
		_ = client.Close(t.Context())
		if waited := time.Since(began); waited != 5*time.Second {
			t.Errorf("it waited %v", waited)
		}
		if one, other := <-done, <-done; one != nil || other != nil {
			t.Errorf("they ended with %v and %v", one, other)
		}
		if !slices.Equal(actions(heard()), []string{"lease", "lease", "ack"}) {
			t.Errorf("it said %v", actions(heard()))
		}
	})
}

func TestWhatWasDoneIsSaidWhateverHasEnded(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		heard := b.next().hearing(func(frame said) said {
			if frame["action"] == "lease" {
				return leased(1)
			}
			return nothing
		})
		ctx, cancel := context.WithCancel(t.Context())
		err := client.Queue(ctx, "support", func(context.Context, *Lease) error {
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) || !slices.Equal(actions(heard()), []string{"lease", "ack"}) {
			t.Errorf("it ended with %v and said %v", err, heard())
		}
	})
}

func TestAQueueEndsWithItsContextAndWithTheClient(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		ended := b.run(client)
		s := b.next()
		s.hearing(func(said) said { return nil })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		work := func(context.Context, *Lease) error { return nil }
		go func() { done <- client.Queue(ctx, "one", work) }()
		go func() { done <- client.Queue(t.Context(), "two", work) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		s.cut()
		if err, why := <-done, ended(); err != why {
			t.Errorf("it ended with %v, the client with %v", err, why)
		}
	})
}

func TestWhatIsLeasedWhenNobodyWorksAnyMoreIsGivenBack(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		b.run(client)
		s := b.next()
		for number := range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- client.Queue(ctx, "support", func(context.Context, *Lease) error {
					t.Error("it worked")
					return nil
				})
			}()
			asked := s.hear()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
			if number == 0 {
				s.answer(asked, leased(1))
				nack := s.hear()
				expectSaid(t, func() []said { return []said{nack} }, `{"action":"nack","lease_ids":["lease_1"],"retry_after_ms":0}`)
			}
		}
		s.cut()
		expectSaid(t, b.next().hearing(well)) // neither is asked again
	})
}
