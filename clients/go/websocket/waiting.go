package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

const (
	waitUnlessSaid = time.Minute
	maxWaitAtOnce  = time.Hour       // that the broker waits in one go
	answerTimeout  = 5 * time.Second // the answer to a wait may be so late
)

// Wait says what is waited for.
type Wait struct {
	Type    string                  // unless given, message.received
	InboxID string                  // unless given, any
	Where   Where                   // texts to find
	Match   func(event *Event) bool // looks at what fits otherwise; nil: takes it
	Since   string                  // a cursor or a duration such as "5m", from where on what is stored is looked at; unless given, now
	Extract []string                // "code", "link": what is to be read out of it
	// Timeout is how long; unless given, until the context's deadline if it has one, else a minute. Negative: it looks at
	// what is stored and does not wait.
	Timeout time.Duration
}

// Where is texts to find, in any case; those that are empty are not looked for.
type Where struct {
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
	Subject   string `json:"subject,omitempty"`
	Contains  string `json:"contains,omitempty"`
	ThreadID  string `json:"thread_id,omitempty"`
	InReplyTo string `json:"in_reply_to,omitempty"`
}

// Found is the event that a wait found, and what was read out of it.
type Found struct {
	Event  *Event
	Cursor string
	Codes  []string // candidates, the likeliest first: a stranger wrote the mail
	Links  []Link   // the same
}

// Link is a link in a mail.
type Link struct {
	URL      string `json:"url"`
	SameSite bool   `json:"same_site"` // it leads to the domain of the mail's sender, or one below or above that
}

// WaitFor returns the first event that is like this, ErrNoMatch if there is none in time. Over a lost connection it goes
// on where it was. Other errors are those of Command.
func (c *Client) WaitFor(ctx context.Context, wait Wait) (*Found, error) {
	deadline := time.Now().Add(wait.timeout(ctx))
	asked := wait.fields()
	since := wait.Since
	if since == "" || since == "now" { // told once: a wait that is sent again over a reconnect begins at the same place
		asked["timeout_seconds"] = 0
		answer, err := c.wait(ctx, asked, time.Until(deadline))
		if err != nil {
			return nil, orNoMatch(err)
		}
		since = answer.Cursor
	}
	for {
		left := max(0, min(time.Until(deadline), maxWaitAtOnce))
		asked["since"], asked["timeout_seconds"] = since, left.Seconds()
		answer, err := c.wait(ctx, asked, left)
		isOver := !time.Now().Before(deadline)
		var late *TimedOutError
		switch {
		case errors.As(err, &late) && ctx.Err() == nil && !isOver:
			continue // the connection was away
		case err != nil:
			return nil, orNoMatch(err)
		}
		since = answer.Cursor
		if !isObject(answer.Event) {
			if isOver {
				return nil, ErrNoMatch
			}
			continue
		}
		if found := answer.found(); wait.Match == nil || wait.Match(found.Event) {
			return found, nil
		}
	}
}

func (w *Wait) timeout(ctx context.Context) time.Duration {
	switch deadline, hasDeadline := ctx.Deadline(); {
	case w.Timeout < 0:
		return 0
	case w.Timeout > 0:
		return w.Timeout
	case hasDeadline:
		return time.Until(deadline)
	}
	return waitUnlessSaid
}

func (w *Wait) fields() map[string]any {
	eventType := w.Type
	if eventType == "" {
		eventType = "message.received"
	}
	fields := map[string]any{"event_types": []string{eventType}, "extract": append([]string{}, w.Extract...)}
	if w.InboxID != "" {
		fields["inbox_ids"] = []string{w.InboxID}
	}
	if w.Where != (Where{}) {
		fields["where"] = w.Where
	}
	return fields
}

type waitAnswer struct {
	Event     json.RawMessage `json:"event"`
	Cursor    string          `json:"cursor"`
	Extracted struct {
		Code []string `json:"code"`
		Link []Link   `json:"link"`
	} `json:"extracted"`
}

func (c *Client) wait(ctx context.Context, fields map[string]any, left time.Duration) (*waitAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, left+answerTimeout)
	defer cancel()
	result, err := c.give(ctx, "wait_for", fields, "", nil)
	if err != nil {
		return nil, err
	}
	answer := &waitAnswer{}
	decodeKnown(result, answer)
	return answer, nil
}

func (a *waitAnswer) found() *Found {
	var f frame
	decodeKnown(a.Event, &f)
	return &Found{Event: eventOf(&f, a.Event), Cursor: a.Cursor, Codes: a.Extracted.Code, Links: a.Extracted.Link}
}

// orNoMatch says of a wait that had no answer in time that it found nothing.
func orNoMatch(err error) error {
	var late *TimedOutError
	if errors.As(err, &late) {
		return ErrNoMatch
	}
	return err
}
