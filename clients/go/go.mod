module github.com/daimon-email/go-sdk

go 1.25.0

require github.com/coder/websocket v1.8.15
