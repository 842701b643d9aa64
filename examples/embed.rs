//! The gateway embedded in a backend: one process, one port, one shutdown.
//!
//! ```sh
//! JWT_SECRET=the-secret-of-your-backend cargo run --example embed
//! ```

use std::{env, sync::Arc};

use axum::{Router, routing::get};
use chat3_gateway::{
    Config, RabbitMqService, Server,
    broker::Delivery,
    config::Secret,
    user::{User, UserId},
};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // A deeply nested update from a publisher must not overflow the stack.
        .thread_stack_size(RabbitMqService::THREAD_STACK_BYTES)
        .enable_all()
        .build()?;
    runtime.block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    let mut config = Config {
        host: "127.0.0.1".to_owned(),
        ..Config::default()
    };
    config.jwt.jwt_secret = Some(Secret::new(env::var("JWT_SECRET")?));
    if let Ok(url) = env::var("RABBITMQ_URL") {
        config.rabbitmq.url = url.parse()?;
    }
    if let Ok(port) = env::var("PORT") {
        config.http.port = port.parse()?;
    }
    let routes = Router::new().route("/hello", get(|| async { "hello from the backend" }));
    let server = Server::builder(config).routes(routes).bind().await?;

    // The backend itself receives the updates of one user, without a browser.
    let bot = User {
        id: UserId::parse("usr_bot")?,
        tenant: None,
    };
    server.broker().subscribe_user(
        &bot,
        Arc::new(|update: &Delivery<'_>| {
            println!("update for the bot: {} bytes", update.body.len());
        }),
    );

    println!("listening on http://{}", server.local_addr());
    // Stops at once if the signal cannot be waited for.
    server
        .run(async { _ = tokio::signal::ctrl_c().await })
        .await;
    Ok(())
}
