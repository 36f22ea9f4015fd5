// A Node server that leaves its connection in the way that argv[3] names; argv[2] is the port on 127.0.0.1.
const [, , port, how] = process.argv;
require('net').createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => {});
  if (how === 'paused') socket.pause();
  if (how === 'half') { socket.end(); socket.resume(); }
  if (how === 'blocked') socket.once('data', () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0));
  if (how === 'forgotten') { socket.resume(); global.kept = socket; }
}).listen(Number(port), '127.0.0.1');
