package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// Event is one event as it came.
type Event struct {
	Type      string
	EventID   string
	InboxID   string // empty: an event of the account
	CreatedAt time.Time
	Cursor    string
	Payload   json.RawMessage // a JSON object
	Raw       json.RawMessage // the whole event, with what this library does not know

	ctx context.Context
}

// Decode decodes the payload into what v points to.
func (e *Event) Decode(v any) error { return json.Unmarshal(e.Payload, v) }

// Message returns the mail of a message.received; of another type nil.
func (e *Event) Message() *Message {
	if e.Type != "message.received" {
		return nil
	}
	var payload struct {
		Message json.RawMessage `json:"message"`
	}
	decodeKnown(e.Payload, &payload)
	message := &Message{Raw: payload.Message, ctx: e.ctx}
	if !isObject(payload.Message) {
		message.Raw = e.Payload
	}
	decodeKnown(message.Raw, message)
	if message.InboxID == "" {
		message.InboxID = e.InboxID
	}
	return message
}

// Bounce returns the payload of a message.bounced; of another type nil.
func (e *Event) Bounce() *Bounce {
	if e.Type != "message.bounced" {
		return nil
	}
	bounce := &Bounce{Raw: e.Payload}
	decodeKnown(e.Payload, bounce)
	return bounce
}

// Complaint returns the payload of a message.complaint; of another type nil.
func (e *Event) Complaint() *Complaint {
	if e.Type != "message.complaint" {
		return nil
	}
	complaint := &Complaint{Raw: e.Payload}
	decodeKnown(e.Payload, complaint)
	return complaint
}

// Account returns the payload of an account.upgraded; of another type nil.
func (e *Event) Account() *Account {
	if e.Type != "account.upgraded" {
		return nil
	}
	account := &Account{Raw: e.Payload}
	decodeKnown(e.Payload, account)
	return account
}

// thread returns what belongs together: the thread, else the inbox.
func (e *Event) thread() string {
	var payload struct {
		ThreadID string `json:"thread_id"`
		Message  struct {
			ThreadID string `json:"thread_id"`
		} `json:"message"`
	}
	decodeKnown(e.Payload, &payload)
	for _, thread := range []string{payload.Message.ThreadID, payload.ThreadID} {
		if thread != "" {
			return thread
		}
	}
	return e.InboxID
}

// Message is a mail that came. What it says was written by a stranger.
type Message struct {
	MessageID string   `json:"message_id"`
	InboxID   string   `json:"inbox_id"`
	From      string   `json:"from"`
	To        []string `json:"to"`
	Subject   string   `json:"subject"`
	Body      string   `json:"body"`
	Labels    []string `json:"labels"`
	InReplyTo string   `json:"in_reply_to"`
	ThreadID  string   `json:"thread_id"`

	Raw json.RawMessage `json:"-"` // all of it, with what this library does not know

	ctx context.Context
}

// Context is that of the handler that was given the message: commands that are given with it are done once for its
// event, and Client.Close returns at once. Of a message that was given to no handler it is the background.
func (m *Message) Context() context.Context {
	if m.ctx == nil {
		return context.Background()
	}
	return m.ctx
}

// Ref names the message, for Client.MarkAsRead.
func (m *Message) Ref() MessageRef { return MessageRef{MessageID: m.MessageID, InboxID: m.InboxID} }

// Bounce is a mail of yours that could not be delivered.
type Bounce struct {
	MessageID string `json:"message_id"`
	Recipient string `json:"recipient"`
	Reason    string `json:"reason"`

	Raw json.RawMessage `json:"-"`
}

// Complaint is a mail of yours that somebody called spam.
type Complaint struct {
	MessageID    string `json:"message_id"`
	Recipient    string `json:"recipient"`
	FeedbackType string `json:"feedback_type"`

	Raw json.RawMessage `json:"-"`
}

// Account is an account that came to another tier.
type Account struct {
	Tier         string `json:"tier"`
	PreviousTier string `json:"previous_tier"`

	Raw json.RawMessage `json:"-"`
}

// Gap is a row of events that left the broker's window before this client could have them.
type Gap struct {
	From  string // empty: the broker knows no beginning
	To    string
	Count *int // how many of them were for this client; nil: the broker cannot know
}

// decodeKnown decodes what has the expected form; members of another form stay empty.
func decodeKnown(data []byte, v any) { _ = json.Unmarshal(data, v) }

// decodeFrame is like it, and returns an error where the text is no JSON object.
func decodeFrame(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	var other *json.UnmarshalTypeError
	if errors.As(err, &other) && isObject(data) {
		return nil
	}
	return err
}

func isObject(data []byte) bool {
	for _, b := range data {
		switch b {
		case ' ', '\t', '\r', '\n':
		default:
			return b == '{'
		}
	}
	return false
}
