//! The gateways of the development mode, one after the other: the envelope is a setting
//! of a gateway, so that whoever switches it on the page gets another gateway, on the same
//! port and with the same key, as after a restart with another `CHAT3_ENVELOPE`.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use super::{DEFAULT_TENANT, Dev, TOKEN_LIFETIME, router};
use crate::{
    auth::{Signer, make_up_secret},
    broker::embedded::EmbeddedExchange,
    cli::command_line::DevArgs,
    config::{Config, Envelope},
    server::Server,
    user::{TenantId, User, UserId},
};

/// The development mode, between its gateways.
pub struct Development {
    args: DevArgs,
    signer: Arc<Signer>,
    /// What the page asks for.
    envelope: watch::Sender<Envelope>,
    is_announced: bool,
}

impl Development {
    /// Makes up a key if none is configured; it lasts as long as this does.
    ///
    /// # Errors
    /// When the key is unusable.
    pub fn new(mut args: DevArgs) -> anyhow::Result<Self> {
        let configured = args.jwt.jwt_secret.take();
        let configured = configured.filter(|secret| secret.expose().is_some());
        let secret = configured.unwrap_or_else(make_up_secret);
        args.jwt.jwt_secret = Some(secret.clone());
        let secret = secret.expose().context("a made-up key is not empty")?;
        Ok(Self {
            signer: Arc::new(Signer::new(secret, &args.jwt)),
            envelope: watch::Sender::new(args.http.envelope),
            args,
            is_announced: false,
        })
    }

    /// Binds the next gateway. The first time, prints how to try it.
    ///
    /// # Errors
    /// When a setting is wrong, or an address cannot be bound.
    pub async fn bind(&mut self) -> anyhow::Result<Server> {
        self.args.http.envelope = *self.envelope.borrow();
        let args = &self.args;
        let exchange = Arc::new(EmbeddedExchange::new(args.binding_keys.clone()));
        let dev = Dev {
            exchange: exchange.clone(),
            signer: self.signer.clone(),
            envelope: args.http.envelope,
            next_envelope: self.envelope.clone(),
        };
        let config = Config {
            host: args.host.clone(),
            http: args.http.clone(),
            jwt: args.jwt.clone(),
            ..Config::default()
        };
        let server = Server::builder(config).broker(exchange);
        let server = server.routes(router(dev, &args.host)).bind().await?;
        // The next one has the same, even if the system chose it.
        self.args.http.port = server.local_addr().port();
        if !self.is_announced {
            self.announce(&server)?;
            self.is_announced = true;
        }
        Ok(server)
    }

    /// Completes when the gateway that was bound last has another envelope than is asked for.
    pub async fn switched(&self) {
        let bound = self.args.http.envelope;
        let mut asked = self.envelope.subscribe();
        // An error means that no sender is left; there is one here.
        let _ = asked.wait_for(|envelope| *envelope != bound).await;
    }

    fn announce(&self, server: &Server) -> anyhow::Result<()> {
        let user = User {
            id: UserId::parse("usr_alice")?,
            tenant: Some(TenantId::parse(DEFAULT_TENANT)?),
        };
        let (token, _) = self.signer.sign(&user, TOKEN_LIFETIME)?;
        let address = server.local_addr();
        let url = format!("http://localhost:{}", address.port());
        println!("\n  chat3-gateway in development mode, without a broker\n");
        println!("  Page    {url}/");
        println!("  Token   {token}");
        println!("          (usr_alice, valid for 12 hours)\n");
        println!("  Connect io('{url}', {{ auth: (give) => give({{ token }}) }})");
        println!("  Publish curl {url}/dev/updates -H 'content-type: application/json' \\");
        println!(
            "            -d '{{\"userId\":\"usr_alice\",\"eventType\":\"message.create\"}}'\n"
        );
        if !address.ip().is_loopback() {
            println!("  ⚠️  Listening on {address}: whoever reaches it can sign in as anybody.");
            println!("      Publish a container's port as 127.0.0.1:3001:3001.\n");
        }
        Ok(())
    }
}
