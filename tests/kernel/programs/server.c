/* A server that leaves its connection in the way that argv[2] names; argv[1] is the port on 127.0.0.1. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>
#include <stdlib.h>

static void watch(int ep, int op, int fd, unsigned events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };

	if (epoll_ctl(ep, op, fd, &e))
		exit(3);
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
	const char *how = argc > 2 ? argv[2] : "";
	struct epoll_event e;
	char byte[1];
	int one = 1, s, c, ep;

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	s = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (s < 0 || bind(s, (void *)&a, sizeof(a)) || listen(s, 8) || (c = accept(s, 0, 0)) < 0)
		return 2;
	ep = epoll_create1(0);
	if (!strcmp(how, "sendfile")) { /* a file without an end to somebody who does not read */
		int file = memfd_create("file", 0);

		if (ftruncate(file, 1L << 40))
			return 4;
		return sendfile(c, file, NULL, 1L << 40) < 0;
	}
	if (!strcmp(how, "read")) {
		shutdown(c, SHUT_WR);
		return read(c, byte, 1) < 0;
	}
	if (!strcmp(how, "poll")) {
		struct pollfd p = { .fd = c, .events = POLLIN };

		shutdown(c, SHUT_WR);
		return poll(&p, 1, -1) < 0;
	}
	watch(ep, EPOLL_CTL_ADD, c, EPOLLIN | (strcmp(how, "edge") ? 0 : EPOLLRDHUP | EPOLLET));
	if (!strcmp(how, "half")) {
		shutdown(c, SHUT_WR);
	} else if (!strcmp(how, "paused")) {
		watch(ep, EPOLL_CTL_MOD, c, 0);
	} else if (!strcmp(how, "oneshot")) {
		watch(ep, EPOLL_CTL_MOD, c, EPOLLIN | EPOLLONESHOT);
	} else if (!strcmp(how, "nested")) {
		int outer = epoll_create1(0);

		shutdown(c, SHUT_WR);
		watch(outer, EPOLL_CTL_ADD, ep, EPOLLIN);
		ep = outer;
	}
	while (epoll_wait(ep, &e, 1, -1) >= 0)
		if (!strcmp(how, "stuck"))
			for (;;)
				pause();
	return 0;
}
