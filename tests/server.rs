//! The whole server in this process, on the embedded exchange: real HTTP and websockets
//! over loopback, and no broker.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use chat3_gateway::{
    BindError, Config, Metrics, RabbitMqService, Server,
    broker::{Broker, embedded::EmbeddedExchange},
    config::RabbitMqConfig,
};
use futures_util::{
    SinkExt, StreamExt,
    future::{join, join_all},
};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error as WebSocketError, Message},
};

const SECRET: &str = "thirty-two-bytes-of-a-secret-key";
const DEADLINE: Duration = Duration::from_secs(10);

/// A configuration with a key, on a free port of loopback.
fn config() -> Config {
    let mut config = Config {
        host: "127.0.0.1".to_owned(),
        ..Config::default()
    };
    config.http.port = 0;
    config.jwt.jwt_secret = Some(SECRET.into());
    config
}

fn exchange(binding_keys: &str) -> Arc<EmbeddedExchange> {
    Arc::new(EmbeddedExchange::new(binding_keys.parse().unwrap()))
}

fn token(claims: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).unwrap()
}

/// A token that expires in 2100.
fn token_of(user: &str) -> String {
    token(json!({"userId": user, "exp": 4_102_444_800_u64}))
}

/// A server that serves until it is told to stop.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl Running {
    async fn start(config: Config, broker: Arc<dyn Broker>) -> Self {
        let server = Server::builder(config).broker(broker).bind().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            address: server.local_addr(),
            stop,
            ended: tokio::spawn(server.run(async { _ = stopped.await })),
        }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(DEADLINE, self.ended).await.unwrap().unwrap();
    }
}

/// A client with as much of Engine.IO 4 and Socket.IO 5 as the tests need.
#[derive(Debug)]
struct Client(WebSocketStream<TcpStream>);

/// Why a client could not connect.
#[derive(Debug, PartialEq)]
enum Refused {
    /// The handshake was refused, with this HTTP status.
    Handshake(u16),
    /// The socket was refused, with this message of `connect_error`.
    Socket(String),
}

impl Client {
    async fn connect(address: SocketAddr, token: &str) -> Result<Self, Refused> {
        let stream = TcpStream::connect(address).await.unwrap();
        let url = format!("ws://{address}/socket.io/?EIO=4&transport=websocket");
        let mut client = match client_async(url, stream).await {
            Ok((stream, _)) => Self(stream),
            Err(WebSocketError::Http(answer)) => {
                return Err(Refused::Handshake(answer.status().as_u16()));
            }
            Err(error) => panic!("{error}"),
        };
        assert!(client.packet().await.unwrap().starts_with('0'));
        let connect = format!("40{}", json!({"token": token}));
        client.0.send(Message::text(connect)).await.unwrap();
        let reply = client.packet().await.unwrap();
        match reply.split_at(2) {
            ("40", _) => Ok(client),
            ("44", error) => {
                let error: Value = serde_json::from_str(error).unwrap();
                Err(Refused::Socket(error["message"].as_str().unwrap().into()))
            }
            _ => panic!("{reply}"),
        }
    }

    /// The next packet; `None` at the end of the connection.
    async fn packet(&mut self) -> Option<String> {
        loop {
            match timeout(DEADLINE, self.0.next()).await.unwrap() {
                // An Engine.IO ping.
                Some(Ok(Message::Text(text))) if text.as_str() == "2" => {
                    self.0.send(Message::text("3")).await.unwrap();
                }
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_) | Message::Frame(_))) => panic!("a binary frame"),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            }
        }
    }

    /// The number of the next update; `None` at the end of the connection.
    async fn update(&mut self) -> Option<u64> {
        while let Some(packet) = self.packet().await {
            if let Some(event) = packet.strip_prefix("42") {
                let event: Value = serde_json::from_str(event).unwrap();
                if event[0] == "chat3:update" {
                    return event[1]["data"]["number"].as_u64();
                }
            }
        }
        None
    }
}

async fn publish(exchange: &EmbeddedExchange, user: &str, number: u64) -> usize {
    publish_padded(exchange, user, number, 0).await
}

/// Publishes an update that has at least `bytes` bytes.
async fn publish_padded(
    exchange: &EmbeddedExchange,
    user: &str,
    number: u64,
    bytes: usize,
) -> usize {
    let update = json!({
        "userId": user, "tenantId": "tnt_1", "eventType": "message.create",
        "data": {"number": number, "padding": "x".repeat(bytes)},
    });
    let key = format!("user.{user}.messageupdate");
    exchange
        .publish(&key, Bytes::from(update.to_string()))
        .await
}

