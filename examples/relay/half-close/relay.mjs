// A relay that half-closes. node relay.mjs 127.0.0.1:8080 127.0.0.1:80
import net from 'node:net';

const options = { allowHalfOpen: true, keepAlive: true, keepAliveInitialDelay: 15_000, noDelay: true };

function relay(a, b, silence) {
  const cut = () => {            // by RST: a cut answer never looks complete
    a.resetAndDestroy();
    b.resetAndDestroy();
  };
  for (const [from, to] of [[a, b], [b, a]]) {
    from.pipe(to);               // at the end of `from` it calls to.end(): the FIN, and nothing else
    from.on('error', cut);
    from.on('end', () => to.setTimeout(silence, cut));   // the cap: silence of the other direction
  }
}

const split = text => [Number(text.slice(text.lastIndexOf(':') + 1)), text.slice(0, text.lastIndexOf(':'))];
const [port, host] = split(process.argv[2]);
const [toPort, toHost] = split(process.argv[3]);

net.createServer(options, client => {
  relay(client, net.connect({ port: toPort, host: toHost, ...options }), 300_000);
}).listen(port, host);
