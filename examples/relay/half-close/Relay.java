// A relay that half-closes. java Relay.java 127.0.0.1:8080 127.0.0.1:80
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.util.concurrent.atomic.AtomicInteger;

public class Relay {
    static final int TICK_MS = 1000;

    /** Joins two connections; each direction is a thread of its own, and the last one out closes. */
    static void relay(Socket a, Socket b, int silenceMs) throws IOException {
        AtomicInteger fins = new AtomicInteger();
        for (Socket s : new Socket[] {a, b}) {
            s.setKeepAlive(true);
            s.setTcpNoDelay(true);
            s.setSoTimeout(TICK_MS);                 // a change would not reach a read() under way
        }
        start(() -> pump(a, b, fins, silenceMs));
        start(() -> pump(b, a, fins, silenceMs));
    }

    static void pump(Socket from, Socket to, AtomicInteger fins, int silenceMs) {
        try {
            InputStream in = from.getInputStream();
            OutputStream out = to.getOutputStream();
            byte[] buffer = new byte[65536];
            int quietMs = 0;
            while (true) {
                try {
                    int n = in.read(buffer);
                    if (n < 0) {
                        break;
                    }
                    quietMs = 0;
                    out.write(buffer, 0, n);
                } catch (SocketTimeoutException nothing) {
                    quietMs += TICK_MS;
                    if (fins.get() > 0 && quietMs >= silenceMs) {
                        throw nothing;               // the cap on silence
                    }
                }
            }
            to.shutdownOutput();                     // pass the FIN on, and nothing else
            if (fins.incrementAndGet() == 2) {
                from.close();
                to.close();
            }
        } catch (IOException error) {
            for (Socket s : new Socket[] {from, to}) {
                cut(s);
            }
        }
    }

    /** Closes by RST: a cut answer never looks complete. */
    static void cut(Socket s) {
        try {
            s.setSoLinger(true, 0);
            s.close();
        } catch (IOException closed) {
            // the other thread was faster
        }
    }

    static void start(Runnable work) {
        Thread thread = new Thread(work);
        thread.setDaemon(true);
        thread.start();
    }

    static InetSocketAddress address(String text) throws IOException {
        int colon = text.lastIndexOf(':');
        return new InetSocketAddress(
            InetAddress.getByName(text.substring(0, colon)), Integer.parseInt(text.substring(colon + 1)));
    }

    public static void main(String[] args) throws IOException {
        ServerSocket listener = new ServerSocket();
        listener.bind(address(args[0]));
        while (true) {
            Socket client = listener.accept();
            start(() -> {
                Socket server = new Socket();
                try {
                    server.connect(address(args[1]), 5000);
                    relay(client, server, 300_000);
                } catch (IOException error) {
                    cut(client);
                }
            });
        }
    }
}
