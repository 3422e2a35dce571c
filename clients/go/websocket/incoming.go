package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// frame is what the broker sends, of whatever type.
type frame struct {
	Type             string          `json:"type"`
	EventID          string          `json:"event_id"`
	InboxID          string          `json:"inbox_id"`
	CreatedAt        string          `json:"created_at"`
	Cursor           string          `json:"cursor"`
	Payload          json.RawMessage `json:"payload"`
	RequestID        string          `json:"request_id"`
	Action           string          `json:"action"`
	Result           json.RawMessage `json:"result"`
	Error            *frameError     `json:"error"`
	Duplicate        bool            `json:"duplicate"`
	From             string          `json:"from"`
	To               string          `json:"to"`
	Count            *int            `json:"count"`
	InboxIDs         []string        `json:"inbox_ids"`
	ReconnectAfterMS float64         `json:"reconnect_after_ms"`
}

// ready is the first frame of a connection.
type ready struct {
	Type             string   `json:"type"`
	Cursor           string   `json:"cursor"`
	InboxIDs         []string `json:"inbox_ids"`
	HeartbeatSeconds float64  `json:"heartbeat_seconds"`
	ReplaySeconds    float64  `json:"replay_seconds"`
	Limits           struct {
		MaxMessageBytes int `json:"max_message_bytes"`
	} `json:"limits"`
}

func parseReady(text []byte) (ready, error) {
	var said ready
	if err := decodeFrame(text, &said); err != nil || said.Type != "connection.ready" || said.Cursor == "" {
		return said, errors.New("the other side is no broker")
	}
	return said, nil
}

const maxSeconds = 1e9 // that a time.Duration holds, and more than anybody means

func (r *ready) heartbeat() time.Duration { return seconds(r.HeartbeatSeconds, 30) }
func (r *ready) window() time.Duration    { return seconds(r.ReplaySeconds, 300) }
func (r *ready) maxMessageBytes() int {
	if r.Limits.MaxMessageBytes <= 0 {
		return 1_048_576
	}
	return r.Limits.MaxMessageBytes
}

func seconds(said, unless float64) time.Duration {
	if said <= 0 {
		said = unless
	}
	return time.Duration(min(said, maxSeconds) * float64(time.Second))
}

// takeText takes a text of the broker. One that cannot be read is reported.
func (c *Client) takeText(ctx context.Context, text []byte) {
	var f frame
	err := decodeFrame(text, &f)
	if err == nil && f.Type == "" {
		err = errors.New("it has no type")
	}
	c.mu.Lock()
	before := c.place.handled
	if err == nil {
		err = c.takeFrame(&f, text)
	}
	if err != nil {
		c.notifyFailure("a frame that cannot be read", err)
	}
	hasMoved := c.place.handled != before
	c.mu.Unlock()
	if hasMoved {
		c.keep(ctx)
	}
}

// takeFrame takes a frame; the lock is held.
func (c *Client) takeFrame(f *frame, text []byte) error {
	switch f.Type {
	case "response":
		c.takeAnswer(f)
	case "connection.cursor":
		return c.moved(f.Cursor)
	case "connection.updated":
		c.selection.narrow(f.InboxIDs)
	case "replay.gap":
		gap := Gap{From: f.From, To: f.To, Count: f.Count}
		notifyAll(c, c.handlers.gap, "gaps", func(handle func(Gap)) { handle(gap) })
		return c.moved(f.To)
	case "server.draining":
		c.askedWait = seconds(f.ReconnectAfterMS/1_000, 0)
	case "error":
		if f.Error == nil {
			return errors.New("an error that says none")
		}
		c.notifyFailure("a frame", f.Error.command(false))
	default:
		if f.EventID != "" && f.Cursor != "" {
			c.takeEvent(eventOf(f, text), len(text))
		}
	}
	return nil
}

func eventOf(f *frame, text []byte) *Event {
	event := &Event{
		Type: f.Type, EventID: f.EventID, InboxID: f.InboxID, CreatedAt: timeOf(f.CreatedAt), Cursor: f.Cursor,
		Payload: f.Payload, Raw: text,
	}
	if !isObject(event.Payload) {
		event.Payload = json.RawMessage("{}")
	}
	return event
}

// timeOf returns the time of a text; what is none is the zero time, and stops nothing.
func timeOf(text string) time.Time {
	at, _ := time.Parse(time.RFC3339Nano, text)
	return at
}

func (c *Client) takeEvent(event *Event, size int) {
	if !c.seen.isNew(event) {
		_ = c.moved(event.Cursor)
		return
	}
	c.place.came(event)
	c.queue.put(event, size)
	c.pump()
}

func (c *Client) takeAnswer(f *frame) {
	if f.Error == nil && (f.Action == "subscribe" || f.Action == "unsubscribe") {
		var said struct {
			Cursor string `json:"cursor"`
		}
		decodeKnown(f.Result, &said)
		_ = c.moved(said.Cursor) // to go on from with the inboxes as they are now; a replay begins there
	}
	if !c.late[f.RequestID] {
		c.commands.answer(f)
		c.bell.ring()
		return
	}
	delete(c.late, f.RequestID)
	if len(c.late) == 0 {
		c.lateSince = ""
	}
	if f.Error != nil {
		c.notifyFailure("a subscribe that belongs to the opening", f.Error.command(false))
	}
}

func (c *Client) moved(cursor string) error {
	if cursor == "" {
		return errors.New("it has no cursor")
	}
	c.place.moved(cursor)
	return nil
}

// resumeFrom is where the next connection is to begin; the lock is held.
func (c *Client) resumeFrom() string {
	for _, cursor := range []string{c.lateSince, c.place.received, c.since} {
		if cursor != "" {
			return cursor
		}
	}
	return ""
}

// rest returns what is to be sent after an opening for what it did not name: late did not fit into it, and other inboxes
// may have been subscribed to, or unsubscribed, meanwhile. The lock is held.
func (c *Client) rest(opened opening, late []string) []outgoing {
	added, removed := c.selection.since(opened.names)
	if len(opened.names) == 0 { // the key's own inboxes, where nothing is named
		removed = c.ready.InboxIDs
	}
	c.late, c.lateSince = map[string]bool{}, ""
	if len(late) > 0 {
		c.lateSince = opened.since
		if opened.since == "" || opened.since == "acked" {
			c.lateSince = c.ready.Cursor
		}
	}
	var texts []outgoing
	say := func(said map[string]any) {
		text, _ := json.Marshal(said) // strings and lists of them: it cannot fail
		texts = append(texts, outgoing{text: text})
	}
	if len(removed) > 0 {
		say(map[string]any{"action": "unsubscribe", "inbox_ids": removed})
	}
	subscribe := func(names []string, since string) {
		for _, part := range chunks(names, c.ready.maxMessageBytes()/2) {
			requestID := fmt.Sprintf("late:%d", len(c.late))
			c.late[requestID] = true
			said := map[string]any{"action": "subscribe", "request_id": requestID, "inbox_ids": part}
			if since != "" {
				said["since"] = since
			}
			say(said)
		}
	}
	subscribe(late, c.lateSince)
	subscribe(added, "")
	return texts
}
