/* The floor: send one netlink dump request and receive all that answers it, doing nothing with it.
 *
 * Usage: reader PROTOCOL ROUNDS REQUEST-IN-HEX...      one request after the other is one round
 * Prints one line a round: seconds, bytes, datagrams. Runs in the network namespace it is started in.
 */
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dump.h"

int main(int argc, char **argv)
{
	int size = 8 << 20;

	for (int round = 0; round < atoi(argv[2]); round++) {
		double begun = now(CLOCK_MONOTONIC);
		long bytes = 0, datagrams = 0;
		int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, atoi(argv[1]));

		if (fd < 0)
			return 1;
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
		for (int k = 3; k < argc; k++) {
			size_t length = strlen(argv[k]) / 2;
			unsigned char request[4096];

			if (length > sizeof(request))
				return 1;
			for (size_t i = 0; i < length; i++)
				sscanf(argv[k] + 2 * i, "%2hhx", &request[i]);
			if (send(fd, request, length, 0) < 0)
				return 1;
			for (;;) {
				ssize_t n = recv(fd, buffer, sizeof(buffer), MSG_TRUNC);

				if (n < 16)
					return 1;
				bytes += n;
				datagrams++;
				if (finished(n))
					break;
			}
		}
		close(fd);
		printf("%.6f %ld %ld\n", now(CLOCK_MONOTONIC) - begun, bytes, datagrams);
		fflush(stdout);
	}
	return 0;
}
