package websocket

import (
	"context"
	"encoding/json"
	"errors"
)

// SubscribeOption changes how inboxes are subscribed to.
type SubscribeOption func(*subscribing)

type subscribing struct {
	since      string
	eventTypes []string
}

// Since lets events come from there on: a cursor, a duration such as "5m", or a time.
func Since(since string) SubscribeOption { return func(s *subscribing) { s.since = since } }

// EventTypes replaces the types that the client follows, of all inboxes.
func EventTypes(types ...string) SubscribeOption {
	return func(s *subscribing) { s.eventTypes = append([]string{}, types...) }
}

// Subscription is what is followed now.
type Subscription struct {
	InboxIDs []string `json:"inbox_ids"` // All alone for all
	Cursor   string   `json:"cursor"`    // where it took effect; empty: the client is not connected
	Replay   *Replay  `json:"replay"`    // with Since
}

// Replay is what came of a Since.
type Replay struct {
	Recovered bool `json:"recovered"` // nothing is missing
	Count     int  `json:"count"`
}

var errNoInbox = errors.New("websocket: no inbox is named; All stands for all")

// Subscribe follows more inboxes, over reconnects too; []string{All} is all. Before the connection is open it is what the
// opening asks for. Errors are those of Command.
func (c *Client) Subscribe(ctx context.Context, inboxIDs []string, options ...SubscribeOption) (*Subscription, error) {
	if len(inboxIDs) == 0 {
		return nil, errNoInbox
	}
	var asked subscribing
	for _, option := range options {
		option(&asked)
	}
	c.mu.Lock()
	if c.isClosed() {
		defer c.mu.Unlock()
		return nil, errStaysClosed()
	}
	if c.connection == nil && (asked.since == "" || c.place.received == "") {
		defer c.mu.Unlock()
		c.selection.add(inboxIDs)
		if asked.since != "" {
			c.since = asked.since
		}
		if asked.eventTypes != nil {
			c.eventTypes = asked.eventTypes
		}
		return &Subscription{InboxIDs: c.selection.wanted()}, nil
	}
	c.mu.Unlock()
	fields := map[string]any{"inbox_ids": inboxIDs}
	if asked.since != "" {
		fields["since"] = asked.since
	}
	if asked.eventTypes != nil {
		fields["event_types"] = asked.eventTypes
	}
	return c.follow(ctx, "subscribe", fields, asked.eventTypes)
}

// Unsubscribe follows inboxes no longer; []string{All} is all. Errors are those of Command.
func (c *Client) Unsubscribe(ctx context.Context, inboxIDs []string) (*Subscription, error) {
	if len(inboxIDs) == 0 {
		return nil, errNoInbox
	}
	c.mu.Lock()
	if c.isClosed() {
		defer c.mu.Unlock()
		return nil, errStaysClosed()
	}
	if c.connection == nil {
		defer c.mu.Unlock()
		if err := c.selection.remove(inboxIDs); err != nil {
			return nil, err
		}
		return &Subscription{InboxIDs: c.selection.wanted()}, nil
	}
	c.mu.Unlock()
	return c.follow(ctx, "unsubscribe", map[string]any{"inbox_ids": inboxIDs}, nil)
}

// follow gives a command that changes what is followed; what the broker says of it is held before the next frame is
// taken, so that no reconnect goes by what was before.
func (c *Client) follow(ctx context.Context, action string, fields map[string]any, types []string) (*Subscription, error) {
	said := &Subscription{}
	_, err := c.give(ctx, action, fields, "", func(_ *pending, result json.RawMessage) {
		decodeKnown(result, said)
		c.selection.hold(said.InboxIDs)
		if types != nil {
			c.eventTypes = types
		}
	})
	if err != nil {
		return nil, err
	}
	return said, nil
}
