package websocket

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatIsTooLongIsRefusedAtOnceAndTheLongestAfter1009(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{AutoReconnect: true})
		b.run(client)
		s := b.next(said{"limits": said{"max_message_bytes": 1_000}})
		synctest.Wait()
		var refused *CommandError
		if _, err := client.Command(t.Context(), "do", said{"text": strings.Repeat("x", 1_000)}); !errors.As(err, &refused) || refused.Code != "too_large" {
			t.Errorf("it came to %v", err)
		}
		long := make(chan error, 1)
		go func() {
			_, err := client.Command(t.Context(), "do", said{"text": strings.Repeat("x", 500)})
			long <- err
		}()
		go func() { _, _ = client.Ping(t.Context()) }()
		synctest.Wait()
		go func() {
			for s.hear() != nil {
			}
		}()
		s.close(1009)
		again := b.next().hearing(well)
		if err := <-long; !errors.As(err, &refused) || refused.Code != "too_large" {
			t.Errorf("it came to %v", err)
		}
		expectSaid(t, again, `{"action":"ping"}`)
	})
}

func TestNoMoreThanAThousandCommandsOrEightMebibytesWait(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for size, most := range map[int]int{0: 1_000, 1_000_000: 9} {
			client := b.client(Config{})
			for range most {
				go func() { _, _ = client.Command(ctx, "do", said{"text": strings.Repeat("x", size)}) }()
			}
			synctest.Wait()
			var much *OverflowingError
			if _, err := client.Ping(t.Context()); !errors.As(err, &much) || much.Waiting != most {
				t.Errorf("it came to %v", err)
			}
		}
		client := b.client(Config{})
		for _, isFirst := range []bool{true, false} {
			go func() {
				if _, err := client.Command(ctx, "do", nil, RequestID("r1")); isFirst == errors.Is(err, context.Canceled) == false {
					t.Errorf("it came to %v", err)
				}
			}()
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
	})
}

func TestWhatWasAnsweredMakesRoom(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		b.next().hearing(well)
		for range 12 {
			if _, err := client.Command(t.Context(), "do", said{"text": strings.Repeat("x", 900_000)}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestWhatIsOverBeforeItIsWrittenIsNotSent(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		b.run(client)
		s := b.next() // which does not read yet
		for _, action := range []string{"first", "second", "third"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if action == "second" {
				ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			}
			defer cancel()
			go func() { _, _ = client.Command(ctx, action, nil) }()
			synctest.Wait()
		}
		time.Sleep(2 * time.Second)
		expectSaid(t, s.hearing(well), `{"action":"first"}`, `{"action":"third"}`)
	})
}
