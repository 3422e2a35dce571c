/* The hot loop of subscribers: epoll, recv, and a note of which event came to whom and when.
 *
 * What is not whole text or binary frames with a due mark in each is given back as it is ("spilled"): Python
 * looks at it. receiving.py has the same loop in Python, and what the fields of struct loop mean. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { MARK = 4, DIGITS = 19, READY = 4096, CHUNK = 262144, MOST_ARRIVALS = CHUNK / (MARK + DIGITS) + 1 };

struct loop {
    int32_t poller, control, called, unused;
    int32_t *numbers;
    uint8_t *held;
    int64_t *arrivals, arrivals_size, arrivals_count;
    uint8_t *spilled;
    int64_t spilled_size, spilled_count;
    int64_t each_event, total, waited_in_bursts, ready, ready_squared;
};

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void spill(struct loop *loop, int descriptor, const uint8_t *data, int64_t size) {
    int32_t head[2] = {descriptor, (int32_t)size};
    memcpy(loop->spilled + loop->spilled_count, head, sizeof head);
    memcpy(loop->spilled + loop->spilled_count + sizeof head, data, (size_t)size);
    loop->spilled_count += (int64_t)sizeof head + size;
}

/* Note each event in the payload of a frame; return how many there were. */
static int note(struct loop *loop, int number, const uint8_t *payload, const uint8_t *end, int64_t came) {
    int found = 0;
    const uint8_t *at;
    while ((at = memmem(payload, (size_t)(end - payload), "due:", MARK)) && end - at >= MARK + DIGITS) {
        int64_t due = 0;
        payload = at + MARK;
        for (int i = 0; i < DIGITS; i++)
            due = due * 10 + (payload[i] - '0');
        int64_t *arrival = loop->arrivals + loop->arrivals_count;
        arrival[0] = number;
        arrival[1] = due;
        arrival[2] = came;
        loop->arrivals_count += 3;
        loop->total++;
        found++;
    }
    return found;
}

/* Go through the whole frames of data; return what is left from the first that is unusual. */
static const uint8_t *frames(struct loop *loop, int number, const uint8_t *data, const uint8_t *end, int64_t came) {
    while (end - data >= 2) {
        const uint8_t *payload = data + 2;
        int64_t size = data[1];
        if ((data[0] & 0x0f) > 2 || size == 127)
            return data;
        if (size == 126) {
            if (end - data < 4)
                return data;
            size = data[2] << 8 | data[3];
            payload = data + 4;
        }
        if (end - payload < size || !note(loop, number, payload, payload + size, came))
            return data;
        data = payload + size;
    }
    return data;
}

static void receive(struct loop *loop, int descriptor) {
    static uint8_t chunk[CHUNK];
    ssize_t got = recv(descriptor, chunk, sizeof chunk, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    const uint8_t *rest = chunk, *end = chunk + (got > 0 ? got : 0);
    if (!loop->held[descriptor])
        rest = frames(loop, loop->numbers[descriptor], chunk, end, now());
    if (rest < end || got <= 0) {
        /* Until Python has had this, later bytes must not come before it. */
        loop->held[descriptor] = 1;
        spill(loop, descriptor, rest, end - rest);
    }
}

/* Receive until there is something for Python to do, or for some milliseconds (-1: for ever), or until so many arrivals. */
int turn(struct loop *loop, int milliseconds, int64_t wanted) {
    static struct epoll_event ready[READY];
    int64_t until = now() + milliseconds * 1000000LL;
    loop->called = 0;
    loop->arrivals_count = loop->spilled_count = 0;
    while (!loop->called && !loop->spilled_count && (wanted < 0 || loop->total < wanted)) {
        int64_t slept = now();
        int in_burst = loop->total % loop->each_event != 0;
        int count = epoll_wait(loop->poller, ready, READY, milliseconds);
        if (count < 0 && errno != EINTR)
            return errno;
        if (in_burst && count > 0) {
            loop->waited_in_bursts += now() - slept;
            loop->ready += count;
            loop->ready_squared += (int64_t)count * count;
        }
        for (int i = 0; i < count; i++) {
            int descriptor = ready[i].data.fd;
            if (descriptor == loop->control)
                loop->called = 1;
            else if (loop->arrivals_size - loop->arrivals_count < 3 * MOST_ARRIVALS ||
                     loop->spilled_size - loop->spilled_count < CHUNK + 8)
                return 0; /* it is still ready the next time */
            else
                receive(loop, descriptor);
        }
        if (milliseconds >= 0 && now() > until)
            return 0;
    }
    return 0;
}
