/* The floor: what no look at the machine can leave out, in C, and nothing else.
 *
 * Usage: floor REQUEST-IN-HEX...    one sock_diag dump request each
 *
 * Receives the dumps in the network namespace that it is started in, then reads the link of every descriptor of every
 * process of /proc, as whoever names the holders of sockets must. Nothing is kept of either.
 * Prints, for each of the two: seconds, seconds of processor time, and how many bytes or sockets there were.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dump.h"

static long dump(const char *hex)
{
	int size = 8 << 20, fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	size_t length = strlen(hex) / 2;
	unsigned char request[4096];
	long bytes = 0;
	ssize_t n;

	if (fd < 0 || length > sizeof(request))
		exit(1);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	for (size_t i = 0; i < length; i++)
		sscanf(hex + 2 * i, "%2hhx", &request[i]);
	if (send(fd, request, length, 0) < 0)
		exit(1);
	do {
		n = recv(fd, buffer, sizeof(buffer), MSG_TRUNC);
		if (n < 16)
			exit(1);
		bytes += n;
	} while (!finished(n));
	close(fd);
	return bytes;
}

static long walk(void)
{
	DIR *processes = opendir("/proc"), *table;
	struct dirent *process, *entry;
	char path[300], link[64];
	long sockets = 0;
	int fd;

	if (!processes)
		exit(1);
	while ((process = readdir(processes))) {
		if (!isdigit(process->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/fd", process->d_name);
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		table = fd < 0 ? NULL : fdopendir(fd);
		if (!table)
			continue;
		while ((entry = readdir(table)))
			if (entry->d_name[0] != '.' && readlinkat(fd, entry->d_name, link, sizeof(link)) > 8)
				sockets += !memcmp(link, "socket:[", 8);
		closedir(table);
	}
	closedir(processes);
	return sockets;
}

int main(int argc, char **argv)
{
	double begun = now(CLOCK_MONOTONIC), spent = now(CLOCK_PROCESS_CPUTIME_ID), wall, cpu;
	long bytes = 0, sockets;

	for (int k = 1; k < argc; k++)
		bytes += dump(argv[k]);
	wall = now(CLOCK_MONOTONIC);
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	printf("%.6f %.6f %ld\n", wall - begun, cpu - spent, bytes);
	sockets = walk();
	printf("%.6f %.6f %ld\n", now(CLOCK_MONOTONIC) - wall, now(CLOCK_PROCESS_CPUTIME_ID) - cpu, sockets);
	return 0;
}
