//! The commands that give the gateway's user the rights that it needs, and no more.

use crate::config::{RabbitMqConfig, Topology};

/// The command that gives the gateway's user the permissions that it needs.
pub(super) fn permissions(config: &RabbitMqConfig) -> String {
    let pattern = |name: &str| name.replace('.', "\\.");
    let (own, updates) = (r"chat3-gateway\..*", pattern(&config.exchange));
    let (own_only, all) = match config.control_exchange.as_str() {
        "" => (
            r"^chat3-gateway\.".to_owned(),
            format!("^({own}|{updates})$"),
        ),
        control => {
            let control = pattern(control);
            (
                format!("^({own}|{control})$"),
                format!("^({own}|{updates}|{control})$"),
            )
        }
    };
    let (vhost, user) = (&config.url.first().vhost, &config.url.first().user);
    format!("rabbitmqctl set_permissions -p {vhost} {user} '{own_only}' '{own_only}' '{all}'")
}

/// The command that permits the keys of all templates, and no more.
pub(super) fn topic_permissions(config: &RabbitMqConfig) -> String {
    let (any_id, any_word) = ("[^*#]+", "([^*#]+|\\*)");
    let user_id = match config.topology {
        Topology::PerUser | Topology::Shared => any_id,
        Topology::Firehose => any_word,
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
