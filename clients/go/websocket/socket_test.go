package websocket

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestACertificateIsTrustedWhereTheHTTPClientSaysSo(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		_ = conn.Write(r.Context(), websocket.MessageText, []byte(`{"type":"connection.ready","cursor":"c0"}`))
		_, _, _ = conn.Read(r.Context())
	}))
	server.EnableHTTP2 = true // which has no place for a WebSocket
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()

	trusting := New(Config{APIKey: "dm_live_key", URL: server.URL, HTTPClient: server.Client()})
	trusting.OnConnected(func() { _ = trusting.Close(context.Background()) })
	if err := trusting.Connect(); err != nil {
		t.Error(err)
	}
	err := New(Config{APIKey: "dm_live_key", URL: server.URL}).Connect()
	if err == nil || !strings.Contains(err.Error(), "cannot be reached") || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("where nobody trusts it, it ended with %v", err)
	}
}

func TestWhoDoesNotAnswerIsGivenUpInTime(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client := b.client(Config{})
		client.config.HTTPClient = &http.Client{Transport: silent{}}
		began := time.Now()
		var gone *ConnectionEndedError
		if err := client.Connect(); !errors.As(err, &gone) || !strings.Contains(gone.Message, "did not answer in time") || time.Since(began) != openTimeout {
			t.Errorf("after %v it ended with %v", time.Since(began), err)
		}
	})
}

type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestAWriteThatDoesNotEndIsALostConnection(t *testing.T) {
	played(t, func(t *testing.T, b *fakeBroker) {
		client, told := b.client(Config{AutoReconnect: true}), &recorded{}
		client.OnDisconnected(told.add)
		b.run(client)
		s := b.next(said{"heartbeat_seconds": 3_600}) // which does not read
		done := make(chan error, 1)
		go func() {
			_, err := client.Command(t.Context(), "do", nil)
			done <- err
		}()
		began := time.Now()
		heard := b.next().hearing(well)
		if waited := time.Since(began); waited < sendTimeout || waited > sendTimeout+5*time.Second {
			t.Errorf("it came back after %v", waited)
		}
		s.cut()
		expectSaid(t, heard) // its time was over by then
		var late *TimedOutError
		if err := <-done; !errors.As(err, &late) {
			t.Errorf("the command came to %v", err)
		}
	})
}
