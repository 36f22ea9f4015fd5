import java.net.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;

/** A server that leaves its connection in the way that args[1] names; args[0] is the port on 127.0.0.1. */
public class Server {
    public static void main(String[] args) throws Exception {
        var at = new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0]));
        switch (args[1]) {
            case "forgotten" -> {
                var socket = listening(at).accept();
                Thread.sleep(Long.MAX_VALUE);
                socket.close();
            }
            case "half" -> {
                var socket = listening(at).accept();
                socket.shutdownOutput();
                socket.getInputStream().read();
            }
            case "half-limited" -> {
                var socket = listening(at).accept();
                socket.setSoTimeout(3_600_000);
                socket.shutdownOutput();
                socket.getInputStream().read();
            }
            default -> nio(at, args[1]);
        }
    }

    private static ServerSocket listening(InetSocketAddress at) throws Exception {
        var listener = new ServerSocket();
        listener.bind(at);
        return listener;
    }

    private static void nio(InetSocketAddress at, String how) throws Exception {
        var selector = Selector.open();
        var channel = ServerSocketChannel.open().bind(at).accept();
        channel.configureBlocking(false);
        var key = channel.register(selector, SelectionKey.OP_READ);
        if (how.equals("nio-half")) {
            channel.shutdownOutput();
        }
        while (true) {
            selector.select();
            selector.selectedKeys().clear();
            if (how.equals("nio-paused")) {
                key.interestOps(0);
            } else if (how.equals("nio-stuck")) {
                Thread.sleep(Long.MAX_VALUE);
            }
        }
    }
}
