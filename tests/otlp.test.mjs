// Spans over OTLP/HTTP, as a collector receives them. Run by `make otlp`, which
// builds the binary with the feature `otlp`.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import https from 'node:https';
import path from 'node:path';
import { before, test } from 'node:test';

import { Broker, Gateway, Publisher, Tab, run, temporaryFolder, until } from './e2e/harness.mjs';

/** A collector, which keeps what it receives. */
class Collector {
  /** `tls` are a certificate and its key, for https. */
  static async start(tls) {
    const collector = new Collector();
    collector.requests = [];
    collector.status = 200;
    const listen = tls ? (handler) => https.createServer(tls, handler) : createServer;
    collector.server = listen((request, response) => {
      const chunks = [];
      request.on('data', (chunk) => chunks.push(chunk));
      request.on('end', () => {
        collector.requests.push({ url: request.url, headers: request.headers, body: Buffer.concat(chunks) });
        response.writeHead(collector.status, { 'content-type': request.headers['content-type'] }).end();
      });
    });
    await new Promise((resolve) => collector.server.listen(0, '127.0.0.1', resolve));
    collector.server.unref();
    collector.url = `${tls ? 'https' : 'http'}://127.0.0.1:${collector.server.address().port}`;
    return collector;
  }

  /** The spans of JSON payloads, each with its resource. */
  get spans() {
    const attributes = (list = []) => Object.fromEntries(list.map(({ key, value }) => [key, Object.values(value)[0]]));
    return this.requests.flatMap(({ body }) => JSON.parse(body).resourceSpans).flatMap(({ resource, scopeSpans }) =>
      scopeSpans.flatMap(({ spans }) => spans.map((span) => ({
        ...span, attributes: attributes(span.attributes), resource: attributes(resource.attributes),
      }))));
  }

  named(name) {
    return this.spans.filter((span) => span.name === name);
  }
}

let broker;
let publisher;
before(async () => {
  broker = await Broker.start();
  publisher = await Publisher.connect(broker);
});

const variables = (collector, more = {}) => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
  OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json',
  OTEL_BSP_SCHEDULE_DELAY: '100',
  ...more,
});

test('a connect is a trace with its parts, and so are an order and the work at the broker', async () => {
  const collector = await Collector.start();
  const gateway = await Gateway.start(broker, {
    env: variables(collector, {
      ADMIN_TOKEN: 'adm1n',
      OTEL_EXPORTER_OTLP_HEADERS: 'x-key=k%20v',
      OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=test',
    }),
  });
  const tab = await Tab.open(gateway, 'usr_o');
  await new Tab(gateway, 'no token').refused();
  await tab.saw(publisher.update('usr_o'));
  const headers = { authorization: 'Bearer adm1n' };
  await gateway.get('/api/users/usr_o/disconnect', { method: 'POST', headers });
  await until('the spans', () => collector.named('connect').length >= 2 && collector.named('order').length === 1);

  const [request] = collector.requests;
  assert.deepEqual([request.url, request.headers['x-key']], ['/v1/traces', 'k v']);
  const children = ({ traceId, spanId }) => collector.spans.filter((span) => span.traceId === traceId && span.parentSpanId === spanId);
  const [connect, refused] = collector.named('connect');
  assert.deepEqual(children(connect).map(({ name }) => name), ['verify_token', 'wait_for_subscription']);
  assert.deepEqual(children(refused).map(({ name }) => name), ['verify_token']);
  assert.equal(children(connect)[1].attributes.user_id, 'usr_o');
  // The log lines of the connect are events of the span.
  assert.deepEqual(refused.events.map(({ name }) => name), ['Connection refused']);
  assert.equal(connect.resource['service.name'], 'chat3-gateway');
  assert.equal(connect.resource['deployment.environment.name'], 'test');
  assert.equal(collector.named('rabbitmq_connect').length, 1);
  assert.equal(Number(collector.named('subscribe')[0].attributes.users), 1);
  assert.match(collector.named('order')[0].attributes.target, /usr_o/);
  // Spans of updates are for debugging only.
  assert.equal(collector.named('deliver').length, 0);
  // Log lines are the same as without spans.
  assert.match(gateway.logs, /Z {2}INFO chat3_gateway::socketio::endpoint: Connection refused/);
  assert.doesNotMatch(JSON.stringify(collector.spans), /eyJ/);
});

