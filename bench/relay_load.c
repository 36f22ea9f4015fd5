/* Load for the relay benchmarks: a server and three kinds of client in one small program, each one epoll loop.
 *
 *   relay_load server PORT              the first byte of a connection says what it wants: 'E' echo, 'B' bytes for ever
 *   relay_load echo HOST PORT N SECS    N connections, each 64 bytes to and fro: requests/s, p50 and p99 in microseconds
 *   relay_load conn HOST PORT N SECS    N at a time: connect, 64 bytes to and fro, close: connections/s
 *   relay_load bulk HOST PORT N SECS    N streams from the server, discarded: bytes/s
 *
 * Prints one line: three numbers (the last two are 0 where they mean nothing).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, BLOCK = 1 << 18, BUCKETS = 200000 };
static char block[BLOCK];
static int ep;
static struct sockaddr_in to;
static double sent_at[1 << 16];
static char kind[1 << 16];
static unsigned histogram[BUCKETS];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void watch(int fd, unsigned events, int op) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  if (epoll_ctl(ep, op, fd, &e) < 0) die("epoll_ctl");
}

static int open_one(unsigned events) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0) die("socket");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) die("connect");
  watch(fd, events, EPOLL_CTL_ADD);
  kind[fd] = 0;
  return fd;
}

static void serve(void) {
  int one = 1, door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  setsockopt(door, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (bind(door, (struct sockaddr *)&to, sizeof to) < 0) die("bind");
  listen(door, 4096);
  watch(door, EPOLLIN, EPOLL_CTL_ADD);
  struct epoll_event events[256];
  for (;;) {
    int n = epoll_wait(ep, events, 256, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == door) {
        int got;
        while ((got = accept4(door, 0, 0, SOCK_NONBLOCK)) >= 0) {
          kind[got] = 0;
          watch(got, EPOLLIN, EPOLL_CTL_ADD);
        }
        continue;
      }
      if (kind[fd] == 'B') {
        ssize_t sent = send(fd, block, BLOCK, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) close(fd);
        continue;
      }
      char bytes[4096];
      ssize_t got = recv(fd, bytes, sizeof bytes, 0);
      if (got <= 0) {
        close(fd);
        continue;
      }
      if (!kind[fd]) kind[fd] = bytes[0];
      if (kind[fd] == 'B')
        watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
      else if (send(fd, bytes, got, MSG_NOSIGNAL) < 0)
        close(fd);
    }
  }
}

int main(int argc, char **argv) {
  ep = epoll_create1(0);
  to.sin_family = AF_INET;
  if (argc == 3 && !strcmp(argv[1], "server")) {
    to.sin_port = htons(atoi(argv[2]));
    serve();
  }
  if (argc != 6) return 2;
  char mode = argv[1][0], message[SIZE];
  memset(message, mode == 'b' ? 'B' : 'E', SIZE);
  inet_pton(AF_INET, argv[2], &to.sin_addr);
  to.sin_port = htons(atoi(argv[3]));
  int conns = atoi(argv[4]);
  double seconds = atof(argv[5]), begin = now(), end = begin + seconds, count = 0;
  for (int i = 0; i < conns; i++) open_one(EPOLLOUT);
  struct epoll_event events[256];
  for (;;) {
    int n = epoll_wait(ep, events, 256, 100);
    double at = now();
    if (at >= end) break;
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (!kind[fd]) {
        kind[fd] = mode;
        sent_at[fd] = at;
        if (send(fd, message, mode == 'b' ? 1 : SIZE, MSG_NOSIGNAL) < 0) die("send");
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
        continue;
      }
      ssize_t got = mode == 'b' ? recv(fd, 0, 1 << 20, MSG_TRUNC) : recv(fd, block, SIZE, 0);
      if (got <= 0) {
        if (got < 0 && errno == EAGAIN) continue;
        fprintf(stderr, "a connection ended early\n");
        return 1;
      }
      if (mode == 'b') {
        count += got;
        continue;
      }
      count++;
      double t = now();
      unsigned bucket = (t - sent_at[fd]) * 1e6;
      histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
      if (mode == 'e') {
        sent_at[fd] = t;
        if (send(fd, message, SIZE, MSG_NOSIGNAL) < 0) die("send");
      } else {
        close(fd);
        open_one(EPOLLOUT);
      }
    }
  }
  double took = now() - begin, seen = 0;
  unsigned p50 = 0, p99 = 0;
  for (unsigned i = 0; mode != 'b' && i < BUCKETS; i++) {
    seen += histogram[i];
    if (!p50 && seen >= count * 0.5) p50 = i;
    if (!p99 && seen >= count * 0.99) p99 = i;
  }
  printf("%.1f %u %u\n", count / took, p50, p99);
  return 0;
}
