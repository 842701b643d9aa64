// Starts the proxies of examples/proxies and docker/haproxy, unchanged except for names,
// ports and certificates.

import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { run, testsFolder } from './e2e/harness.mjs';

/** The file of each proxy, the command that checks it, and the one that runs it. */
const PROXIES = {
  nginx: ['examples/proxies/nginx.conf', ['nginx', '-t', '-c'], ['nginx', '-c']],
  HAProxy: ['examples/proxies/haproxy.cfg', ['haproxy', '-c', '-f'], ['haproxy', '-db', '-f']],
  Caddy: ['examples/proxies/Caddyfile', ['caddy', 'validate', '--adapter', 'caddyfile', '--config'], ['caddy', 'run', '--adapter', 'caddyfile', '--config']],
  'HAProxy of compose.scale.yml': ['docker/haproxy/haproxy.cfg', ['haproxy', '-c', '-f'], ['haproxy', '-db', '-f']],
};

/** Writes a certificate for localhost into `folder`, for `startProxy`. */
export async function makeCertificate(folder) {
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'key.pem', '-out', 'cert.pem', '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
  await run('openssl', args, { cwd: folder });
  writeFileSync(path.join(folder, 'both.pem'), readFileSync(path.join(folder, 'cert.pem')) + readFileSync(path.join(folder, 'key.pem')));
}

/** Runs a proxy on `port` of loopback before gateways at `hosts` (addresses with ports). Its files are in `folder`. */
export async function startProxy(name, port, hosts, folder) {
  const [file, check, start] = PROXIES[name];
  let text = readFileSync(path.join(testsFolder, '..', file), 'utf8');
  const replaced = [
    ...hosts.map((host, i) => [`gateway-${i + 1}:3001`, host]),
    ['127.0.0.1:3001', hosts[0]], ['127.0.0.1:3002', hosts[1]],
    // There is no name server, and there are no names.
    [' resolvers names init-addr libc,none', ''],
    ['/etc/ssl/chat.example.com.pem', path.join(folder, 'cert.pem')],
    ['/etc/ssl/chat.example.com.key', path.join(folder, 'key.pem')],
    ['/etc/ssl/chat.example.com.both.pem', path.join(folder, 'both.pem')],
    ['listen 443 ssl', `listen 127.0.0.1:${port} ssl`],
    ['bind :443', `bind 127.0.0.1:${port}`],
    ['bind :3001', `bind 127.0.0.1:${port}`],
    ['chat.example.com {', `https://localhost:${port} {\n\tbind 127.0.0.1\n\ttls ${folder}/cert.pem ${folder}/key.pem`],
    ['server_name chat.example.com', 'server_name localhost'],
    // All its files are in this folder, and it has no other listener.
    ['events {}', `${process.getuid() === 0 ? 'user root; ' : ''}daemon off; pid ${folder}/nginx.pid; error_log stderr; events {}`],
    ['http {\n    upstream', `http { access_log off; ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${folder}/${kind};`).join(' ')}\n    upstream`],
  ];
  for (const [from, to] of replaced) text = text.replace(from, to);
  if (name === 'Caddy') text = `{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n${text}`;
  const configuration = path.join(folder, path.basename(file));
  writeFileSync(configuration, text);
  const env = { PATH: `${process.env.PATH}:/usr/sbin`, HOME: folder };
  await run(check[0], [...check.slice(1), configuration], { env });
  return spawn(start[0], [...start.slice(1), configuration], { env, stdio: 'ignore' });
}
