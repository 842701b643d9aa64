//! The login: user, password and vhost, and whether RabbitMQ allows enough channels.

use super::{grants::permissions, report::Report};
use crate::{
    broker::rabbitmq::{ACCESS_REFUSED, LinkError, SideConnection, instance_id},
    config::RabbitMqConfig,
};

/// Connects and logs in as `serve` does. An error says why nothing behind it can be tried.
pub(super) async fn examine(
    config: &RabbitMqConfig,
    report: &mut Report,
) -> Result<SideConnection, &'static str> {
    let instance = instance_id(config);
    match SideConnection::open(config, "doctor", &instance).await {
        Ok(side) => {
            report.ok("login", format!("as {}", config.url.first().user));
            report.ok("vhost", config.url.first().vhost.clone());
            if let Err(error) = side.check_channels(config) {
                let advice = "channel_max in its rabbitmq.conf, or the plan of a hosted one";
                report.problem("channels", error.to_string(), advice);
            }
            Ok(side)
        }
        Err(LinkError::Timeout(limit)) => {
            let finding = format!("no answer within {limit:?}");
            let advice =
                "RabbitMQ accepts, but does not answer: is it starting, or out of memory or files?";
            report.problem("login", finding, advice);
            Err(NO_LOGIN)
        }
        Err(error) => Err(refused(&error, config, report)),
    }
}

const NO_LOGIN: &str = "there is no login";

/// Reports a refusal, and returns it in a few words.
fn refused(error: &LinkError, config: &RabbitMqConfig, report: &mut Report) -> &'static str {
    let user = &config.url.first().user;
    match error {
        LinkError::Login(_) | LinkError::LoginOverTls(_) => {
            let advice = match user.as_str() {
                "guest" => {
                    "check the password; and guest may log in from the broker's own machine only: use another user"
                }
                _ => {
                    "check user and password in RABBITMQ_URL (special characters percent-encoded), and rabbitmqctl list_users"
                }
            };
            report.problem(
                "login",
                format!("refused: no user {user} with this password"),
                advice,
            );
        }
        LinkError::Closed(close) if close.code == ACCESS_REFUSED => {
            let advice = "check user and password in RABBITMQ_URL (special characters percent-encoded), and rabbitmqctl list_users";
            report.problem("login", format!("refused: {close}"), advice);
        }
        // RabbitMQ opens the vhost after the login.
        LinkError::Closed(close) => {
            report.ok("login", format!("as {user}"));
            let advice = match close.text.contains("refused for user") {
                true => permissions(config),
                false => "the vhost is the path of RABBITMQ_URL (/ in it as %2F); rabbitmqctl list_vhosts shows those that exist".to_owned(),
            };
            report.problem("vhost", format!("refused: {close}"), advice);
            return "the vhost is refused";
        }
        other => report.problem("login", other.to_string(), "RabbitMQ's own log says why"),
    }
    NO_LOGIN
}
