//! A private RabbitMQ for the integration tests: own port and data folder, on
//! loopback, killed by its pid when it goes out of scope.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use amqprs::{
    BasicProperties, FieldTable, FieldValue,
    channel::{
        BasicPublishArguments, Channel, ExchangeDeclareArguments, ExchangeDeleteArguments,
        QueueDeclareArguments,
    },
    connection::{Connection, OpenConnectionArguments},
};
use tokio::{net::TcpStream, sync::watch, task::JoinHandle};

/// The exchange that Chat3 publishes to.
pub const EXCHANGE: &str = "chat3_updates";

/// The longest time that anything here may take before its test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// After this long, RabbitMQ has written down that it has streams.
const STREAMS_KEPT: Duration = Duration::from_secs(6);

pub struct Broker {
    port: u16,
    folder: PathBuf,
    process: Child,
    /// When it may be killed, if that matters.
    may_die_at: Option<Instant>,
}

impl Broker {
    /// Starts a broker and waits until it accepts logins.
    pub async fn start() -> Self {
        let port = three_free_ports();
        let folder = std::env::temp_dir().join(format!("chat3-gateway-test-{port}"));
        // A run that was killed may have left a broker running, with its settings.
        let _ = std::fs::remove_dir_all(&folder);
        let mut broker = Self {
            process: run(&folder, port),
            port,
            folder,
            may_die_at: None,
        };
        broker.accepts_logins().await;
        if std::env::var("RABBITMQ_TOPOLOGY").is_ok_and(|topology| topology == "stream") {
            broker.declare_stream().await;
        }
        broker
    }

    /// RabbitMQ 3.10 never starts its streams again if it dies within 5 s of having declared
    /// the first of them. So it gets one when it starts, and is not restarted before.
    async fn declare_stream(&mut self) {
        let connection = self.open().await.expect("the broker accepts logins");
        let channel = connection.open_channel(None).await.unwrap();
        let mut arguments = FieldTable::new();
        let stream = FieldValue::S("stream".try_into().unwrap());
        arguments.insert("x-queue-type".try_into().unwrap(), stream);
        let declare = QueueDeclareArguments::new("first")
            .durable(true)
            .arguments(arguments)
            .finish();
        channel.queue_declare(declare).await.unwrap();
        self.may_die_at = Some(Instant::now() + STREAMS_KEPT);
    }

    /// Ends the broker as a power cut would, and starts it again on the same data.
    pub async fn restart(&mut self) {
        if let Some(at) = self.may_die_at {
            tokio::time::sleep_until(at.into()).await;
        }
        self.kill();
        self.process = run(&self.folder, self.port);
        self.accepts_logins().await;
    }

    pub fn url(&self) -> String {
        format!("amqp://rmuser:rmpassword@127.0.0.1:{}/", self.port)
    }

    /// The names of the gateway's queues.
    pub fn queues(&self) -> Vec<String> {
        let mut names = self.ctl(&["list_queues", "--no-table-headers", "name"]);
        names.retain(|name| name.starts_with("chat3-gateway."));
        names
    }

    /// The queues that are consumed; one with two consumers is listed twice.
    pub fn consumed_queues(&self) -> Vec<String> {
        self.ctl(&["list_consumers", "--no-table-headers", "queue_name"])
    }

    /// How many channels are open, those of all clients.
    pub fn channels(&self) -> usize {
        self.ctl(&["list_channels", "--no-table-headers", "pid"])
            .len()
    }

    /// How many connections are open, those of all clients.
    pub fn connections(&self) -> usize {
        self.ctl(&["list_connections", "--no-table-headers", "pid"])
            .len()
    }

    /// Runs `rabbitmqctl` and returns the lines that it prints.
    pub fn ctl(&self, arguments: &[&str]) -> Vec<String> {
        let output = script(&self.folder, self.port, "ctl")
            .args(arguments)
            .output();
        let Output {
            status,
            stdout,
            stderr,
        } = output.expect("rabbitmqctl runs");
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "rabbitmqctl {arguments:?}: {stderr}");
        let lines = String::from_utf8(stdout).expect("listings are UTF-8");
        lines.lines().map(str::to_owned).collect()
    }

    async fn accepts_logins(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.open().await.is_none() {
            let exited = self.process.try_wait().expect("the broker is our child");
            assert!(exited.is_none(), "RabbitMQ did not start: {exited:?}");
            assert!(Instant::now() < deadline, "RabbitMQ did not start in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn open(&self) -> Option<Connection> {
        let login = OpenConnectionArguments::new("127.0.0.1", self.port, "rmuser", "rmpassword");
        Connection::open(&login).await.ok()
    }

    fn kill(&mut self) {
        // An error means that it has exited, which is the goal.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let _ = script(&self.folder, self.port, "epmd-kill").output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn script(folder: &Path, port: u16, action: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rabbitmq.sh");
    let mut command = Command::new(script);
    command.arg(action).arg(folder).arg(port.to_string());
    command
}

fn run(folder: &Path, port: u16) -> Child {
    script(folder, port, "run")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("tests/rabbitmq.sh runs")
}

/// The first of three consecutive free ports, below the range of outgoing connections.
fn three_free_ports() -> u16 {
    let is_free = |port: u16| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok();
    loop {
        let port = rand::random_range(10_000..30_000);
        if (port..port + 3).all(is_free) {
            return port;
        }
    }
}

/// A proxy to a broker that can be cut.
pub struct Link {
    port: u16,
    cut: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Link {
    pub async fn to(broker: &Broker) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = watch::Sender::new(());
        let (cuts, broker) = (cut.clone(), broker.port);
        let accepting = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", broker)).await else {
                        return;
                    };
                    tokio::select! {
                        // However this ends, it closes both connections.
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            port,
            cut,
            accepting,
        }
    }

    /// Breaks every open connection, even within a frame.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }

    pub fn url(&self) -> String {
        format!("amqp://rmuser:rmpassword@127.0.0.1:{}/", self.port)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Publishes as Chat3 does.
pub struct Publisher {
    _connection: Connection,
    channel: Channel,
}

impl Publisher {
    /// Connects and declares the exchange, as Chat3 would.
    pub async fn connect(broker: &Broker) -> Self {
        let connection = broker.open().await.expect("the broker accepts logins");
        let channel = connection.open_channel(None).await.unwrap();
        let publisher = Self {
            _connection: connection,
            channel,
        };
        publisher.declare_exchange(EXCHANGE, "topic").await;
        publisher
    }

    pub async fn declare_exchange(&self, name: &str, kind: &str) {
        let exchange = ExchangeDeclareArguments::new(name, kind)
            .durable(true)
            .finish();
        self.channel.exchange_declare(exchange).await.unwrap();
    }

    pub async fn delete_exchange(&self, name: &str) {
        let exchange = ExchangeDeleteArguments::new(name);
        self.channel.exchange_delete(exchange).await.unwrap();
    }

    pub async fn publish(&self, routing_key: &str, body: &str) {
        let arguments = BasicPublishArguments::new(EXCHANGE, routing_key);
        self.channel
            .basic_publish(BasicProperties::default(), body.into(), arguments)
            .await
            .unwrap();
    }
}

/// Waits until `condition` holds; panics with `what` if it does not in time.
pub async fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(DEADLINE, what, condition).await;
}

/// Like [`until`], with a limit, for conditions that take longer.
pub async fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
