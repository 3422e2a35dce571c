package websocket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// commandTimeout is how long a command waits for its answer if its context has no deadline.
const commandTimeout = 30 * time.Second

// The broker's own actions, which are not done once for an event.
var ownActions = []string{"subscribe", "unsubscribe", "publish", "ping", "ack", "hold", "nack", "lease", "wait_for"}

// CommandOption changes how a command is given.
type CommandOption func(*commandOptions)

type commandOptions struct {
	once      *string
	requestID string
}

// Once lets a command be done once for a name, whoever gives it. In a handler it replaces the event's id; an empty name
// leaves that away.
func Once(name string) CommandOption { return func(o *commandOptions) { o.once = &name } }

// RequestID names a command, instead of a random name: the same again with the same content is not done again.
func RequestID(id string) CommandOption { return func(o *commandOptions) { o.requestID = id } }

// Command gives a command and returns its result. Params are a JSON object: a struct, a map, or nil; members that are
// null are left out. It waits until ctx is done, 30 s if that has no deadline. With the context of a handler it is done
// once for the event that is handled, if the command has an inbox_id.
//
// It returns a *CommandError if it is refused, a *TimedOutError, an *OverflowingError, and a *ConnectionEndedError if the
// client ends before; ctx.Err() if ctx was canceled.
func (c *Client) Command(ctx context.Context, action string, params any, options ...CommandOption) (json.RawMessage, error) {
	fields, err := fieldsOf(params)
	if err != nil {
		return nil, fmt.Errorf("websocket: params of %s: %w", action, err)
	}
	var asked commandOptions
	for _, option := range options {
		option(&asked)
	}
	work := atWorkOf(ctx)
	isOwn := slices.Contains(ownActions, action)
	switch {
	case asked.once != nil && *asked.once != "":
		fields["once"] = *asked.once
	case asked.once == nil && work != nil && !isOwn && fields["once"] == nil && fields["inbox_id"] != nil:
		inboxID, _ := json.Marshal(fields["inbox_id"])
		fields["once"] = work.once(action, string(inboxID))
	}
	if work != nil && work.leaseID != "" && !isOwn && fields["lease_id"] == nil {
		fields["lease_id"] = work.leaseID
	}
	return c.give(ctx, action, fields, asked.requestID, nil)
}

func fieldsOf(params any) (map[string]any, error) {
	fields := map[string]any{}
	if params == nil {
		return fields, nil
	}
	text, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, errors.New("they are no JSON object")
	}
	for name, value := range members {
		if !bytes.Equal(value, []byte("null")) {
			fields[name] = value
		}
	}
	return fields, nil
}

// give gives a command as it is, and waits for its answer. What a lease brings after that is heard all the same.
func (c *Client) give(
	ctx context.Context, action string, fields map[string]any, requestID string, heard hearing,
) (json.RawMessage, error) {
	if _, hasDeadline := ctx.Deadline(); !hasDeadline {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commandTimeout)
		defer cancel()
	}
	c.mu.Lock()
	given, err := c.commands.give(action, fields, requestID)
	if err == nil {
		given.heard = heard
		c.send(given)
		c.bell.ring() // who reads, reads on
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-given.answered:
	case <-ctx.Done():
		c.mu.Lock()
		isOver := c.commands.waits(given)
		if isOver && action == "lease" && c.connection != nil {
			given.abandoned = true
		} else {
			c.commands.drop(given)
		}
		c.mu.Unlock()
		if isOver && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, &TimedOutError{Action: action}
		}
		if isOver {
			return nil, ctx.Err()
		}
	}
	return given.result, given.err
}

// Email is a mail to send.
type Email struct {
	InboxID   string
	To        []string
	Subject   string
	Body      string
	InReplyTo string         // the message_id that it answers
	More      map[string]any // what else your deployment knows
}

// Sent is what is said of a mail that was sent.
type Sent struct {
	MessageID string          `json:"message_id"`
	Raw       json.RawMessage `json:"-"` // all of it
}

