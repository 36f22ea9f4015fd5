/* What receives a dump of sockets: its buffer, its last message, a clock. Used by floor.c and reader.c. */
#ifndef DUMP_H
#define DUMP_H

#include <linux/netlink.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

static char buffer[1 << 20];

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int finished(ssize_t n)
{
	struct nlmsghdr *h = (struct nlmsghdr *)buffer;

	if (h->nlmsg_type == NLMSG_ERROR)
		exit(2);
	if (h->nlmsg_type == NLMSG_DONE)
		return 1;
	/* DONE may end the last data datagram */
	if (n < 20)
		return 0;
	h = (struct nlmsghdr *)(buffer + n - 20);
	return h->nlmsg_len == 20 && h->nlmsg_type == NLMSG_DONE;
}

#endif
