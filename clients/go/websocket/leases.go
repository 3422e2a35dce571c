package websocket

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"
	"unicode/utf8"
)

const (
	leaseWait      = 50 * time.Second // that the broker waits for an event in one go
	leaseSeconds   = 60
	leaseHoldEvery = 20 * time.Second
	maxReason      = 256
)

// Lease is an event of a queue that this worker has.
type Lease struct {
	ID        string
	Event     *Event
	Attempt   int // which one this is, from 1
	ExpiresAt time.Time
}

// Message returns the mail of a message.received; of another type nil.
func (l *Lease) Message() *Message { return l.Event.Message() }

// Queue lets events of a queue that many share be worked on, one after another, as they are given to this worker.
//
// Each is held while work is at it; when work returns nil it is acknowledged, else the error is reported and the event is
// given back. Commands that are given with the context of work are done once for the event, and not at all when the
// lease is over; then that context is canceled. Work for which the client is closed ends first, as handlers do. Several
// calls for the same queue take turns at waiting.
//
// It returns nil when the client is closed, ctx.Err() when ctx is done, else an error as Command does.
func (c *Client) Queue(ctx context.Context, queueID string, work func(ctx context.Context, lease *Lease) error) error {
	c.mu.Lock()
	turn := c.turns[queueID]
	if turn == nil {
		turn = make(chan struct{}, 1)
		c.turns[queueID] = turn
	}
	c.mu.Unlock()
	for {
		lease, err := c.lease(ctx, queueID, turn)
		var gone *ConnectionEndedError
		switch {
		case ctx.Err() != nil:
			if lease != nil {
				c.mu.Lock()
				c.giveBack(lease.ID)
				c.mu.Unlock()
				c.returned()
			}
			return ctx.Err()
		case errors.As(err, &gone) && gone.CloseCode == 1000:
			return nil
		case err != nil:
			return err
		case lease != nil:
			c.workOn(ctx, lease, work)
		}
	}
}

// lease asks for an event; nil: there was none in time.
func (c *Client) lease(ctx context.Context, queueID string, turn chan struct{}) (*Lease, error) {
	select {
	case turn <- struct{}{}: // a connection waits once at a queue
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	lease, err := c.askForLease(ctx, queueID)
	<-turn
	var refused *CommandError
	var late *TimedOutError
	switch {
	case errors.As(err, &late):
		return nil, nil
	case errors.As(err, &refused) && slices.Contains([]string{"rate_limited", "draining", "unavailable"}, refused.Code):
		wait := refused.RetryAfter
		if wait == 0 {
			wait = time.Second
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		return nil, nil
	}
	return lease, err
}

func (c *Client) askForLease(ctx context.Context, queueID string) (*Lease, error) {
	c.mu.Lock()
	isEnding := c.state == leaving || c.state == closing
	c.mu.Unlock()
	if isEnding {
		return nil, errClosed()
	}
	ctx, cancel := context.WithTimeout(ctx, leaseWait+leaseHoldEvery)
	defer cancel()
	var said struct {
		Leases []struct {
			LeaseID   string          `json:"lease_id"`
			Event     json.RawMessage `json:"event"`
			Attempt   int             `json:"attempt"`
			ExpiresAt string          `json:"expires_at"`
		} `json:"leases"`
	}
	fields := map[string]any{"queue_id": queueID, "max": 1, "wait_seconds": leaseWait.Seconds(), "seconds": leaseSeconds}
	_, err := c.give(ctx, "lease", fields, "", func(given *pending, result json.RawMessage) {
		decodeKnown(result, &said)
		for _, lease := range said.Leases {
			if given.abandoned {
				c.giveBack(lease.LeaseID)
			} else {
				c.leased++
			}
		}
	})
	if err != nil || len(said.Leases) == 0 {
		return nil, err
	}
	given := said.Leases[0]
	var f frame
	decodeKnown(given.Event, &f)
	return &Lease{given.LeaseID, eventOf(&f, given.Event), given.Attempt, timeOf(given.ExpiresAt)}, nil
}

// giveBack lets others have what nobody here works on; the lock is held.
func (c *Client) giveBack(leaseID string) {
	fields := map[string]any{"lease_ids": []string{leaseID}, "retry_after_ms": 0}
	if given, err := c.commands.give("nack", fields, ""); err == nil {
		given.abandoned = true
		c.send(given)
	}
}

// returned hears that no work is at a lease any more.
func (c *Client) returned() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leased--
	c.bell.ring()
}

var errLeaseLost = &CommandError{Code: "lease_lost", Message: "The event is another worker's by now"}

// workOn lets an event be worked on, holds it meanwhile, and says at the end what became of it.
func (c *Client) workOn(ctx context.Context, lease *Lease, work func(context.Context, *Lease) error) {
	defer c.returned()
	working, cancel := context.WithCancelCause(withWork(ctx, c, lease.Event, lease.ID))
	lease.Event.ctx = working
	held := make(chan bool)
	go func() { held <- c.holdLease(working, cancel, lease) }()
	err := guarded(func() error { return work(working, lease) })
	cancel(nil)
	isLost := <-held
	ctx = context.WithoutCancel(ctx) // what was done is said, whatever has ended
	if err == nil && !isLost {
		isLost = c.sayOfLease(ctx, "ack", lease, nil)
	}
	if err != nil {
		c.report("work on "+lease.Event.EventID, err)
		isLost = c.sayOfLease(ctx, "nack", lease, map[string]any{"reason": reasonOf(err)}) || isLost
	}
	if isLost {
		c.report("work on "+lease.Event.EventID, errLeaseLost)
	}
}

// holdLease holds a lease until the context is done; it says whether it is lost, and cancels the context then.
func (c *Client) holdLease(ctx context.Context, cancel context.CancelCauseFunc, lease *Lease) bool {
	ticker := time.NewTicker(leaseHoldEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		if c.sayOfLease(ctx, "hold", lease, map[string]any{"seconds": leaseSeconds}) {
			cancel(errLeaseLost)
			return true
		}
	}
}

// sayOfLease gives a command about a lease; it says whether that is lost. What fails is reported.
func (c *Client) sayOfLease(ctx context.Context, action string, lease *Lease, more map[string]any) bool {
	ctx, cancel := context.WithTimeout(ctx, leaseHoldEvery)
	defer cancel()
	fields := map[string]any{"lease_ids": []string{lease.ID}}
	for name, value := range more {
		fields[name] = value
	}
	result, err := c.give(ctx, action, fields, "", nil)
	if err != nil {
		if !errors.Is(err, context.Canceled) { // the work has ended meanwhile
			c.report(action+" of "+lease.Event.EventID, err)
		}
		return false
	}
	var said struct {
		Lost []string `json:"lost"`
	}
	decodeKnown(result, &said)
	return slices.Contains(said.Lost, lease.ID)
}

// reasonOf returns an error's words, as long as the broker takes them, in whole characters.
func reasonOf(err error) string {
	words := err.Error()
	for characters := range words {
		if utf8.RuneCountInString(words[:characters]) == maxReason {
			return words[:characters]
		}
	}
	return words
}
