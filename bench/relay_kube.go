// What userspace kube-proxy did with a connection: two io.Copy, and wait for both. For comparison of speed only: it leaks.
package main

import (
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
)

func main() {
	workers, _ := strconv.Atoi(os.Args[3])
	runtime.GOMAXPROCS(workers)
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		in, err := listener.Accept()
		if err != nil {
			continue
		}
		go func() {
			out, err := net.Dial("tcp", os.Args[2])
			if err != nil {
				in.Close()
				return
			}
			var both sync.WaitGroup
			both.Add(2)
			for _, ends := range [][2]*net.TCPConn{
				{in.(*net.TCPConn), out.(*net.TCPConn)}, {out.(*net.TCPConn), in.(*net.TCPConn)},
			} {
				go func(from, to *net.TCPConn) {
					defer both.Done()
					io.Copy(to, from)
					to.CloseWrite()
					from.CloseRead()
				}(ends[0], ends[1])
			}
			both.Wait()
			in.Close()
			out.Close()
		}()
	}
}
