// A server that broadcasts by Socket.IO: node socketio_server.js PACKAGE SUBSCRIBE_PORT PUBLISH_PORT
//
// PACKAGE is the directory of the npm package. A subscriber's query names its channel, which is a room. The publish
// port takes lines, "CHANNEL PAYLOAD"; the payload is JSON and is emitted as an object.
"use strict";

const http = require("node:http");
const net = require("node:net");
const readline = require("node:readline");

const HOST = "127.0.0.1";
const BACKLOG = 4096;
const [socketIo, subscribePort, publishPort] = process.argv.slice(2);
const { Server } = require(socketIo);

const server = http.createServer();
const io = new Server(server, {
  transports: ["websocket"],
  perMessageDeflate: false,
  serveClient: false,
  connectionStateRecovery: { maxDisconnectionDuration: 300_000, skipMiddlewares: true },
});

io.on("connection", (socket) => {
  socket.join(socket.handshake.query.channel);
  socket.emit("subscribed");
});

function publish(line) {
  const space = line.indexOf(" ");
  io.to(line.slice(0, space)).emit("event", JSON.parse(line.slice(space + 1)));
}

server.listen(Number(subscribePort), HOST, BACKLOG);
net
  .createServer((publisher) => {
    publisher.on("error", () => {});
    readline.createInterface({ input: publisher }).on("line", publish);
  })
  .listen(Number(publishPort), HOST);
