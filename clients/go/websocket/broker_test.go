package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// fakeBroker is a broker that does what a test says, in memory and in the time of its bubble.
type fakeBroker struct {
	t      *testing.T
	opened chan *served
	dialed chan net.Conn

	mu      sync.Mutex
	refuse  []func(w http.ResponseWriter) // the next openings
	openers []*http.Request
	at      []time.Time // when each was asked for
	drops   bool        // whether no connection is let in
}

// played runs a test with a broker in a bubble. No goroutine may be left behind at its end.
func played(t *testing.T, test func(t *testing.T, b *fakeBroker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{t: t, opened: make(chan *served, 100), dialed: make(chan net.Conn)}
		server := &http.Server{Handler: b}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(b)
		}()
		t.Cleanup(func() {
			_ = server.Close()
			<-served
			synctest.Wait()
			for len(b.opened) > 0 { // nobody asked for these
				(<-b.opened).cut()
			}
		})
		test(t, b)
	})
}

func (b *fakeBroker) Accept() (net.Conn, error) {
	conn, isOpen := <-b.dialed
	if !isOpen {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (b *fakeBroker) Close() error   { close(b.dialed); return nil }
func (b *fakeBroker) Addr() net.Addr { return &net.TCPAddr{} }

// dial is a road to the broker.
func (b *fakeBroker) dial(context.Context, string, string) (net.Conn, error) {
	b.mu.Lock()
	drops := b.drops
	if drops {
		b.at = append(b.at, time.Now())
	}
	b.mu.Unlock()
	if drops {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	b.dialed <- theirs
	return ours, nil
}

func (b *fakeBroker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.openers, b.at = append(b.openers, r), append(b.at, time.Now())
	var refuse func(http.ResponseWriter)
	if len(b.refuse) > 0 {
		refuse, b.refuse = b.refuse[0], b.refuse[1:]
	}
	b.mu.Unlock()
	if refuse != nil {
		refuse(w)
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		b.t.Error(err)
		return
	}
	conn.SetReadLimit(-1)
	s := &served{b: b, conn: conn, query: map[string]string{}, ended: make(chan struct{})}
	for name, values := range r.URL.Query() {
		s.query[name] = values[0]
	}
	b.opened <- s
	<-s.ended
}

// refusing lets an opening be refused.
func (b *fakeBroker) refusing(status int, code string, retryAfter string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = append(b.refuse, func(w http.ResponseWriter) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"code":%q,"message":"no"}}`, code)
	})
}

// attempts returns when connections were asked for.
func (b *fakeBroker) attempts() []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.at)
}

func (b *fakeBroker) setDrops(drops bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drops = drops
}

type said map[string]any

// served is one connection, as the broker sees it.
type served struct {
	b      *fakeBroker
	conn   *websocket.Conn
	query  map[string]string
	ended  chan struct{}
	ending sync.Once
}

// next returns the next connection, which is ready.
func (b *fakeBroker) next(ready ...said) *served {
	b.t.Helper()
	s := b.asked()
	s.ready(ready...)
	synctest.Wait() // the client knows it, too
	return s
}

// asked returns the next connection, to which nothing was said yet.
func (b *fakeBroker) asked() *served {
	b.t.Helper()
	s := <-b.opened
	b.t.Cleanup(s.cut)
	return s
}

func (s *served) ready(more ...said) {
	first := said{
		"type": "connection.ready", "connection_id": "conn_1", "account_id": "acct", "inbox_ids": []string{"*"},
		"cursor": "c0", "heartbeat_seconds": 30, "replay_seconds": 300, "limits": said{"max_message_bytes": 1_048_576},
	}
	for _, m := range more {
		for name, value := range m {
			first[name] = value
		}
	}
	s.say(first)
}

func (s *served) say(frame said) {
	s.b.t.Helper()
	text, err := json.Marshal(frame)
	if err != nil {
		s.b.t.Fatal(err)
	}
	if err := s.conn.Write(context.Background(), websocket.MessageText, text); err != nil {
		s.b.t.Errorf("the broker could not say %s: %v", text, err)
	}
}

func mail(number int, more ...said) said {
	message := said{"message_id": fmt.Sprintf("msg_%d", number), "from": "ada@example.com", "subject": fmt.Sprintf("Mail %d", number)}
	event := said{
		"type": "message.received", "event_id": fmt.Sprintf("evt_%d", number), "inbox_id": "inbox_a",
		"created_at": "2026-11-23T10:00:00.123Z", "cursor": fmt.Sprintf("c%d", number), "payload": said{"message": message},
	}
	for _, m := range more {
		for name, value := range m {
			if name == "message" {
				for name, value := range value.(said) {
					message[name] = value
				}
			} else {
				event[name] = value
			}
		}
	}
	return event
}

// hear returns the next text of the client; nil: it has ended.
func (s *served) hear() said {
	_, text, err := s.conn.Read(context.Background())
	if err != nil {
		return nil
	}
	var frame said
	if err := json.Unmarshal(text, &frame); err != nil {
		s.b.t.Errorf("the client said %s", text)
	}
	return frame
}

// hearing answers what the client says, as answer says, and keeps it; it returns what was said so far.
func (s *served) hearing(answer func(frame said) said) func() []said {
	var mu sync.Mutex
	var heard []said
	go func() {
		for {
			frame := s.hear()
			if frame == nil {
				s.cut()
				return
			}
			mu.Lock()
			heard = append(heard, frame)
			mu.Unlock()
			if back := answer(frame); back != nil {
				s.answer(frame, back)
			}
		}
	}()
	return func() []said {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(heard)
	}
}

// answer says what became of a command: a result, or with "error" one.
func (s *served) answer(command said, result said) {
	frame := said{"type": "response", "request_id": command["request_id"], "action": command["action"]}
	if result["error"] != nil {
		frame["error"] = result["error"]
	} else {
		frame["result"] = result
	}
	text, _ := json.Marshal(frame)
	_ = s.conn.Write(context.Background(), websocket.MessageText, text)
}

// cut ends the connection without a goodbye.
func (s *served) cut() {
	s.ending.Do(func() {
		_ = s.conn.CloseNow()
		close(s.ended)
	})
}

// close says goodbye.
func (s *served) close(code int) {
	go func() { // the client's answer is read by whoever hears
		_ = s.conn.Close(websocket.StatusCode(code), "")
		s.cut()
	}()
}

// client returns a client of the broker.
func (b *fakeBroker) client(config Config) *Client {
	config.URL = "ws://localhost"
	if config.APIKey == "" {
		config.APIKey = "dm_live_key"
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	config.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: b.dial, DisableKeepAlives: true}}
	return New(config)
}

// run runs a client beside the test; what is returned ends it if it has not ended, and returns why it did.
func (b *fakeBroker) run(c *Client) (ended func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	end := sync.OnceValue(func() error { return <-done })
	b.t.Cleanup(func() {
		cancel()
		_ = end()
	})
	return end
}

func (b *fakeBroker) eventually(what string, holds func() bool) {
	b.t.Helper()
	synctest.Wait()
	if !holds() {
		b.t.Fatal(what)
	}
}

// recorded is what handlers were called with, in order.
type recorded struct {
	mu    sync.Mutex
	items []string
}

func (r *recorded) add(item string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = append(r.items, item)
}

func (r *recorded) expect(t *testing.T, items ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.items, items) {
		t.Fatalf("handlers got %q instead of %q", r.items, items)
	}
}

func ids(r *recorded) Handler {
	return func(_ context.Context, event *Event) error {
		r.add(event.EventID)
		return nil
	}
}

func actions(heard []said) []string {
	var found []string
	for _, frame := range heard {
		found = append(found, frame["action"].(string))
	}
	return found
}

func well(said) said { return said{"acked": 1} }
