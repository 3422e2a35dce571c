package websocket

import (
	"strings"
	"testing"
)

func TestWhatIsWrongWithTheConfigurationIsSaid(t *testing.T) {
	t.Setenv("DAIMON_API_KEY", "")
	for field, config := range map[string]Config{
		"APIKey":         {},
		"URL":            {APIKey: "k", URL: "ftp://broker.example"},
		"ReconnectDelay": {APIKey: "k", ReconnectDelay: -1},
		"Concurrency":    {APIKey: "k", Concurrency: -1},
		"Ack":            {APIKey: "k", Ack: "later"},
		"Order":          {APIKey: "k", Order: "chaos"},
	} {
		client := New(config)
		if err := client.Connect(); err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: Connect said %v", field, err)
		}
		if _, err := client.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: Ping said %v", field, err)
		}
	}
}

func TestWhereToIsGivenOrInTheEnvironment(t *testing.T) {
	t.Setenv("DAIMON_WS_URL", "https://broker.example")
	t.Setenv("DAIMON_API_KEY", "dm_live_of_environment")
	for given, expected := range map[string]string{
		"":                                 "wss://broker.example/v1/stream",
		"localhost:8765":                   "ws://localhost:8765/v1/stream",
		"http://10.0.0.1/":                 "ws://10.0.0.1/v1/stream",
		"wss://broker.example/other?a=b#c": "wss://broker.example/other?a=b",
	} {
		log := &logged{}
		client := New(Config{URL: given, Logger: log.logger()})
		if client.where.String() != expected || client.config.APIKey != "dm_live_of_environment" {
			t.Errorf("%q is %v", given, client.where)
		}
		if warned := strings.Contains(log.String(), "in the clear"); warned != strings.Contains(given, "10.0.0.1") {
			t.Errorf("of %q was said: %q", given, log.String())
		}
	}
	t.Setenv("DAIMON_WS_URL", "")
	if where := New(Config{}).where.String(); where != "wss://ws.daimon.email/v1/stream" {
		t.Errorf("unless said, it is %v", where)
	}
}

func TestWhoCannotBeReachedIsNamedWithoutWhatWasAskedFor(t *testing.T) {
	client := New(Config{APIKey: "dm_live_key", URL: "ws://localhost:1?secret=1"})
	err := client.Connect()
	if err == nil || !strings.Contains(err.Error(), "localhost:1 cannot be reached") || strings.Contains(err.Error(), "secret") {
		t.Errorf("it ended with %v", err)
	}
}
