//! A broker that refuses the kind of queue (541), as RabbitMQ 4.3 may.
//!
//! The only test without a real broker: the versions that are available to tests accept
//! every kind of queue. It speaks AMQP 0-9-1 up to the first
//! `queue.declare`.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use chat3_gateway::{
    Metrics, RabbitMqService,
    config::RabbitMqConfig,
    user::{User, UserId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// The text of RabbitMQ 4.3: several lines, cut off at 255 bytes.
const REFUSAL: &str = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nBy default, this feature is not permitted anymore.\nThe feature will be removed from a future major RabbitMQ version, regardless of the configuration; actual version to be determined.\nTo...";

// Classes and methods of AMQP 0-9-1, as (class id, method id).
const CONNECTION_START: (u16, u16) = (10, 10);
const CONNECTION_START_OK: (u16, u16) = (10, 11);
const CONNECTION_TUNE: (u16, u16) = (10, 30);
const CONNECTION_OPEN: (u16, u16) = (10, 40);
const CONNECTION_OPEN_OK: (u16, u16) = (10, 41);
const CONNECTION_CLOSE: (u16, u16) = (10, 50);
const CHANNEL_OPEN: (u16, u16) = (20, 10);
const CHANNEL_OPEN_OK: (u16, u16) = (20, 11);
const QUEUE_DECLARE: (u16, u16) = (50, 10);
const BASIC_QOS: (u16, u16) = (60, 10);
const BASIC_QOS_OK: (u16, u16) = (60, 11);

/// Serves one connection until the client closes it.
async fn refuse_queues(mut client: TcpStream) -> io::Result<()> {
    let mut protocol = [0; 8];
    client.read_exact(&mut protocol).await?;
    assert_eq!(&protocol, b"AMQP\x00\x00\x09\x01");
    // Version 0-9, no properties, the mechanism and the locale.
    let start = b"\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US";
    send(&mut client, 0, CONNECTION_START, start).await?;
    loop {
        let (channel, method) = receive(&mut client).await?;
        match method {
            // 2,047 channels, frames of 128 KiB, a heartbeat every 10 s.
            CONNECTION_START_OK => {
                let tune = b"\x07\xff\x00\x02\x00\x00\x00\x0a";
                send(&mut client, 0, CONNECTION_TUNE, tune).await?;
            }
            CONNECTION_OPEN => send(&mut client, 0, CONNECTION_OPEN_OK, b"\x00").await?,
            CHANNEL_OPEN => send(&mut client, channel, CHANNEL_OPEN_OK, &[0; 4]).await?,
            BASIC_QOS => send(&mut client, channel, BASIC_QOS_OK, b"").await?,
            QUEUE_DECLARE => {
                let text = REFUSAL.as_bytes();
                let mut close = 541_u16.to_be_bytes().to_vec();
                close.push(u8::try_from(text.len()).unwrap());
                close.extend(text);
                close.extend([0, 50, 0, 10]);
                send(&mut client, 0, CONNECTION_CLOSE, &close).await?;
                // Frames that were in flight, and `close-ok`.
                return tokio::io::copy(&mut client, &mut tokio::io::sink())
                    .await
                    .map(drop);
            }
            _ => {}
        }
    }
}

async fn send(
    client: &mut TcpStream,
    channel: u16,
    (class, method): (u16, u16),
    arguments: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(4 + arguments.len()).unwrap();
    let mut frame = vec![1];
    frame.extend(channel.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend(class.to_be_bytes());
    frame.extend(method.to_be_bytes());
    frame.extend(arguments);
    frame.push(0xce);
    client.write_all(&frame).await
}

/// The channel of the next frame and, if it is a method frame, the method.
async fn receive(client: &mut TcpStream) -> io::Result<(u16, (u16, u16))> {
    let _kind = client.read_u8().await?;
    let channel = client.read_u16().await?;
    let length = client.read_u32().await?;
    let mut payload = vec![0; length as usize];
    client.read_exact(&mut payload).await?;
    assert_eq!(client.read_u8().await?, 0xce);
    let method = match payload[..] {
        [a, b, c, d, ..] => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        _ => (0, 0),
    };
    Ok((channel, method))
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self, containing: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(containing));
        lines.map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_broker_that_refuses_the_kind_of_queue_is_asked_ever_more_rarely_up_to_a_minute() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // Everything here runs on this thread.
    let _logging = tracing::subscriber::set_default(subscriber);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(refuse_queues(client));
        }
    });
    let connect = |reconnect_delay| {
        let url = format!("amqp://carol:s3cret@127.0.0.1:{port}/");
        let config = RabbitMqConfig {
            url: url.parse().unwrap(),
            reconnect_delay,
            ..RabbitMqConfig::default()
        };
        let service = RabbitMqService::connect(config, Metrics::new());
        for i in 0..100 {
            let id = UserId::parse(&format!("usr_{i}")).unwrap();
            let user = User { id, tenant: None };
            service.subscribe_user(
                &user,
                Arc::new(|_: &chat3_gateway::broker::Delivery<'_>| {}),
            );
        }
        service
    };

    let service = connect(Duration::from_millis(50));
    let deadline = Instant::now() + Duration::from_secs(20);
    let scheduled = || log.lines("reconnect scheduled");
    while scheduled().len() < 6 {
        assert!(Instant::now() < deadline, "{log:?}", log = log.lines(""));
        sleep(Duration::from_millis(10)).await;
    }
    service.close().await;
    // Doubled each time; all but the first are shortened at random, by half at most.
    for (nth, line) in (0..).zip(scheduled()) {
        let (_, delay) = line.split_once("delay=").unwrap();
        let delay = delay.split_whitespace().next().unwrap();
        let milliseconds = match delay.strip_suffix("ms") {
            Some(milliseconds) => milliseconds.parse::<f64>().unwrap(),
            None => delay.trim_end_matches('s').parse::<f64>().unwrap() * 1_000.0,
        };
        let longest = 50.0 * 2_f64.powi(nth);
        assert!((longest / 2.0..=longest).contains(&milliseconds), "{line}");
    }
    let closed = log.lines("RabbitMQ connection closed");
    assert_eq!(closed.len(), 6);
    for line in closed {
        assert!(line.contains("541 INTERNAL_ERROR - Feature `transient_nonexcl_queues`"));
        assert!(line.contains("deprecated_features.permit"), "{line}");
    }
    assert!(log.lines("s3cret").is_empty());
    // Nothing about 100 users; for each attempt, a line for connected, closed and retry.
    // The AMQP library logs, too.
    assert_eq!(log.lines(" chat3_gateway::").len(), 3 * 6);

    // A first delay that is already above the ceiling.
    let service = connect(Duration::from_secs(600));
    while log.lines("delay=60s").is_empty() {
        assert!(Instant::now() < deadline, "{log:?}", log = log.lines(""));
        sleep(Duration::from_millis(10)).await;
    }
    service.close().await;
}
