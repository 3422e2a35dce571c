// Command driver is the Go client's driver for the conformance scenes: lines of JSON in, lines of JSON out.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/daimon-email/go-sdk/internal/patience"
	"github.com/daimon-email/go-sdk/websocket"
)

// told is a line of the runner.
type told struct {
	Do           string            `json:"do"`
	ID           string            `json:"id"`
	URL          string            `json:"url"`
	APIKey       string            `json:"api_key"`
	TokenURL     string            `json:"token_url"`
	ClientID     string            `json:"client_id"`
	CursorFile   string            `json:"cursor_file"`
	InboxIDs     []string          `json:"inbox_ids"`
	EventTypes   []string          `json:"event_types"`
	Delay        float64           `json:"reconnect_delay"`
	Ack          websocket.AckMode `json:"ack"`
	Concurrency  int               `json:"concurrency"`
	Order        websocket.Order   `json:"order"`
	Grace        float64           `json:"grace_seconds"`
	Milliseconds float64           `json:"milliseconds"`
	Fail         bool              `json:"fail"`
	Command      *command          `json:"command"`
	EventID      string            `json:"event_id"`
	Action       string            `json:"action"`
	Params       json.RawMessage   `json:"params"`
	Timeout      *float64          `json:"timeout"`
	Since        string            `json:"since"`
	Type         string            `json:"type"`
	InboxID      string            `json:"inbox_id"`
	Where        websocket.Where   `json:"where"`
	Extract      []string          `json:"extract"`
	Headers      map[string]string `json:"headers"`
	Body         string            `json:"body"`
	Secret       string            `json:"secret"`
}

type command struct {
	Action string          `json:"action"`
	Params json.RawMessage `json:"params"`
}

type fields map[string]any

// driver is a client, and what its handlers do.
type driver struct {
	client  *websocket.Client
	writing sync.Mutex

	mu       sync.Mutex
	handling map[string]told // by event_id; "": all others
}

func main() {
	d := &driver{handling: map[string]told{}}
	d.write("started", nil)
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var said told
		if err := json.Unmarshal(line, &said); err != nil {
			panic(err)
		}
		d.hear(said)
	}
}

func (d *driver) hear(said told) {
	background := context.Background()
	switch said.Do {
	case "connect":
		d.connect(said)
	case "handle":
		d.mu.Lock()
		if said.EventID == "" {
			clear(d.handling)
		}
		d.handling[said.EventID] = said
		d.mu.Unlock()
	case "command":
		d.asked(said.ID, func() (any, error) {
			ctx := background
			if said.Timeout != nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, seconds(*said.Timeout))
				defer cancel()
			}
			return d.client.Command(ctx, said.Action, said.Params)
		})
	case "subscribe":
		var options []websocket.SubscribeOption
		if said.Since != "" {
			options = append(options, websocket.Since(said.Since))
		}
		d.asked(said.ID, func() (any, error) {
			now, err := d.client.Subscribe(background, said.InboxIDs, options...)
			return followed(now), err
		})
	case "unsubscribe":
		d.asked(said.ID, func() (any, error) {
			now, err := d.client.Unsubscribe(background, said.InboxIDs)
			return followed(now), err
		})
	case "wait_for":
		d.asked(said.ID, func() (any, error) { return d.waited(said) })
	case "pause":
		d.client.Pause()
	case "resume":
		d.client.Resume()
	case "reconnect_now":
		d.client.ReconnectNow()
	case "close":
		if d.client == nil {
			d.write("ended", nil)
		} else {
			go d.client.Close(background)
		}
	case "verify":
		header := http.Header{}
		for name, value := range said.Headers {
			header.Set(name, value)
		}
		d.asked(said.ID, func() (any, error) {
			event, err := websocket.Verify(header, []byte(said.Body), said.Secret)
			return asJSON(event), err
		})
	}
}

