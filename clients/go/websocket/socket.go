package websocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	openTimeout     = 20 * time.Second // to connect, to agree on TLS, and to be answered
	sendTimeout     = 30 * time.Second
	maxMessageBytes = 67_108_864
	userAgent       = "daimon-email-go/" + version
	version         = "0.1.0"
)

// socket is one WebSocket: texts in and out, and how it ends. One goroutine reads, one writes.
type socket struct {
	conn   *websocket.Conn
	watch  *time.Timer  // ends the connection when nothing is read for too long
	silent atomic.Bool  // it did
	within atomic.Int64 // the watch's patience now
}

// openSocket opens one; an ending says why it was refused, or could not be reached.
func openSocket(ctx context.Context, client *http.Client, address, credential string) (*socket, *ending) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	s := &socket{}
	direct := *client
	direct.Timeout = 0
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	header := http.Header{"Authorization": {"Bearer " + credential}, "User-Agent": {userAgent}}
	conn, response, err := websocket.Dial(ctx, address, &websocket.DialOptions{
		HTTPClient: &direct, HTTPHeader: header,
		OnPingReceived: func(context.Context, []byte) bool {
			s.watch.Reset(time.Duration(s.within.Load()))
			return true
		},
	})
	if err != nil {
		return nil, whyNotOpened(err, response, address)
	}
	conn.SetReadLimit(maxMessageBytes)
	s.conn = conn
	s.watch = time.AfterFunc(openTimeout, func() {
		s.silent.Store(true)
		_ = conn.CloseNow()
	})
	s.watch.Stop()
	return s, nil
}

func whyNotOpened(err error, response *http.Response, address string) *ending {
	if response != nil && response.StatusCode != http.StatusSwitchingProtocols {
		var body []byte
		if response.Body != nil {
			body, _ = io.ReadAll(response.Body)
		}
		return refused(response.StatusCode, response.Header, body, time.Now())
	}
	host := address
	if where, parseErr := url.Parse(address); parseErr == nil {
		host = where.Host
	}
	var named *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return notOpened(host + " did not answer in time")
	case response != nil:
		return notOpened(fmt.Sprintf("the other side is no broker: %v", err))
	case errors.As(err, &named): // without the URL, which says what is asked for
		return notOpened(fmt.Sprintf("%s cannot be reached: %v", host, named.Err))
	}
	return notOpened(fmt.Sprintf("%s cannot be reached: %v", host, err))
}

// read returns the next text. Nothing read for so long, be it a ping or a part of a text, is an end, too.
func (s *socket) read(patience time.Duration) ([]byte, *ending) {
	s.within.Store(int64(patience))
	s.watch.Reset(patience)
	defer s.watch.Stop()
	_, reader, err := s.conn.Reader(context.Background())
	if err != nil {
		return nil, s.ending(err)
	}
	text := make([]byte, 0, 1_024)
	for {
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := reader.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil {
			return nil, s.ending(err)
		}
		s.watch.Reset(patience)
	}
}

func (s *socket) ending(err error) *ending {
	var said websocket.CloseError
	switch {
	case errors.As(err, &said):
		return closed(int(said.Code), said.Reason)
	case s.silent.Load():
		return lost("nothing was heard")
	case errors.Is(err, websocket.ErrMessageTooBig):
		return lost("a text of more than 64 MiB came")
	}
	return lost("")
}

// write writes one text, whole.
func (s *socket) write(text []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	return s.conn.Write(ctx, websocket.MessageText, text)
}

// close says goodbye, and waits some seconds for the other's.
func (s *socket) close() { _ = s.conn.Close(websocket.StatusNormalClosure, "") }

// drop lets go of it without a goodbye.
func (s *socket) drop() { _ = s.conn.CloseNow() }