#[tokio::test]
async fn a_client_is_sent_its_own_updates_in_their_order() {
    let exchange = exchange("user.{userId}.*");
    let server = Running::start(config(), exchange.clone()).await;
    let mut alice = Client::connect(server.address, &token_of("alice"))
        .await
        .unwrap();
    let mut bob = Client::connect(server.address, &token_of("bob"))
        .await
        .unwrap();
    for number in 0..100 {
        assert_eq!(publish(&exchange, "alice", number).await, 1);
        assert_eq!(publish(&exchange, "bob", 1_000 + number).await, 1);
    }
    for number in 0..100 {
        assert_eq!(alice.update().await, Some(number));
        assert_eq!(bob.update().await, Some(1_000 + number));
    }
    let metrics = server.get("/metrics").await;
    assert!(metrics.contains("chat3_gateway_updates_delivered_total 200\n"));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_is_refused_is_told_why() {
    let server = Running::start(config(), exchange("user.{userId}.*")).await;
    for (token, message) in [
        (String::new(), "token missing"),
        ("nonsense".to_owned(), "invalid token"),
        (token(json!({"userId": "alice", "exp": 1})), "token expired"),
        (token(json!({"userId": "alice"})), "token without expiry"),
    ] {
        let refused = Client::connect(server.address, &token).await.unwrap_err();
        assert_eq!(refused, Refused::Socket(message.to_owned()));
    }
    server.stop().await;
}

/// The verifier learns from the broker that the binding keys need a tenant.
#[tokio::test]
async fn a_token_without_a_tenant_is_refused_where_the_binding_keys_need_one() {
    let server = Running::start(config(), exchange("{tenantId}.{userId}.*")).await;
    let refused = Client::connect(server.address, &token_of("alice")).await;
    let message = "token without tenant id".to_owned();
    assert_eq!(refused.unwrap_err(), Refused::Socket(message));
    let claims = json!({"userId": "alice", "tenantId": "tnt_1", "exp": 4_102_444_800_u64});
    Client::connect(server.address, &token(claims))
        .await
        .unwrap();
    server.stop().await;
}

/// The clients read nothing until the shutdown has begun, and the operating system cannot
/// buffer what is published: the server still holds most of it.
#[tokio::test]
async fn a_shutdown_hands_over_what_was_published_and_then_closes() {
    let exchange = exchange("user.{userId}.*");
    let mut config = config();
    config.http.shutdown_spread = Duration::from_millis(100);
    let server = Running::start(config, exchange.clone()).await;
    let address = server.address;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::connect(address, &token_of("alice")).await.unwrap());
    }
    for number in 0..50 {
        publish_padded(&exchange, "alice", number, 40_000).await;
    }
    let read = |mut client: Client| async move {
        for number in 0..50 {
            assert_eq!(client.update().await, Some(number));
        }
        assert_eq!(client.update().await, None);
    };
    join(server.stop(), join_all(clients.into_iter().map(read))).await;
    assert!(TcpStream::connect(address).await.is_err());
}

/// The servers share a broker and its metrics, but no limits.
#[tokio::test]
async fn two_servers_in_one_process_share_no_limits() {
    let nowhere = RabbitMqConfig {
        url: "amqp://127.0.0.1:1".parse().unwrap(),
        ..RabbitMqConfig::default()
    };
    let broker = Arc::new(RabbitMqService::connect(nowhere, Metrics::new()));
    let mut config = config();
    config.http.max_sockets = 1;
    let one = Running::start(config.clone(), broker.clone()).await;
    let other = Running::start(config, broker).await;
    let _alice = Client::connect(one.address, &token_of("alice"))
        .await
        .unwrap();
    let _bob = Client::connect(other.address, &token_of("bob"))
        .await
        .unwrap();
    for server in [&one, &other] {
        let refused = Client::connect(server.address, &token_of("carl")).await;
        assert_eq!(refused.unwrap_err(), Refused::Handshake(503));
    }
    let metrics = one.get("/metrics").await;
    assert!(metrics.contains("chat3_gateway_sockets 2\n"), "{metrics}");
    one.stop().await;
    // The end of the first server does not end the other.
    assert!(other.get("/ready").await.starts_with("HTTP/1.1 200"));
    other.stop().await;
}

#[tokio::test]
async fn wrong_settings_are_told_before_anything_is_started() {
    let without_key = Server::builder(Config {
        host: "127.0.0.1".to_owned(),
        ..Config::default()
    });
    let error = without_key.bind().await.err().unwrap();
    assert!(matches!(error, BindError::Keys(_)), "{error}");

    let mut one_exchange = config();
    one_exchange.rabbitmq.control_exchange = one_exchange.rabbitmq.exchange.clone();
    let error = Server::builder(one_exchange).bind().await.err().unwrap();
    assert!(matches!(error, BindError::ControlExchange), "{error}");

    let mut one_exchange = config();
    one_exchange.rabbitmq.presence_exchange = one_exchange.rabbitmq.exchange.clone();
    let error = Server::builder(one_exchange).bind().await.err().unwrap();
    assert!(matches!(error, BindError::PresenceExchange), "{error}");

    let server = Running::start(config(), exchange("user.{userId}.*")).await;
    let port = server.address.port();
    let mut taken = config();
    taken.http.port = port;
    let error = Server::builder(taken).bind().await.err().unwrap();
    let advice = format!("; set PORT to another port than {port}");
    assert!(error.to_string().ends_with(&advice), "{error}");
    server.stop().await;
}