func (d *driver) connect(said told) {
	if said.Grace > 0 {
		patience.Grace = seconds(said.Grace)
	}
	config := websocket.Config{
		URL: said.URL, APIKey: said.APIKey, ClientID: said.ClientID, InboxIDs: said.InboxIDs, EventTypes: said.EventTypes,
		AutoReconnect: true, ReconnectDelay: seconds(said.Delay), Ack: said.Ack, Concurrency: said.Concurrency,
		Order: said.Order,
	}
	if said.TokenURL != "" {
		config.Token = func(ctx context.Context) (string, error) { return fetched(ctx, said.TokenURL) }
	}
	if said.CursorFile != "" {
		config.CursorStore = websocket.FileStore(said.CursorFile)
	}
	d.client = websocket.New(config)
	d.client.OnConnected(func() { d.write("connected", nil) })
	d.client.OnDisconnected(func(reason string) { d.write("disconnected", fields{"reason": reason}) })
	d.client.OnGap(func(gap websocket.Gap) { d.write("gap", fields{"count": gap.Count}) })
	d.client.OnError(func(err error) { d.write("error", fields{"code": codeOf(err), "said": err.Error()}) })
	d.client.On("*", d.handle)
	go func() {
		err := d.client.Connect()
		var gone *websocket.ConnectionEndedError
		switch {
		case errors.As(err, &gone) && gone.Status != 0:
			d.write("ended", fields{"code": gone.Code, "status": gone.Status})
		case errors.As(err, &gone):
			d.write("ended", fields{"code": gone.CloseCode})
		case err != nil:
			d.write("ended", fields{"code": err.Error()})
		default:
			d.write("ended", nil)
		}
	}()
}

func (d *driver) handle(ctx context.Context, event *websocket.Event) error {
	d.write("event", asJSON(event))
	d.mu.Lock()
	how, isOwn := d.handling[event.EventID]
	if !isOwn {
		how = d.handling[""]
	}
	d.mu.Unlock()
	select {
	case <-time.After(time.Duration(how.Milliseconds * float64(time.Millisecond))):
	case <-ctx.Done():
	}
	if how.Command != nil {
		d.answered(event.EventID, func() (any, error) {
			return d.client.Command(ctx, how.Command.Action, how.Command.Params)
		})
	}
	if how.Fail {
		return errors.New("the handler was told to fail")
	}
	d.write("handled", fields{"event_id": event.EventID})
	return nil
}

func (d *driver) asked(id string, call func() (any, error)) { go d.answered(id, call) }

func (d *driver) answered(id string, call func() (any, error)) {
	result, err := call()
	if err != nil {
		d.write("answer", fields{"id": id, "error": fields{"code": codeOf(err)}})
	} else {
		d.write("answer", fields{"id": id, "result": result})
	}
}

func (d *driver) waited(said told) (any, error) {
	wait := websocket.Wait{
		Type: said.Type, InboxID: said.InboxID, Where: said.Where, Since: said.Since, Extract: said.Extract,
		Timeout: seconds(*said.Timeout),
	}
	found, err := d.client.WaitFor(context.Background(), wait)
	if errors.Is(err, websocket.ErrNoMatch) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	result := asJSON(found.Event)
	result["code"], result["link"] = found.Codes, found.Links
	return result, nil
}

func (d *driver) write(on string, item fields) {
	said := fields{"on": on}
	for name, value := range item {
		said[name] = value
	}
	text, err := json.Marshal(said)
	if err != nil {
		panic(err)
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	_, _ = os.Stdout.Write(append(text, '\n'))
}

func asJSON(event *websocket.Event) fields {
	if event == nil {
		return nil
	}
	said := fields{"type": event.Type, "event_id": event.EventID, "inbox_id": nil}
	if event.InboxID != "" {
		said["inbox_id"] = event.InboxID
	}
	return said
}

func followed(now *websocket.Subscription) fields {
	if now == nil {
		return nil
	}
	return fields{"inbox_ids": now.InboxIDs, "cursor": now.Cursor}
}

func codeOf(err error) any {
	var refused *websocket.CommandError
	var gone *websocket.ConnectionEndedError
	var late *websocket.TimedOutError
	var much *websocket.OverflowingError
	var unsigned *websocket.BadSignatureError
	switch {
	case errors.As(err, &refused):
		return refused.Code
	case errors.As(err, &gone):
		return gone.CloseCode
	case errors.As(err, &late):
		return "timed_out"
	case errors.As(err, &much):
		return "overflowing"
	case errors.As(err, &unsigned):
		return "bad_signature"
	}
	return nil
}

func fetched(ctx context.Context, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	token, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return string(token), err
}

func seconds(said float64) time.Duration { return time.Duration(said * float64(time.Second)) }
