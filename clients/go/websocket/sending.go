package websocket

// connection is an open connection as those see it who send; the client's lock guards it.
type connection struct {
	socket *socket
	outbox []outgoing
	wake   chan struct{} // holds one: there is something in the outbox
	ended  chan struct{}
}

// outgoing is a text to be sent; command is what it gives, which may be over before that.
type outgoing struct {
	text    []byte
	command *pending
}

// send sends a command if there is a connection, else it waits for one; the lock is held.
func (c *Client) send(given *pending) {
	if c.connection == nil {
		return
	}
	if len(given.text) > c.ready.maxMessageBytes() {
		c.commands.refuse(given, errTooLarge())
		return
	}
	c.connection.outbox = append(c.connection.outbox, outgoing{given.text, given})
	c.connection.ring()
}

// ring wakes who writes.
func (connection *connection) ring() {
	select {
	case connection.wake <- struct{}{}:
	default:
	}
}

// write writes what is in the outbox of a connection, until that ends.
func (c *Client) write(connection *connection) {
	for {
		select {
		case <-connection.ended:
			return
		case <-connection.wake:
		}
		for {
			c.mu.Lock()
			if len(connection.outbox) == 0 {
				connection.outbox = nil
				c.mu.Unlock()
				break
			}
			next := connection.outbox[0]
			connection.outbox = connection.outbox[1:]
			isOver := next.command != nil && !c.commands.waits(next.command)
			c.mu.Unlock()
			if isOver {
				continue
			}
			if connection.socket.write(next.text) != nil {
				connection.socket.drop() // who reads hears of it
				<-connection.ended
				return
			}
		}
	}
}
