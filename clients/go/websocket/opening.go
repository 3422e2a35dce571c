package websocket

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

const (
	plannedURL = "wss://ws.daimon.email/v1/stream"
	streamPath = "/v1/stream"
	// maxQueryBytes is of inboxes in the query of an opening: a head has 16 KiB at most. Others are subscribed to behind it.
	maxQueryBytes = 4_000
)

// streamOf returns where the stream is: what is given, else DAIMON_WS_URL, else the planned one.
func streamOf(given string) (*url.URL, error) {
	if given == "" {
		given = os.Getenv("DAIMON_WS_URL")
	}
	if given == "" {
		given = plannedURL
	}
	whole := given
	if !strings.Contains(whole, "://") {
		whole = "ws://" + whole
	}
	where, err := url.Parse(whole)
	if err == nil {
		where.Scheme = map[string]string{"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}[where.Scheme]
	}
	if err != nil || where.Scheme == "" || where.Hostname() == "" {
		return nil, fmt.Errorf("websocket: URL: %q is no address of a broker, such as wss://broker.example/v1/stream", given)
	}
	if where.Path == "" || where.Path == "/" {
		where.Path = streamPath
	}
	where.Fragment = ""
	return where, nil
}

// isInTheClear says whether what is sent there may be read on the way.
func isInTheClear(where *url.URL) bool {
	host := where.Hostname()
	if where.Scheme == "wss" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return false
	}
	address := net.ParseIP(host)
	return address == nil || !address.IsLoopback()
}

// opening is what a connection asks for in its query.
type opening struct {
	names      []string // inboxes, "*" for all, none for what the key has
	eventTypes []string // nil: all
	since      string
	clientID   string
}

// url returns where to open with it, and the inboxes that did not fit.
func (o opening) url(where *url.URL) (string, []string) {
	var query, named, rest []string
	size := 0
	for _, name := range o.names {
		size += len(url.QueryEscape(name)) + 3
		if size <= maxQueryBytes {
			named = append(named, name)
		} else {
			rest = append(rest, name)
		}
	}
	add := func(name, value string) { query = append(query, name+"="+url.QueryEscape(value)) }
	if where.RawQuery != "" {
		query = append(query, where.RawQuery)
	}
	if len(named) > 0 {
		add("inbox_ids", strings.Join(named, ","))
	}
	if o.eventTypes != nil {
		add("event_types", strings.Join(o.eventTypes, ","))
	}
	if o.since != "" {
		add("since", o.since)
	}
	if o.clientID != "" {
		add("client_id", o.clientID)
	}
	opened := *where
	opened.RawQuery = strings.Join(query, "&")
	return opened.String(), rest
}
