package websocket

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"time"
)

// state is where a client is in its life.
type state int

const (
	fresh   state = iota // was never run
	running              // opens connections
	leaving              // ends because its context is done; may be run again
	closing              // ends because of Close
	ended                // may be run again
	over                 // was closed
)

// endTimeout is how long a client that ends waits for what is at work.
const endTimeout = 30 * time.Second

// Client is a client of the stream: one stream of events, over however many connections it takes. It is made by New.
type Client struct {
	config  Config
	where   *url.URL
	invalid error // why it cannot be run

	mu   sync.Mutex // guards all below, and is never held while a function of the program runs
	bell bell

	state      state
	life       *life // of the run that is, or was last
	handlers   handlers
	selection  selection
	eventTypes []string
	since      string // where the first opening is to begin, if nothing is known
	clientID   string
	place      place
	seen       seen
	commands   commands
	queue      queue
	leased     int // events of queues that are being worked on
	notices    notices
	backOff    backOff

	ready      ready
	connection *connection
	late       map[string]bool // subscribes that belong to the opening and are not answered yet
	lateSince  string          // where to open again while there are any
	askedWait  time.Duration   // how long the broker asked to wait before it went
	hurry      chan struct{}   // closed to end the wait before the next attempt
	canAck     bool            // whether the broker takes acknowledgements
	turns      map[string]chan struct{}

	acknowledging chan struct{} // holds one while an acknowledgement is on its way

	storing sync.Mutex // guards kept, and orders what is kept
	loaded  bool
	kept    Kept
}

// life is what one run of a client has of its own.
type life struct {
	handling    context.Context // of handlers: done when the client has waited for them
	stop        context.CancelFunc
	connections context.Context // done when no other is to be opened, and the one that is open says goodbye
	goodbye     context.CancelFunc
	tasks       sync.WaitGroup // the client's own goroutines, beside handlers
	idle        chan struct{}  // closed when the connections have ended, and no handler of events is at work
}

// New returns a client. What is wrong with the configuration is returned by Run, Connect and every command.
func New(config Config) *Client {
	c := &Client{}
	c.config, c.where, c.invalid = config.resolved()
	config = c.config
	c.bell.mu = &c.mu
	c.selection = newSelection(config.InboxIDs)
	c.eventTypes = config.EventTypes
	if config.ClientID != "" && config.CursorStore == nil && config.Ack != AckOff {
		c.since = "acked"
	}
	c.clientID = config.ClientID
	c.place = newPlace(config.Ack == AckAuto)
	c.seen = newSeen()
	c.queue = queue{concurrency: config.Concurrency, order: config.Order}
	c.queue.begin()
	c.backOff = backOff{first: config.ReconnectDelay}
	c.canAck = true
	c.acknowledging = make(chan struct{}, 1)
	c.turns = map[string]chan struct{}{}
	if c.invalid != nil {
		c.commands.ended = c.invalid
	} else if config.APIKey != "" && isInTheClear(c.where) {
		config.Logger.Warn("daimon.email: the key goes over the network in the clear: use wss://", "host", c.where.Hostname())
	}
	return c
}

// Connect runs the client until it is closed: Run with no end of its own.
func (c *Client) Connect() error { return c.Run(context.Background()) }

// Run runs the client until it is closed, then it returns nil; or until it cannot go on, then it returns a
// *ConnectionEndedError; or until ctx is done, then it returns ctx.Err(). In every case handlers that are at work finish
// first (30 s at most); where it is closed, or ctx is done, what they did is acknowledged and goodbye is said.
func (c *Client) Run(ctx context.Context) error {
	if c.invalid != nil {
		return c.invalid
	}
	if err := c.load(ctx); err != nil {
		return err
	}
	life, err := c.begin(ctx)
	if err != nil {
		return err
	}
	stopWatching := context.AfterFunc(ctx, func() { c.leave(leaving) })
	defer stopWatching()
	why := c.live(life)
	closedBy := c.end(life, why)
	switch {
	case why != nil:
		return why
	case closedBy == leaving:
		return ctx.Err()
	}
	return nil
}

func (c *Client) begin(ctx context.Context) (*life, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed() {
		return nil, errStaysClosed()
	}
	if c.state == running || c.state == leaving {
		return nil, errors.New("websocket: the client is run already")
	}
	c.state = running
	c.commands.ended = nil
	c.queue.begin()
	c.leased = 0
	for _, event := range c.place.beginAgain() {
		c.seen.forget(event) // it comes again
	}
	l := &life{idle: make(chan struct{})}
	l.handling, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.connections, l.goodbye = context.WithCancel(l.handling)
	c.life = l
	if c.config.Ack == AckAuto {
		l.tasks.Go(func() { c.acknowledgeEachSecond(l.connections) })
	}
	return l, nil
}

// end ends what is left of a run; it returns what state it was in. why is nil where it was closed.
func (c *Client) end(l *life, why *ConnectionEndedError) state {
	c.mu.Lock()
	before := c.state
	if before == running {
		c.state = leaving
	}
	if why == nil {
		c.commands.end(errClosed())
	} else {
		c.commands.end(why)
	}
	c.queue.stopped = true
	c.bell.ring()
	c.mu.Unlock()
	l.goodbye()
	patience, cancel := context.WithTimeout(l.handling, endTimeout)
	_ = c.bell.until(patience, c.isIdle)
	close(l.idle)
	_ = c.bell.until(patience, c.notices.told)
	cancel()
	l.stop()
	l.tasks.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == closing {
		c.state = over
	} else {
		c.state = ended
	}
	return before
}

// isIdle says whether nothing of the program is at work on an event; the lock is held.
func (c *Client) isIdle() bool { return c.queue.running == 0 && c.leased == 0 }

// Close ends the client: it hands nothing more on, waits for the handlers that are at work (30 s at most), acknowledges,
// and says goodbye. With the context of a handler it returns at once, and the client ends when the handler has returned.
// It returns ctx.Err() if ctx is done before. A client that was closed is not run again.
func (c *Client) Close(ctx context.Context) error {
	l := c.leave(closing)
	if l == nil || atWorkOf(ctx).isOf(c) {
		return nil
	}
	select {
	case <-l.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isClosed says whether the client was closed, or is about to be; the lock is held.
func (c *Client) isClosed() bool { return c.state == closing || c.state == over }

// leave begins to end the client; it returns what is to be waited for.
func (c *Client) leave(why state) *life {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state == running:
		c.state = why
		c.queue.stopped = true
		c.commands.refuseAll("lease", errClosed())
		l := c.life
		l.tasks.Go(func() { c.finish(l) })
		c.bell.ring()
		return l
	case c.state == leaving && why == closing:
		c.state = closing
		return c.life
	case c.state == closing:
		return c.life
	case why == closing:
		c.state = over
		c.commands.end(errClosed())
	}
	return nil
}

// finish lets the handlers that are at work end, acknowledges, and lets the connection say goodbye.
func (c *Client) finish(l *life) {
	defer l.goodbye()
	patience, cancel := context.WithTimeout(l.connections, endTimeout)
	defer cancel()
	if c.bell.until(patience, c.isIdle) == nil && c.config.Ack == AckAuto {
		c.acknowledge(patience)
	}
}

// Pause hands no more events to handlers; what comes waits, and beyond 8 MiB the broker keeps it.
func (c *Client) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue.paused = true
}

// Resume hands on again.
func (c *Client) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue.paused = false
	c.pump()
}

// ReconnectNow ends the wait before the next attempt to connect.
func (c *Client) ReconnectNow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hurry != nil {
		close(c.hurry)
		c.hurry = nil
	}
}
