//! The identity of this process at the broker: in the names of its queues and
//! connections.

use crate::config::RabbitMqConfig;

/// The configured name, or else the host's, and random digits: two processes never
/// share an identity, even one process and its successor on the same host.
pub(crate) fn instance_id(config: &RabbitMqConfig) -> String {
    let name = instance_name(config);
    format!("{name}-{:08x}", rand::random::<u32>())
}

/// Whether this can be the [`instance_id`] of a process.
pub(super) fn is_instance_id(text: &str) -> bool {
    let digits = text.rsplit_once('-').map(|(_, digits)| digits);
    let are_random =
        |digits: &str| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    text.len() <= 200 && digits.is_some_and(are_random)
}

/// The configured name, or else the host's: the same for a process and its successor.
pub(super) fn instance_name(config: &RabbitMqConfig) -> String {
    match config.instance_name.as_str() {
        "" => host_name(),
        name => name.to_owned(),
    }
}

fn host_name() -> String {
    safe(&gethostname::gethostname().to_string_lossy())
}

/// Leaves only characters that every tool for queues can take, and few enough for a name.
fn safe(host: &str) -> String {
    let safe = |c: char| match c.is_ascii_alphanumeric() || matches!(c, '-' | '.') {
        true => c,
        false => '-',
    };
    host.chars().map(safe).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_parts_of_queue_names() {
        assert_eq!(safe("chat-1.example.com"), "chat-1.example.com");
        assert_eq!(safe("büro *#\n1"), "b-ro----1");
        assert_eq!(safe(&"h".repeat(100)).len(), 64);
    }

    #[test]
    fn no_two_processes_have_the_same_identity() {
        let config = RabbitMqConfig {
            instance_name: "gw".to_owned(),
            ..RabbitMqConfig::default()
        };
        let (one, other) = (instance_id(&config), instance_id(&config));
        assert!(one.starts_with("gw-") && is_instance_id(&one), "{one}");
        for other in [
            "",
            "keeper",
            "ledger",
            "all",
            "gw-1234567",
            &"h".repeat(250),
        ] {
            assert!(!is_instance_id(other), "{other}");
        }
        assert_ne!(one, other);
    }
}