test('at debug level each update has a span, and queued spans are sent at the end', async () => {
  const collector = await Collector.start();
  const env = variables(collector, { RUST_LOG: 'info,chat3_gateway=debug', OTEL_BSP_SCHEDULE_DELAY: '60000', OTEL_SERVICE_NAME: 'chat' });
  const gateway = await Gateway.start(broker, { env });
  const tab = await Tab.open(gateway, 'usr_d');
  for (let i = 0; i < 3; i += 1) await tab.saw(publisher.update('usr_d', { data: { content: 's3cret-content' } }));
  assert.equal(collector.requests.length, 0);
  const { code } = await gateway.terminate();
  assert.equal(code, 0);
  const delivered = collector.named('deliver');
  assert.equal(delivered.length, 3);
  assert.deepEqual([delivered[0].attributes.user_id, delivered[0].attributes.routing_key], ['usr_d', 'user.usr_d.messageupdate']);
  assert.equal(delivered[0].resource['service.name'], 'chat');
  assert.doesNotMatch(JSON.stringify(collector.spans), /s3cret-content/);
});

test('without a protocol it is protobuf', async () => {
  const collector = await Collector.start();
  const gateway = await Gateway.start(broker, { env: { ...variables(collector), OTEL_EXPORTER_OTLP_PROTOCOL: '' } });
  await Tab.open(gateway, 'usr_p');
  await until('spans', () => collector.requests.some(({ body }) => body.includes('verify_token')));
  assert.equal(collector.requests[0].headers['content-type'], 'application/x-protobuf');
});

test('a collector behind TLS is verified, and may have a private CA', async () => {
  const cwd = temporaryFolder();
  await run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'key.pem', '-out', 'cert.pem', '-days', '2', '-subj', '/CN=collector', '-addext', 'subjectAltName=IP:127.0.0.1', '-addext', 'basicConstraints=critical,CA:FALSE'], { cwd });
  const certificate = path.join(cwd, 'cert.pem');
  const collector = await Collector.start({ cert: readFileSync(certificate), key: readFileSync(path.join(cwd, 'key.pem')) });
  const gateway = await Gateway.start(broker, { env: variables(collector, { OTEL_EXPORTER_OTLP_CERTIFICATE: certificate }) });
  await Tab.open(gateway, 'usr_t');
  await until('spans', () => collector.named('connect').length === 1);
  const wary = await Gateway.start(broker, { env: variables(collector) });
  await wary.logged(/WARN.*Spans not exported reason=.*certificate.*UnknownIssuer/);
});

test('an option that is not supported is a warning at the start, and does not prevent it', async () => {
  const collector = await Collector.start();
  for (const [more, reason] of [
    [{ OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' }, /WARN.*Spans are not exported error=.*"grpc" is none of http\/protobuf, http\/json/],
    [{ OTEL_EXPORTER_OTLP_CERTIFICATE: '/nowhere/ca.pem' }, /WARN.*Spans are not exported error=.*\/nowhere\/ca\.pem/],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'not a URL' }, /WARN.*Spans are not exported error=/],
  ]) {
    const gateway = await Gateway.start(broker, { env: variables(collector, more) });
    await gateway.logged(reason);
    await Tab.open(gateway, 'usr_w');
  }
});

test('a collector that is away is one warning, and nothing else', async () => {
  const collector = await Collector.start();
  collector.status = 500;
  const gateway = await Gateway.start(broker, { env: variables(collector) });
  const connects = async (times) => {
    for (let i = 0; i < times; i += 1) (await Tab.open(gateway, `usr_${i}`)).close();
  };
  await connects(1);
  await gateway.logged(/WARN.*Spans not exported reason=/);
  const seen = collector.requests.length;
  await connects(2);
  await until('further batches', () => collector.requests.length > seen);
  const tab = await Tab.open(gateway, 'usr_a');
  await tab.saw(publisher.update('usr_a'));
  assert.equal(gateway.logs.match(/Spans not exported/g).length, 1);
  collector.status = 200;
  await connects(2);
  await gateway.logged(/INFO.*Spans exported again/);
});

test('a collector that does not answer delays nothing, not even the shutdown', async () => {
  const silent = createServer(() => {});
  await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve));
  silent.unref();
  const url = `http://127.0.0.1:${silent.address().port}`;
  const gateway = await Gateway.start(broker, { env: variables({ url }) });
  const tab = await Tab.open(gateway, 'usr_s');
  await tab.saw(publisher.update('usr_s'));
  const { code, ms } = await gateway.terminate();
  assert.equal(code, 0);
  // At most two seconds for the shutdown, and two for the last spans.
  assert.ok(ms < 6_000, `${ms} ms`);
  silent.closeAllConnections();
});

test('without an endpoint, or switched off, nothing is sent', async () => {
  const collector = await Collector.start();
  for (const env of [{ OTEL_SDK_DISABLED: 'true' }, { OTEL_TRACES_EXPORTER: 'none' }, { OTEL_EXPORTER_OTLP_ENDPOINT: '' }]) {
    const gateway = await Gateway.start(broker, { env: variables(collector, env) });
    await Tab.open(gateway, 'usr_n');
    await gateway.terminate();
    assert.doesNotMatch(gateway.logs, /Spans/);
  }
  assert.equal(collector.requests.length, 0);
});
