//! The gateway inside a backend of one's own: one process, one port, one shutdown.
//!
//! ```sh
//! JWT_SECRET=the-secret-of-your-backend cargo run --example embed
//! ```

use std::{env, sync::Arc};

use axum::{Router, routing::get};
use chat3_gateway::{
    RabbitMqService, Server,
    auth::Verifier,
    config::{HttpConfig, JwtConfig, RabbitMqConfig, Secret},
    observability::metrics::Metrics,
    user::{User, UserId},
};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // What a publisher sends must not overflow it.
        .thread_stack_size(RabbitMqService::THREAD_STACK_BYTES)
        .enable_all()
        .build()?;
    runtime.block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let mut rabbitmq = RabbitMqConfig::default();
    if let Ok(url) = env::var("RABBITMQ_URL") {
        rabbitmq.url = url.parse()?;
    }
    let rabbitmq = Arc::new(RabbitMqService::connect(rabbitmq, metrics.clone()));

    // Without any browser: the updates of one user, here in the backend.
    let bot = User {
        id: UserId::parse("usr_bot")?,
        tenant: None,
    };
    rabbitmq.subscribe_user(
        &bot,
        Arc::new(|delivery| println!("update for the bot: {} bytes", delivery.body.len())),
    );

    let jwt = JwtConfig {
        jwt_secret: Some(Secret::new(env::var("JWT_SECRET")?)),
        ..JwtConfig::default()
    };
    let verifier = Verifier::new(&jwt, false, &metrics)?;
    let http = HttpConfig {
        port: env::var("PORT").map_or(Ok(3001), |port| port.parse())?,
        ..HttpConfig::default()
    };
    let own = Router::new().route("/hello", get(|| async { "hello from the backend" }));
    let server = Server::bind("127.0.0.1", &http, verifier, rabbitmq, metrics, own).await?;
    println!("listening on http://{}", server.local_addr()?);
    server
        .run(async {
            // An error means that there is no way to be told: stop at once.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await
}
