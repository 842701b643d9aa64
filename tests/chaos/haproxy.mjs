// The real HAProxy in front of several gateways on loopback, as docs/SECURITY.md#proxies
// asks: polling clients are sticky by their address, websockets are not sticky at all.

import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { after } from 'node:test';

import { freePort, mortal, run, temporaryFolder, until } from '../e2e/harness.mjs';

const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };

/** Starts it in front of `urls`; resolves to `{ url, stop }` when it serves. */
export async function haproxy(urls) {
  const port = await freePort();
  const servers = urls.map((url, i) => `    server gateway-${i + 1} ${new URL(url).host}`).join('\n');
  const file = path.join(temporaryFolder(), 'haproxy.cfg');
  writeFileSync(file, `
defaults
    mode http
    timeout connect 2s
    timeout http-request 10s
    timeout client 90s
    timeout server 90s
    timeout tunnel 90s
    option redispatch
    option httpchk GET /ready
    default-server check inter 500ms fall 2 rise 1

frontend chat
    bind 127.0.0.1:${port}
    http-request deny deny_status 404 unless { path_beg /socket.io/ }
    # With a session's id, it is an upgrade, which must find its session.
    use_backend websockets if { urlp(transport) websocket } !{ urlp(sid) -m found }
    default_backend polling

backend websockets
    balance roundrobin
    http-request set-header X-Forwarded-For %[src]
${servers}

backend polling
    balance source
    hash-type consistent
    http-request set-header X-Forwarded-For %[src]
${servers}
`);
  await run('haproxy', ['-c', '-f', file], { env });
  const child = mortal(spawn('haproxy', ['-db', '-f', file], { env, stdio: 'ignore' }));
  const exited = new Promise((resolve) => child.once('close', resolve));
  const stop = async () => {
    child.kill('SIGKILL');
    await exited;
  };
  after(stop);
  const url = `http://127.0.0.1:${port}`;
  const handshake = () => fetch(`${url}/socket.io/?EIO=4&transport=polling`).then((answer) => answer.status, () => 0);
  await until('HAProxy serves', async () => (await handshake()) === 200).catch(async (error) => {
    await stop();
    throw error;
  });
  return { url, child, stop };
}