// SendEmail sends a mail. Errors are those of Command.
func (c *Client) SendEmail(ctx context.Context, email Email, options ...CommandOption) (*Sent, error) {
	fields := map[string]any{"inbox_id": email.InboxID, "to": email.To, "subject": email.Subject, "body": email.Body}
	if email.InReplyTo != "" {
		fields["in_reply_to"] = email.InReplyTo
	}
	for name, value := range email.More {
		fields[name] = value
	}
	result, err := c.Command(ctx, "send_email", fields, options...)
	if err != nil {
		return nil, err
	}
	sent := &Sent{Raw: result}
	decodeKnown(result, sent)
	return sent, nil
}

// MessageRef names a message.
type MessageRef struct {
	MessageID string `json:"message_id"`
	InboxID   string `json:"inbox_id,omitempty"`
}

// MarkAsRead marks a message as read; it returns what your deployment says of it. Errors are those of Command.
func (c *Client) MarkAsRead(ctx context.Context, message MessageRef, options ...CommandOption) (json.RawMessage, error) {
	return c.Command(ctx, "mark_as_read", message, options...)
}

// NewEvent is an event to publish.
type NewEvent struct {
	Type      string    `json:"type"`
	Payload   any       `json:"payload"`              // a JSON object
	InboxID   string    `json:"inbox_id,omitempty"`   // empty: for the whole account
	EventID   string    `json:"event_id,omitempty"`   // the same again is not published again
	CreatedAt time.Time `json:"created_at,omitzero"`  // zero: now
	AccountID string    `json:"account_id,omitempty"` // of an operator's
}

// Published is what became of an event.
type Published struct {
	EventID   string `json:"event_id"`
	Cursor    string `json:"cursor"`
	Duplicate bool   `json:"duplicate"` // it was published before
}

// Publish publishes events: all, or if one is refused none. Errors are those of Command.
func (c *Client) Publish(ctx context.Context, events ...NewEvent) ([]Published, error) {
	result, err := c.Command(ctx, "publish", map[string]any{"events": events})
	if err != nil {
		return nil, err
	}
	var said struct {
		Events []Published `json:"events"`
	}
	decodeKnown(result, &said)
	return said.Events, nil
}

// Ping asks for a sign of life; it returns the broker's time. Errors are those of Command.
func (c *Client) Ping(ctx context.Context) (time.Time, error) {
	result, err := c.Command(ctx, "ping", nil)
	var said struct {
		ServerTime string `json:"server_time"`
	}
	decodeKnown(result, &said)
	return timeOf(said.ServerTime), err
}

// Acknowledge says what is dealt with.
type Acknowledge struct {
	Cursor   string   // all up to there
	EventIDs []string // single events
}

// Acknowledged is what is said of it.
type Acknowledged struct {
	Cursor  string   `json:"cursor"`
	Acked   int      `json:"acked"`
	Claimed []string `json:"claimed"` // a webhook began with these first
}

// Ack acknowledges, for Config.Ack == AckManual: what is said, and if nothing is, all that handlers have returned from.
// Errors are those of Command.
func (c *Client) Ack(ctx context.Context, what Acknowledge) (*Acknowledged, error) {
	if what.Cursor == "" && what.EventIDs == nil {
		c.mu.Lock()
		what.Cursor = c.place.handled
		c.mu.Unlock()
	}
	fields := map[string]any{}
	if what.Cursor != "" {
		fields["cursor"] = what.Cursor
	}
	if what.EventIDs != nil {
		fields["event_ids"] = what.EventIDs
	}
	result, err := c.Command(ctx, "ack", fields)
	if err != nil {
		return nil, err
	}
	said := &Acknowledged{}
	decodeKnown(result, said)
	return said, nil
}

// Hold says that events are being worked on for so long, an hour at most: their webhook waits. Errors are those of
// Command.
func (c *Client) Hold(ctx context.Context, eventIDs []string, time time.Duration) error {
	_, err := c.Command(ctx, "hold", map[string]any{"event_ids": eventIDs, "seconds": time.Seconds()})
	return err
}
