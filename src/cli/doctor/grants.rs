//! The commands that give the gateway's user the rights that it needs, and no more.

use crate::config::{RabbitMqConfig, Topology};

/// The command that gives the gateway's user the permissions that it needs.
pub(super) fn permissions(config: &RabbitMqConfig) -> String {
    let pattern = |name: &str| name.replace('.', "\\.");
    let own = r"chat3-gateway\..*".to_owned();
    let mut others = Vec::new();
    if config.topology == Topology::Stream && !config.stream.starts_with("chat3-gateway.") {
        others.push(format!("{}(\\.markers)?", pattern(&config.stream)));
    }
    if !config.control_exchange.is_empty() {
        others.push(pattern(&config.control_exchange));
    }
    if config.keeps_orders() && !config.control_stream.starts_with("chat3-gateway.") {
        others.push(format!("{}(\\.markers)?", pattern(&config.control_stream)));
    }
    let any_of = |names: &[String]| format!("^({})$", names.join("|"));
    // To declare and to publish, not to read.
    let mut written = others.clone();
    if config.tells_presence() {
        written.push(pattern(&config.presence_exchange));
    }
    let own_only = match written.is_empty() {
        true => r"^chat3-gateway\.".to_owned(),
        false => any_of(&[std::slice::from_ref(&own), written.as_slice()].concat()),
    };
    let updates = pattern(&config.exchange);
    let all = any_of(&[&[own, updates], others.as_slice()].concat());
    let (vhost, user) = (&config.url.first().vhost, &config.url.first().user);
    format!("rabbitmqctl set_permissions -p {vhost} {user} '{own_only}' '{own_only}' '{all}'")
}

/// The command that permits the keys of all templates, and no more.
pub(super) fn topic_permissions(config: &RabbitMqConfig) -> String {
    let (any_id, any_word) = ("[^*#]+", "([^*#]+|\\*)");
    let user_id = match config.topology {
        Topology::PerUser | Topology::Shared => any_id,
        Topology::Firehose => any_word,
        Topology::Stream => {
            return format!(
                "rabbitmqctl set_topic_permissions -p {} {} {} '^$' '^#$'",
                config.url.first().vhost,
                config.url.first().user,
                config.exchange
            );
        }
    };
    let word = |word: &str| match word {
        "{userId}" => user_id.to_owned(),
        "{tenantId|*}" => any_word.to_owned(),
        "*" => "\\*".to_owned(),
        word => match config.topology {
            Topology::Firehose if word.contains("{tenantId}") => any_word.to_owned(),
            _ => word.replace("{tenantId}", any_id),
        },
    };
    let pattern = |template: &str| {
        let words: Vec<_> = template.split('.').map(word).collect();
        words.join("\\.")
    };
    let patterns: Vec<_> = config.binding_keys.templates().map(pattern).collect();
    format!(
        "rabbitmqctl set_topic_permissions -p {} {} {} '^$' '^({})$'",
        config.url.first().vhost,
        config.url.first().user,
        config.exchange,
        patterns.join("|")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(exchange: &str, control: &str) -> RabbitMqConfig {
        RabbitMqConfig {
            exchange: exchange.to_owned(),
            control_exchange: control.to_owned(),
            ..RabbitMqConfig::default()
        }
    }

    #[test]
    fn permissions_name_both_exchanges_where_there_are_two() {
        assert!(permissions(&config("chat3.updates", "")).ends_with(
            r"'^chat3-gateway\.' '^chat3-gateway\.' '^(chat3-gateway\..*|chat3\.updates)$'"
        ));
        assert!(permissions(&config("u", "c.x")).ends_with(
            r"'^(chat3-gateway\..*|c\.x)$' '^(chat3-gateway\..*|c\.x)$' '^(chat3-gateway\..*|u|c\.x)$'"
        ));
    }

    #[test]
    fn permissions_name_a_stream_of_orders_that_the_pattern_does_not_cover() {
        let own = RabbitMqConfig {
            control_stream: "my.orders".to_owned(),
            ..config("u", "c")
        };
        assert!(permissions(&own).ends_with(r"'^(chat3-gateway\..*|u|c|my\.orders(\.markers)?)$'"));
        let without_exchange = RabbitMqConfig {
            control_exchange: String::new(),
            ..own
        };
        assert!(!permissions(&without_exchange).contains("orders"));
    }

    #[test]
    fn the_exchange_of_presence_need_not_be_read() {
        let presence = RabbitMqConfig {
            presence_exchange: "p.x".to_owned(),
            ..config("u", "")
        };
        assert!(permissions(&presence).ends_with(
            r"'^(chat3-gateway\..*|p\.x)$' '^(chat3-gateway\..*|p\.x)$' '^(chat3-gateway\..*|u)$'"
        ));
    }

    #[test]
    fn topic_permissions_permit_the_keys_of_the_topology() {
        let config = |topology| RabbitMqConfig {
            binding_keys: "user.{userId}.*,{tenantId}.{userId}".parse().unwrap(),
            topology,
            ..config("u", "")
        };
        let own = topic_permissions(&config(Topology::PerUser));
        assert!(
            own.ends_with(r"u '^$' '^(user\.[^*#]+\.\*|[^*#]+\.[^*#]+)$'"),
            "{own}"
        );
        let firehose = topic_permissions(&config(Topology::Firehose));
        let word = r"([^*#]+|\*)";
        assert!(
            firehose.ends_with(&format!(r"u '^$' '^(user\.{word}\.\*|{word}\.{word})$'")),
            "{firehose}"
        );
    }
}
