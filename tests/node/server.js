// A Node HTTP server that also speaks just enough WebSocket to get stuck on one:
// node server.js PORT HOST[,HOST…] MODE
// MODE close-first: on SIGTERM stop listening at once, then say goodbye to every
//      WebSocket and exit once all of them have answered.
// MODE close-last: the same the other way round: the port goes with the last WebSocket.
'use strict';
const crypto = require('node:crypto');
const http = require('node:http');

const [port, hosts, mode] = [Number(process.argv[2]), process.argv[3].split(','), process.argv[4]];
const say = (line) => process.stdout.write(JSON.stringify({ node: line, pid: process.pid }) + '\n');
const sockets = new Set();
const servers = hosts.map(() => http.createServer((request, response) => response.end('alive\n')));

function upgrade(request, socket) {
  const accept = crypto
    .createHash('sha1')
    .update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11')
    .digest('base64');
  socket.write(
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  sockets.add(socket);
  // A close frame from the client (FIN and opcode 8) is the answer that is waited for.
  socket.on('data', (data) => (data[0] === 0x88 ? socket.end() : undefined));
  socket.on('close', () => {
    sockets.delete(socket);
    leaveIfAlone();
  });
  socket.on('error', () => socket.destroy());
}

let leaving = false;
let open = servers.length;
const closeServers = () => servers.forEach((server) => server.listening && server.close(() => { open -= 1; leaveIfAlone(); }));
function leaveIfAlone() {
  if (!leaving || sockets.size > 0) return;
  if (mode === 'close-last') closeServers();
  if (open === 0) process.exit(0);
}

process.on('SIGTERM', () => {
  if (leaving) return;
  leaving = true;
  say('term');
  if (mode === 'close-first') closeServers();
  // Close frame, code 1001: going away.
  for (const socket of sockets) socket.write(Buffer.from([0x88, 0x02, 0x03, 0xe9]));
  leaveIfAlone();
});

// The test's end closes standard input.
process.stdin.on('end', () => process.exit(0)).resume();

let listening = 0;
servers.forEach((server, index) => {
  server.on('upgrade', upgrade);
  server.on('error', (error) => { say(error.code); process.exit(98); });
  server.listen({ port, host: hosts[index] }, () => { if (++listening === servers.length) say('ready'); });
});
