package websocket

import "time"

const (
	maxNotices = 1_000
	// noticePatience is how long events wait for who is told of something that came before them.
	noticePatience = time.Second
)

// notices is what is still to be told of the connection, in order, beside the events: it never holds the reader up.
// No event is handed on before who was told of what came earlier has returned, or has had a second for it.
type notices struct {
	waiting []func()
	telling bool // a goroutine tells them
	patient bool // events wait for what is being told
	turn    int  // counts what is told
}

// hold says whether something is to be told before the next event.
func (n *notices) hold() bool { return n.patient || len(n.waiting) > 0 && !n.telling }

// told says whether nothing is left to be told.
func (n *notices) told() bool { return len(n.waiting) == 0 && !n.telling }

// notify lets something be told; the lock is held.
func (c *Client) notify(tell func()) {
	n := &c.notices
	if len(n.waiting) >= maxNotices {
		c.config.Logger.Error("daimon.email: a handler of what happens to the connection does not return; what comes is not told")
		return
	}
	n.waiting = append(n.waiting, tell)
	if !n.telling {
		n.telling, n.patient = true, true
		go c.tell()
	}
}

// notifyFailure lets a failure be reported; the lock is held.
func (c *Client) notifyFailure(what string, err error) {
	c.notify(func() { c.report(what, err) })
}

// notifyAll lets all functions of a program be told something; the lock is held.
func notifyAll[F any](c *Client, told []F, what string, tell func(F)) {
	if len(told) == 0 {
		return
	}
	c.notify(func() {
		for _, handle := range told {
			if err := guarded(func() error { tell(handle); return nil }); err != nil {
				c.report("a handler of "+what, err)
			}
		}
	})
}

// tell tells what waits, until nothing does.
func (c *Client) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := &c.notices
	for len(n.waiting) > 0 {
		next := n.waiting[0]
		n.waiting = n.waiting[1:]
		n.turn++
		n.patient = true
		turn := n.turn
		impatient := time.AfterFunc(noticePatience, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if n.turn == turn {
				n.patient = false
				c.pump()
			}
		})
		c.mu.Unlock()
		next()
		c.mu.Lock()
		impatient.Stop()
	}
	n.telling, n.patient = false, false
	c.pump()
	c.bell.ring()
}
