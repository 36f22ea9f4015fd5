// A relay that half-closes. go run relay.go 127.0.0.1:8080 127.0.0.1:80
package main

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// relay joins two connections until both have ended.
func relay(a, b *net.TCPConn, silence time.Duration) {
	var half atomic.Bool
	ended := make(chan error, 4)
	pump := func(src, dst *net.TCPConn) {
		buf := make([]byte, 64<<10)
		for {
			if half.Load() {
				src.SetReadDeadline(time.Now().Add(silence)) // the cap, anew with each byte
			}
			n, err := src.Read(buf)
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					ended <- err
					return
				}
			}
			if err == io.EOF { // pass the FIN on, and nothing else
				half.Store(true)
				dst.SetReadDeadline(time.Now().Add(silence))
				ended <- dst.CloseWrite()
				awaitError(src, ended)
				return
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}
	for _, c := range []*net.TCPConn{a, b} {
		c.SetKeepAlive(true) // the probe that a peer which is gone answers by RST
		c.SetKeepAlivePeriod(15 * time.Second)
	}
	go pump(a, b)
	go pump(b, a)
	for fins := 0; fins < 2; fins++ {
		if err := <-ended; err != nil { // cut by RST: a cut answer never looks complete
			a.SetLinger(0)
			b.SetLinger(0)
			break
		}
	}
	a.Close()
	b.Close()
}

// awaitError waits until a connection whose EOF was read fails; nobody reads from it any more, so nobody else would see it.
func awaitError(c *net.TCPConn, ended chan<- error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		number, _ := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if number != 0 {
			ended <- syscall.Errno(number)
		}
		return number != 0
	})
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			server, err := net.DialTimeout("tcp", os.Args[2], 5*time.Second)
			if err != nil {
				client.(*net.TCPConn).SetLinger(0)
				client.Close()
				return
			}
			relay(client.(*net.TCPConn), server.(*net.TCPConn), 5*time.Minute)
		}()
	}
}
