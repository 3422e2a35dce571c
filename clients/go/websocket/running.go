package websocket

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/daimon-email/go-sdk/internal/patience"
)

// readyTimeout is how long the first frame of a connection may take.
const readyTimeout = 30 * time.Second

// live opens connections, one after another, until the client is closed (nil), or no other is to be opened.
func (c *Client) live(l *life) *ConnectionEndedError {
	for {
		end := c.connect(l)
		if l.connections.Err() != nil {
			return nil
		}
		c.mu.Lock()
		notifyAll(c, c.handlers.disconnected, "what is disconnected", func(handle func(string)) { handle(end.reason) })
		asked := c.askedWait
		c.askedWait = 0
		if !c.config.AutoReconnect || !end.comeBack() {
			c.mu.Unlock()
			return end.error()
		}
		wait := c.backOff.next(end, asked, rand.Float64())
		hurry := make(chan struct{})
		c.hurry = hurry
		c.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-hurry:
		case <-l.connections.Done():
		}
		timer.Stop()
	}
}

// connect opens a connection and serves it until it ends.
func (c *Client) connect(l *life) *ending {
	c.mu.Lock()
	asked := opening{c.selection.wanted(), c.eventTypes, c.resumeFrom(), c.clientID}
	c.mu.Unlock()
	address, late := asked.url(c.where)
	credential, err := c.credential(l.connections)
	if err != nil {
		if l.connections.Err() == nil {
			c.mu.Lock()
			c.notifyFailure("the token function", err)
			c.mu.Unlock()
		}
		return notOpened(fmt.Sprintf("there is no token: %v", err))
	}
	s, end := openSocket(l.connections, c.config.HTTPClient, address, credential)
	if end != nil {
		return end
	}
	farewell := make(chan struct{})
	stop := context.AfterFunc(l.connections, func() {
		defer close(farewell)
		s.close()
	})
	end = c.serve(l, s, asked, late)
	if stop() {
		s.drop()
	} else {
		<-farewell
	}
	return end
}

func (c *Client) credential(ctx context.Context) (string, error) {
	if c.config.Token == nil {
		return c.config.APIKey, nil
	}
	var token string
	err := guarded(func() (err error) {
		token, err = c.config.Token(ctx)
		return err
	})
	if err == nil && token == "" {
		err = errors.New("it gave none")
	}
	return token, err
}

// serve takes what comes from a socket until it ends.
func (c *Client) serve(l *life, s *socket, asked opening, late []string) *ending {
	text, end := s.read(readyTimeout)
	if end != nil {
		return end
	}
	said, err := parseReady(text)
	if err != nil {
		return notOpened(err.Error())
	}
	written := make(chan struct{})
	connection := c.joined(s, said, asked, late)
	go func() {
		defer close(written)
		c.write(connection)
	}()
	c.keep(l.handling)
	defer func() {
		c.parted(connection, end)
		if l.connections.Err() == nil {
			s.drop() // else it says goodbye
		}
		<-written
	}()
	for {
		if c.bell.until(l.connections, c.hasRoom) != nil {
			return lost("")
		}
		if text, end = s.read(said.heartbeat() + patience.Grace); end != nil {
			return end
		}
		c.takeText(l.handling, text)
	}
}

// joined hears that a connection is open.
func (c *Client) joined(s *socket, said ready, asked opening, late []string) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready = said
	if c.place.received == "" {
		c.place.moved(said.Cursor)
	}
	c.backOff.attempts = 0
	notifyAll(c, c.handlers.connected, "what is connected", func(handle func()) { handle() })
	opened := &connection{socket: s, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	opened.outbox = c.rest(asked, late)
	c.connection = opened
	for _, given := range c.commands.unanswered() {
		c.send(given)
	}
	opened.ring()
	return opened
}

// parted hears that a connection has ended.
func (c *Client) parted(connection *connection, end *ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connection = nil
	close(connection.ended)
	c.commands.forget()
	if end != nil && end.closeCode == 1009 {
		c.commands.refuseLongest(errTooLarge())
	}
}
