package websocket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"time"
)

// Config says where to, as whom, and how. Its zero value, with DAIMON_API_KEY in the environment, is one connection
// that is not opened again: most programs set AutoReconnect.
type Config struct {
	// APIKey is an inbox key or an account key; if empty, DAIMON_API_KEY.
	APIKey string
	// URL is where the broker is; if empty, DAIMON_WS_URL, else wss://ws.daimon.email/v1/stream. http(s) is taken for
	// ws(s); without a path it is /v1/stream.
	URL string
	// Token gives a fresh connection token for each opening, instead of a key.
	Token func(ctx context.Context) (string, error)
	// InboxIDs is what is followed; nil: all that the key reaches, empty and not nil: none.
	InboxIDs []string
	// EventTypes are exact types, or prefixes such as "message.*"; nil: all.
	EventTypes []string
	// AutoReconnect says whether a lost connection is opened again.
	AutoReconnect bool
	// ReconnectDelay is how long the first wait before that is at most; each later one is up to twice as long, a minute
	// at most. Unless given, 5 s.
	ReconnectDelay time.Duration
	// ClientID is this client's own name: who connects with it takes over. Unless given, a random one. With it, and no
	// CursorStore, an opening begins at what was acknowledged.
	ClientID string
	// CursorStore keeps the place in the stream over restarts of the program.
	CursorStore CursorStore
	// Ack says whether what handlers have returned from is acknowledged.
	Ack AckMode
	// Concurrency is how many handlers may run at once; unless given, one.
	Concurrency int
	// Order says of what only one may run at a time where several may.
	Order Order
	// HTTPClient opens the connections: for certificates, proxies and dialing of your own. Redirects are not followed.
	HTTPClient *http.Client
	// Logger hears of what failed and no handler of errors was told; unless given, slog.Default().
	Logger *slog.Logger
}

// AckMode says whether events are acknowledged.
type AckMode string

// How events are acknowledged.
const (
	AckAuto   AckMode = ""       // what handlers have returned from
	AckManual AckMode = "manual" // what the program calls Client.Ack for
	AckOff    AckMode = "off"    // nothing
)

// Order says which events are handled one after another, where Concurrency lets several be handled at once.
type Order string

// Which events are handled one after another.
const (
	OrderThread Order = ""      // those of a thread; where there is none, of an inbox
	OrderInbox  Order = "inbox" // those of an inbox
	OrderNone   Order = "none"  // none
)

// resolved fills in what is not said, and returns where to; an error names the field.
func (config Config) resolved() (Config, *url.URL, error) {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.ReconnectDelay == 0 {
		config.ReconnectDelay = 5 * time.Second
	}
	if config.Concurrency == 0 {
		config.Concurrency = 1
	}
	if config.HTTPClient == nil {
		config.HTTPClient = &http.Client{}
	}
	if config.Ack == "auto" {
		config.Ack = AckAuto
	}
	if config.Order == "thread" {
		config.Order = OrderThread
	}
	if config.APIKey == "" {
		config.APIKey = os.Getenv("DAIMON_API_KEY")
	}
	if config.Token != nil {
		config.APIKey = ""
	} else if config.APIKey == "" {
		return config, nil, errors.New("websocket: APIKey: there is none, and no DAIMON_API_KEY in the environment")
	}
	switch {
	case config.ReconnectDelay < 0:
		return config, nil, fmt.Errorf("websocket: ReconnectDelay: %v is negative", config.ReconnectDelay)
	case config.Concurrency < 0:
		return config, nil, fmt.Errorf("websocket: Concurrency: %d is negative", config.Concurrency)
	case config.Ack != AckAuto && config.Ack != AckManual && config.Ack != AckOff:
		return config, nil, fmt.Errorf("websocket: Ack: %q is neither AckAuto nor AckManual nor AckOff", config.Ack)
	case config.Order != OrderThread && config.Order != OrderInbox && config.Order != OrderNone:
		return config, nil, fmt.Errorf("websocket: Order: %q is neither OrderThread nor OrderInbox nor OrderNone", config.Order)
	}
	where, err := streamOf(config.URL)
	return config, where, err
}
