/* The kernel's floor: each event to the WebSocket connections of its channel, by a plain loop over send().
 *
 * floor SUBSCRIBE_PORT PUBLISH_PORT
 *
 * On the first port of 127.0.0.1 "GET /CHANNEL ..." is answered with a fixed 101, and the connection has the events
 * of that channel (a number) from then on. On the second, each line "CHANNEL PAYLOAD" is an event: one text frame is
 * made of it, and sent. A subscriber that does not take a whole frame at once is closed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 1 << 20, CHANNELS = 1 << 17, LINE = 1 << 20, HEAD = 4096, HEADER = 10 };
enum role { CLOSED, SUBSCRIBERS, PUBLISHERS, UPGRADING, SUBSCRIBER, PUBLISHER };

/* By descriptor. The subscribers of a channel are a list; 0 ends it, as no connection has that descriptor. */
static struct connection {
    enum role role;
    int channel, before, after;
    char *line;
    size_t got;
} connections[CONNECTIONS];
static int first[CHANNELS];
static int poller;

static const char UPGRADED[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int descriptor, enum role role) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
    if (descriptor >= CONNECTIONS || epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event))
        fail("epoll_ctl");
    connections[descriptor] = (struct connection){.role = role};
}

static void listen_at(int port, enum role role) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        fail("listen");
    watch(listener, role);
}

/* Accept one connection, with the socket options of the broker's. */
static void accept_at(int listener) {
    int one = 1, send_buffer = 131072, descriptor = accept(listener, NULL, NULL);
    if (descriptor < 0)
        return;
    if (connections[listener].role == SUBSCRIBERS) {
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
        watch(descriptor, UPGRADING);
    } else {
        watch(descriptor, PUBLISHER);
        if (!(connections[descriptor].line = malloc(LINE)))
            fail("malloc");
    }
}

static void leave(int descriptor) {
    struct connection *c = &connections[descriptor];
    if (c->role == SUBSCRIBER) {
        connections[c->after].before = c->before;
        *(c->before ? &connections[c->before].after : &first[c->channel]) = c->after;
    }
    free(c->line);
    *c = (struct connection){.role = CLOSED};
    close(descriptor);
}

/* Answer the head once it is whole: it is only looked at until then. */
static void upgrade(int descriptor) {
    char head[HEAD + 1], *end;
    struct connection *c = &connections[descriptor];
    ssize_t count = recv(descriptor, head, HEAD, MSG_PEEK | MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0 || strncmp(head, "GET /", 5)) {
        leave(descriptor);
        return;
    }
    head[count] = 0;
    if (!(end = strstr(head, "\r\n\r\n"))) {
        if (count == HEAD)
            leave(descriptor);
        return;
    }
    recv(descriptor, head, (size_t)(end + 4 - head), 0);
    c->role = SUBSCRIBER;
    c->channel = atoi(head + 5) & (CHANNELS - 1);
    c->after = first[c->channel];
    connections[c->after].before = descriptor;
    first[c->channel] = descriptor;
    if (send(descriptor, UPGRADED, sizeof UPGRADED - 1, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof UPGRADED - 1)
        leave(descriptor);
}

/* Send one event. The payload has HEADER bytes before it that may be written over. */
static void broadcast(int channel, char *payload, size_t length) {
    unsigned char *frame = (unsigned char *)payload - (length < 126 ? 2 : length < 65536 ? 4 : 10);
    size_t size = length + (size_t)((unsigned char *)payload - frame);
    int extended = (int)(size - length) - 2;
    frame[0] = 0x81;
    frame[1] = (unsigned char)(extended == 0 ? length : extended == 2 ? 126 : 127);
    for (int i = 0; i < extended; i++)
        frame[2 + i] = (unsigned char)(length >> (8 * (extended - 1 - i)));
    for (int c = first[channel], after; c; c = after) {
        after = connections[c].after;
        if (send(c, frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
            leave(c);
    }
}

/* Publish each whole line that has come. */
static void publish(int descriptor) {
    static char event[HEADER + LINE];
    struct connection *c = &connections[descriptor];
    ssize_t count = recv(descriptor, c->line + c->got, LINE - c->got, MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0) {
        leave(descriptor);
        return;
    }
    char *at = c->line, *past = c->line + c->got + count, *end;
    while ((end = memchr(at, '\n', (size_t)(past - at)))) {
        char *payload = memchr(at, ' ', (size_t)(end - at));
        if (payload++) {
            memcpy(event + HEADER, payload, (size_t)(end - payload));
            broadcast(atoi(at) & (CHANNELS - 1), event + HEADER, (size_t)(end - payload));
        }
        at = end + 1;
    }
    c->got = (size_t)(past - at);
    memmove(c->line, at, c->got);
}

/* A subscriber has nothing to say: all that matters is when it ends. */
static void drop_input(int descriptor) {
    char input[HEAD];
    ssize_t count = recv(descriptor, input, sizeof input, MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN))
        leave(descriptor);
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    struct rlimit files;
    if (argc != 3)
        return 2;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if ((poller = epoll_create1(0)) < 0)
        fail("epoll_create1");
    listen_at(atoi(argv[1]), SUBSCRIBERS);
    listen_at(atoi(argv[2]), PUBLISHERS);
    for (;;) {
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int descriptor = events[i].data.fd;
            switch (connections[descriptor].role) {
            case SUBSCRIBERS:
            case PUBLISHERS: accept_at(descriptor); break;
            case UPGRADING: upgrade(descriptor); break;
            case SUBSCRIBER: drop_input(descriptor); break;
            case PUBLISHER: publish(descriptor); break;
            case CLOSED: break;
            }
        }
    }
}
