// A server that leaves its connection in the way that the second argument names; the first is the port on 127.0.0.1.
package main

import (
	"net"
	"net/http"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	if os.Args[2] == "handler" { // a handler that never returns
		panic(http.Serve(listener, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { select {} })))
	}
	connection, err := listener.Accept()
	if err != nil {
		panic(err)
	}
	_ = connection.(*net.TCPConn).CloseWrite() // "half": and a goroutine reads
	_, _ = connection.Read(make([]byte, 1))
}
