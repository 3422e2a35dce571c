/* The kernel's floor: one frame to N WebSocket connections by a plain loop over send().
 *
 * floor CONNECTIONS LIFETIME_SECONDS
 *
 * Listens on a free port of 127.0.0.1 ("port P"), accepts N connections, answers each upgrade with a fixed 101 and
 * a ready frame ("open N"), and then obeys lines on standard input: "go BYTES" sends one text frame of so many
 * bytes, header included, to all; "when" prints the CLOCK_MONOTONIC nanoseconds at which the last "go" began. Ends
 * when standard input does. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char UPGRADED[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
    "\x81\x1b{\"type\":\"connection.ready\"}";
static const char EVENT[] = "{\"type\":\"message.received\",\"payload\":\"";

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int listen_on_loopback(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1024))
        fail("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length))
        fail("getsockname");
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

/* Accept one connection with the socket options of the broker's, and upgrade it. */
static int accept_one(int listener) {
    int one = 1, send_buffer = 131072;
    char head[8192];
    size_t got = 0;
    int connection = accept(listener, NULL, NULL);
    if (connection < 0)
        fail("accept");
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
    do {
        ssize_t count = recv(connection, head + got, sizeof head - 1 - got, 0);
        if (count <= 0)
            fail("request head");
        head[got += (size_t)count] = 0;
    } while (!strstr(head, "\r\n\r\n"));
    if (send(connection, UPGRADED, sizeof UPGRADED - 1, MSG_NOSIGNAL) != sizeof UPGRADED - 1)
        fail("upgrade");
    return connection;
}

/* Fill frame with an event of size bytes in all; 126 to 65535 of them are payload. */
static void make_frame(unsigned char *frame, size_t size) {
    size_t payload = size - 4;
    memset(frame, 'x', size);
    frame[0] = 0x81;
    frame[1] = 126;
    frame[2] = (unsigned char)(payload >> 8);
    frame[3] = (unsigned char)payload;
    memcpy(frame + 4, EVENT, sizeof EVENT - 1);
    memcpy(frame + size - 2, "\"}", 2);
}

int main(int argc, char **argv) {
    static unsigned char frame[65539];
    struct timespec start = {0};
    struct rlimit files;
    char line[64];
    if (argc != 3)
        return 2;
    int total = atoi(argv[1]);
    int *connections = calloc((size_t)total, sizeof *connections);
    alarm((unsigned)atoi(argv[2]));
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = listen_on_loopback();
    for (int i = 0; i < total; i++)
        connections[i] = accept_one(listener);
    printf("open %d\n", total);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        size_t size;
        if (sscanf(line, "go %zu", &size) == 1 && size >= 130 && size <= sizeof frame) {
            make_frame(frame, size);
            clock_gettime(CLOCK_MONOTONIC, &start);
            for (int i = 0; i < total; i++)
                if (send(connections[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
                    fail("send");
        } else if (!strcmp(line, "when\n")) {
            printf("when %lld\n", start.tv_sec * 1000000000LL + start.tv_nsec);
            fflush(stdout);
        } else {
            return 2;
        }
    }
    return 0;
}
