/* A program that is told in one way of what happens on a half-closed connection, or in none.
 *
 * `waits PORT WAY`: it connects, shuts down its sending side, and prints the descriptor of that connection once it waits.
 * It prints WOKEN as soon as it notices something on the connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int port, s, shown = -1;
static char bytes[16];
static const char *way;

static int is(const char *name) { return !strcmp(way, name); }
static void need(int fine, const char *what) {
    if (!fine) {
        dprintf(1, "CANNOT %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}
static void hang(void) {
    for (;;) pause();
}
static void woken(void) { write(1, "WOKEN\n", 6); }
static void on_signal(int number) {
    (void)number;
    woken();
}
static void ready(void) { dprintf(1, "%d\n", shown < 0 ? s : shown); }
static int connected(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    need(!connect(fd, (void *)&address, sizeof address), "connect");
    return fd;
}
static pid_t child(void) {
    pid_t parent = getpid(), pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
    }
    return pid;
}

static void wait_in_call(int fd) {
    fd_set set;
    struct pollfd one = {fd, POLLIN, 0};
    struct iovec vector = {bytes, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (is("readv")) readv(fd, &vector, 1);
    else if (is("recvmsg")) recvmsg(fd, &message, 0);
    else if (is("poll")) poll(&one, 1, -1);
    else if (is("ppoll")) ppoll(&one, 1, 0, 0);
    else if (is("select")) {
        FD_ZERO(&set);
        FD_SET(fd, &set);
        select(fd + 1, &set, 0, 0, 0);
    } else if (is("splice")) {
        int ends[2];
        need(!pipe(ends), "pipe");
        splice(fd, 0, ends[1], 0, 1, 0);
    } else read(fd, bytes, 1);
    woken();
    hang();
}
static void wait_in_loop(int loop) {
    struct epoll_event event;
    epoll_wait(loop, &event, 1, -1);
    woken();
    hang();
}
static int loop_of(int fd) {
    int loop = epoll_create1(0);
    struct epoll_event event = {.events = is("loop-of-child-rdnorm") ? EPOLLRDNORM : EPOLLIN};
    need(!epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    return loop;
}
static void moved(int *fd, int to) {
    int copy = fcntl(*fd, F_DUPFD, to);
    close(*fd);
    *fd = copy;
}

struct ring {
    int fd;
    unsigned *head, *tail;
    unsigned char *rings;
    struct io_uring_params p;
};
static void ring_submit(struct ring *ring, int opcode, int fd, unsigned flags) {
    memset(&ring->p, 0, sizeof ring->p);
    ring->fd = syscall(SYS_io_uring_setup, 8, &ring->p);
    need(ring->fd >= 0, "io_uring_setup");
    size_t size = ring->p.sq_off.array + ring->p.sq_entries * sizeof(unsigned);
    size_t other = ring->p.cq_off.cqes + ring->p.cq_entries * sizeof(struct io_uring_cqe);
    if (other > size) size = other;
    ring->rings = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
    struct io_uring_sqe *sqes = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
    need(ring->rings != MAP_FAILED && sqes != MAP_FAILED, "mmap");
    ring->head = (void *)(ring->rings + ring->p.cq_off.head);
    ring->tail = (void *)(ring->rings + ring->p.cq_off.tail);
    memset(sqes, 0, sizeof *sqes);
    sqes->opcode = opcode;
    sqes->fd = fd;
    sqes->flags = flags;
    if (opcode == IORING_OP_POLL_ADD) sqes->poll_events = POLLIN;
    else {
        sqes->addr = (uintptr_t)bytes;
        sqes->len = 1;
    }
    ((unsigned *)(ring->rings + ring->p.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(ring->rings + ring->p.sq_off.tail), 1, __ATOMIC_RELEASE);
    need(syscall(SYS_io_uring_enter, ring->fd, 1, 0, 0, 0, 0) == 1, "io_uring_enter");
}
static void ring_without_descriptor(struct ring *ring) {
    struct io_uring_rsrc_update update = {.offset = -1U, .data = ring->fd};
    need(syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_RING_FDS, &update, 1) == 1, "register the ring");
    close(ring->fd);
    ring->fd = update.offset;
}
static void ring_wait(struct ring *ring, unsigned flags) {
    syscall(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS | flags, 0, 0);
    woken();
    hang();
}
static void io_uring(void) {
    struct ring ring;
    int loop = is("uring-of-loop") ? loop_of(s) : -1;
    ring_submit(&ring, loop < 0 ? IORING_OP_RECV : IORING_OP_POLL_ADD, loop < 0 ? s : loop,
                is("uring-worker") ? IOSQE_ASYNC : 0);
    if (is("uring") || is("uring-of-loop")) {
        ready();
        ring_wait(&ring, 0);
    }
    if (is("uring-asleep")) {
        ready();
        hang();
    }
    ring_without_descriptor(&ring);
    ready();
    if (is("uring-closed")) ring_wait(&ring, IORING_ENTER_REGISTERED_RING);
    hang(); /* uring-closed-asleep, uring-worker */
}
static void libaio(void) {
    aio_context_t context = 0;
    uint64_t number;
    struct io_event events[2];
    struct iocb block = {.aio_fildes = s, .aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN}, *blocks[1] = {&block};
    need(!syscall(SYS_io_setup, 8, &context), "io_setup");
    int counter = eventfd(0, 0);
    if (is("aio-eventfd")) {
        block.aio_flags = IOCB_FLAG_RESFD;
        block.aio_resfd = counter;
    }
    need(syscall(SYS_io_submit, context, 1, blocks) == 1, "io_submit");
    ready();
    if (is("aio-eventfd")) read(counter, &number, 8);
    else syscall(SYS_io_getevents, context, 1, 2, events, 0);
    woken();
    hang();
}
static void by_signal(void) {
    sigset_t set;
    int number = is("sigio") ? SIGIO : strstr(way, "realtime") ? SIGRTMIN + 1 : strstr(way, "usr1") ? SIGUSR1 : SIGIO;
    pid_t owner = getpid();
    sigemptyset(&set);
    sigaddset(&set, number);
    if (is("signal-of-another")) {
        int ends[2];
        need(!pipe(ends), "pipe");
        owner = child();
        if (!owner) {
            close(s);
            signal(number, on_signal);
            write(ends[1], "x", 1);
            hang();
        }
        read(ends[0], bytes, 1);
    } else if (strstr(way, "handler") || is("sigio")) signal(number, on_signal);
    else sigprocmask(SIG_BLOCK, &set, 0);
    fcntl(s, F_SETOWN, owner);
    if (number != SIGIO) fcntl(s, F_SETSIG, number);
    fcntl(s, F_SETFL, O_ASYNC);
    ready();
    if (strstr(way, "sigwait")) {
        sigwaitinfo(&set, 0);
        woken();
    }
    if (strstr(way, "signalfd")) {
        struct signalfd_siginfo info;
        read(signalfd(-1, &set, 0), &info, sizeof info);
        woken();
    }
    hang();
}

