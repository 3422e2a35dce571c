package websocket

import (
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAnOpeningAsksForWhatIsWantedBesideWhatStandsInTheURL(t *testing.T) {
	where, err := streamOf("wss://broker.example/stream?tenant=a%20b")
	if err != nil {
		t.Fatal(err)
	}
	asked := opening{[]string{"ada+tag@x", "b"}, []string{"a.*", "c"}, "c1", "me"}
	address, rest := asked.url(where)
	expected := "wss://broker.example/stream?tenant=a%20b&inbox_ids=ada%2Btag%40x%2Cb&event_types=a.%2A%2Cc&since=c1&client_id=me"
	if address != expected || rest != nil {
		t.Errorf("it opens %q, and asks later for %v", address, rest)
	}
}

func TestARetryAfterIsSecondsOrADate(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for value, expected := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, " 120 ": 2 * time.Minute, "-1": 0, "soon": 0, "99999999999": 0,
		now.Add(time.Hour).Format(http.TimeFormat): time.Hour, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if found := retryAfter(value, now); found != expected {
			t.Errorf("%q is %v instead of %v", value, found, expected)
		}
	}
}

func TestAWaitIsAtMostTwiceTheOneBeforeAndAMinute(t *testing.T) {
	b := backOff{first: 5 * time.Second}
	for _, expected := range []time.Duration{5, 10, 20, 40, 60, 60} {
		if wait := b.next(lost(""), 0, 1); wait != expected*time.Second {
			t.Errorf("a wait was %v instead of %d s", wait, expected)
		}
	}
	if wait := b.next(lost(""), 0, 0); wait != 0 {
		t.Errorf("without chance it is %v", wait)
	}
	if wait := b.next(&ending{status: 503, wait: time.Hour}, 0, 1); wait != time.Hour+time.Minute {
		t.Errorf("with Retry-After it is %v", wait)
	}
	huge := backOff{first: 1 << 62}
	if wait := huge.next(lost(""), 0, 1); wait != time.Minute {
		t.Errorf("with a delay of years it is %v", wait)
	}
	for range 100 {
		if wait := huge.next(lost(""), 0, 1); wait != time.Minute {
			t.Fatalf("with a delay of years it is %v", wait)
		}
	}
}

func TestUnderAllNoSingleInboxIsLeft(t *testing.T) {
	s := newSelection(nil)
	var refused *CommandError
	if err := s.remove([]string{"inbox_a"}); !errors.As(err, &refused) || refused.Code != "invalid_params" {
		t.Errorf("it came to %v", err)
	}
	if err := s.remove([]string{All}); err != nil || len(s.wanted()) != 0 {
		t.Errorf("it is %v, %v", s.wanted(), err)
	}
	s.narrow([]string{"inbox_b"})
	s.add([]string{"inbox_a"})
	if found := strings.Join(s.wanted(), " "); found != "inbox_a inbox_b" {
		t.Errorf("it is %v", found)
	}
}

func TestWhatIsWantedIsComparedWithWhatWasOpened(t *testing.T) {
	for _, c := range []struct{ wanted, opened, added, removed string }{
		{"*", "*", "", ""},
		{"*", "a", "*", ""},
		{"a", "*", "a", "*"},
		{"a b", "b c", "a", "c"},
	} {
		s := newSelection(strings.Fields(c.wanted))
		added, removed := s.since(strings.Fields(c.opened))
		if strings.Join(added, " ") != c.added || strings.Join(removed, " ") != c.removed {
			t.Errorf("%v: %v, %v", c, added, removed)
		}
	}
}

func TestLongListsAreAskedForInParts(t *testing.T) {
	parts := chunks([]string{"aaaa", "bbbb", "cccc", strings.Repeat("d", 50)}, 16)
	if len(parts) != 3 || len(parts[0]) != 2 || len(parts[2]) != 1 {
		t.Errorf("they are %v", parts)
	}
}

func TestTenThousandEventsAreKnownAndNoMore(t *testing.T) {
	s := newSeen()
	event := func(number int) *Event { return &Event{EventID: strings.Repeat("x", number)} }
	for number := range maxKnown + 1 {
		if !s.isNew(event(number)) {
			t.Fatal("a new one was known")
		}
	}
	if s.isNew(event(2)) || !s.isNew(event(0)) {
		t.Error("not the oldest was forgotten")
	}
	s.forget(event(2))
	if !s.isNew(event(2)) {
		t.Error("what was forgotten is known")
	}
}

func TestAStoreHoldsWhatWasSavedLast(t *testing.T) {
	store := FileStore(filepath.Join(t.TempDir(), "place"))
	if kept, err := store.Load(t.Context()); kept != nil || err != nil {
		t.Errorf("at first it holds %v, %v", kept, err)
	}
	for _, saved := range []Kept{{"agent", ""}, {"agent", "c1"}} {
		if err := store.Save(t.Context(), saved); err != nil {
			t.Fatal(err)
		}
		if kept, err := store.Load(t.Context()); err != nil || *kept != saved {
			t.Errorf("it holds %v, %v", kept, err)
		}
	}
	if err := FileStore(filepath.Join(string(store), "below")).Save(t.Context(), Kept{}); err == nil {
		t.Error("it was saved below a file")
	}
}

func TestAReasonIsAsLongAsTheBrokerTakes(t *testing.T) {
	for said, expected := range map[string]int{"ä": 1, strings.Repeat("ä", 300): 256, strings.Repeat("x", 256): 256, "": 0} {
		if found := len([]rune(reasonOf(errors.New(said)))); found != expected {
			t.Errorf("it has %d characters instead of %d", found, expected)
		}
	}
}

func TestAnErrorSaysWhatItIs(t *testing.T) {
	for _, err := range []error{
		&ConnectionEndedError{Message: "the key was revoked"}, &OverflowingError{7}, &BadSignatureError{"old"}, &TimedOutError{"ping"},
	} {
		if !strings.HasPrefix(err.Error(), "websocket: ") {
			t.Errorf("%T says %q", err, err)
		}
	}
}
