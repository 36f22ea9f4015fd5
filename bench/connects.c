/* Connects, accepts and closes over loopback in a network namespace of its own, as fast as one thread can.
 *
 * connects SECONDS [PORT]: prints "ready", waits for a line, works, prints connections and seconds.
 * Each connection is ten changes of state, in the order that client and server see when the client closes first.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");
	if (f) {
		fputs(text, f);
		fclose(f);
	}
}

int main(int argc, char **argv)
{
	double wanted = argc > 1 ? atof(argv[1]) : 1;
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof at;
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	char line[16], byte;
	long done = 0;
	if (unshare(CLONE_NEWNET))
		return perror("unshare"), 1;
	int server = socket(AF_INET, SOCK_STREAM, 0);
	if (ioctl(server, SIOCSIFFLAGS, &lo) || bind(server, (void *)&at, sizeof at) || listen(server, 128))
		return perror("listen"), 1;
	getsockname(server, (void *)&at, &length);
	/* Ports are used again at once, or they would run out within a second. */
	write_file("/proc/sys/net/ipv4/tcp_max_tw_buckets", "1000");
	write_file("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000");
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		return 1;
	double begun = now();
	while (now() - begun < wanted) {
		int client = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(client, (void *)&at, sizeof at))
			return perror("connect"), 1;
		int accepted = accept(server, NULL, NULL);
		close(client);
		if (read(accepted, &byte, 1) != 0)
			return perror("read"), 1;
		close(accepted);
		done++;
	}
	printf("%ld %f\n", done, now() - begun);
	return 0;
}