static pthread_barrier_t barrier;
static void *reader(void *argument) {
    (void)argument;
    pthread_barrier_wait(&barrier);
    wait_in_call(s);
    return 0;
}
static void *locked(void *argument) {
    pthread_mutex_lock(argument);
    return 0;
}
static void *with_own_table(void *argument) {
    (void)argument;
    need(!unshare(CLONE_FILES), "unshare");
    int copy = fcntl(s, F_DUPFD, 50);
    close(s);
    pthread_barrier_wait(&barrier);
    if (is("own-table-loop")) wait_in_loop(loop_of(copy));
    wait_in_call(copy);
    return 0;
}
static void *survivor(void *argument) {
    struct ring ring;
    (void)argument;
    usleep(200000); /* until the main thread has ended */
    if (is("main-ended-uring")) {
        ring_submit(&ring, IORING_OP_RECV, s, 0);
        ring_without_descriptor(&ring);
    }
    int loop = is("main-ended-loop") ? loop_of(s) : -1;
    ready();
    if (loop >= 0) wait_in_loop(loop);
    if (is("main-ended-reads")) wait_in_call(s);
    hang();
    return 0;
}
static int shares_table(void *argument) {
    (void)argument;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_in_call(s);
    return 0;
}
static void threads(void) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static char stack[1 << 16];
    pthread_t thread;
    pthread_barrier_init(&barrier, 0, 2);
    if (is("locked")) {
        pthread_mutex_lock(&mutex);
        pthread_create(&thread, 0, locked, &mutex);
    } else if (!strncmp(way, "own-table", 9)) {
        pthread_create(&thread, 0, with_own_table, 0);
        pthread_barrier_wait(&barrier);
    } else if (!strncmp(way, "main-ended", 10)) {
        pthread_create(&thread, 0, survivor, 0);
        pthread_exit(0);
    } else if (is("shared-table")) {
        need(clone(shares_table, stack + sizeof stack, CLONE_FILES | SIGCHLD, 0) > 0, "clone");
    } else { /* thread, and those whose descriptor moves away from under the call */
        pthread_create(&thread, 0, reader, 0);
        pthread_barrier_wait(&barrier);
        usleep(100000);
        if (!is("thread")) moved(&s, 30);
        if (is("moved-file")) need(open("/proc/self/exe", O_RDONLY) >= 0, "open");
        if (is("moved-socket")) shutdown(connected(), SHUT_WR);
    }
    ready();
    hang();
}
static void loops(void) {
    int loop = loop_of(s);
    struct pollfd one = {loop, POLLIN, 0};
    if (is("loop-copied")) {
        int copy = fcntl(loop, F_DUPFD, 40);
        ready();
        wait_in_loop(copy);
    }
    if (is("loop-of-moved-socket")) moved(&s, 40);
    if (is("loop-in-poll")) {
        ready();
        poll(&one, 1, -1);
        woken();
        hang();
    }
    if (is("nested") || is("nested-moved") || is("nested-deep")) {
        int outer = loop_of(loop);
        if (is("nested-deep")) outer = loop_of(outer);
        if (is("nested-moved")) {
            moved(&loop, 60);
            need(eventfd(0, 0) >= 0, "eventfd"); /* which takes the number as it was registered */
        }
        ready();
        wait_in_loop(outer);
    }
    if (is("loop-of-child") || is("loop-of-child-rdnorm") || is("loop-of-stuck-child") || is("loop-shared")) {
        /* a child sleeps in it, which has not the socket */
        if (!child()) {
            if (is("loop-of-stuck-child")) shutdown(connected(), SHUT_WR);
            close(s);
            wait_in_loop(loop);
        }
        if (!is("loop-shared")) close(loop);
        ready();
        hang();
    }
    ready();
    if (is("loop-left")) hang();
    wait_in_loop(loop);
}
static void busy(void) {
    struct pollfd one = {s, POLLIN, 0};
    struct timespec begun, now;
    ready();
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &begun);
        do clock_gettime(CLOCK_MONOTONIC, &now);
        while ((now.tv_sec - begun.tv_sec) * 1000000000L + now.tv_nsec - begun.tv_nsec < 30000000L);
        if (poll(&one, 1, 1) > 0) {
            woken();
            hang();
        }
    }
}

int main(int count, char **arguments) {
    (void)count;
    port = atoi(arguments[1]);
    way = arguments[2];
    s = connected();
    shutdown(s, SHUT_WR);
    if (!strncmp(way, "uring", 5)) io_uring();
    if (!strncmp(way, "aio", 3)) libaio();
    if (!strncmp(way, "sig", 3)) by_signal();
    if (!strncmp(way, "loop", 4) || !strncmp(way, "nested", 6)) loops();
    if (is("busy")) busy();
    if (is("child") && child()) {
        ready();
        hang();
    } else if (is("child")) wait_in_call(s);
    if (is("thread") || is("locked") || is("shared-table") || !strncmp(way, "moved", 5) || !strncmp(way, "own", 3) ||
        !strncmp(way, "main", 4))
        threads();
    ready();
    if (!is("forgotten") && !is("stopped")) wait_in_call(s);
    hang();
}
