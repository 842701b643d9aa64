//! What RabbitMQ's version says of its streams: whether it has them, which of its faults
//! concern the gateway, and how much one reader manages.
//!
//! Pure, but for the report.

use super::super::report::Report;

const CHECK: &str = "stream_version";

/// What is told of a version.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Unknown,
    NoStreams,
    Faults(Vec<&'static str>),
    /// One reader takes about this many updates a second where they come one by one.
    Slow(u32),
    Good,
}

pub(super) fn examine(product: &str, version: &str, report: &mut Report) {
    if product != "RabbitMQ" {
        return report.unknown(
            CHECK,
            format!("{product} {version}: what is known of streams is known of RabbitMQ"),
        );
    }
    let finding = format!("RabbitMQ {version}");
    match judge(version) {
        Verdict::Unknown => report.unknown(CHECK, finding),
        Verdict::NoStreams => report.problem(
            CHECK,
            format!("{finding} has no streams"),
            "streams need RabbitMQ 3.9; update it to a version that is still maintained, or use another RABBITMQ_TOPOLOGY",
        ),
        Verdict::Faults(faults) => report.warning(
            CHECK,
            format!("{finding}: {}", faults.join("; ")),
            "update it to 3.10.6 or later; the gateway replaces a reader that stops, about 15 s later",
        ),
        Verdict::Slow(rate) => report.recommend(
            CHECK,
            format!("{finding}: one reader takes about {rate} updates/s where they come one by one"),
            "RabbitMQ 4.2 and later read several times as fast: update it before more are published",
        ),
        Verdict::Good => report.ok(CHECK, finding),
    }
}

fn judge(version: &str) -> Verdict {
    let Some(version) = parse(version) else {
        return Verdict::Unknown;
    };
    let mut faults = Vec::new();
    if ((3, 9, 0)..(3, 9, 14)).contains(&version) {
        faults.push("a reader may stop for ever when the stream's leader restarts");
    }
    if ((3, 9, 0)..(3, 10, 6)).contains(&version) {
        faults.push("each reader that leaves costs RabbitMQ an open file");
    }
    match version {
        _ if version < (3, 9, 0) => Verdict::NoStreams,
        _ if !faults.is_empty() => Verdict::Faults(faults),
        // Measured with 3.10.8. RabbitMQ's own figures are from 4.1 on.
        _ if version < (4, 1, 0) => Verdict::Slow(5_000),
        _ if version < (4, 2, 0) => Verdict::Slow(13_500),
        _ => Verdict::Good,
    }
}

/// The numbers of a version such as `3.10.8` or `4.2.0-rc.1`.
fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let numbers = version.split(['-', '+', '~']).next()?;
    let mut numbers = numbers.split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_judged_by_what_their_streams_can_do() {
        for version in ["", "next", "3"] {
            assert_eq!(judge(version), Verdict::Unknown, "{version}");
        }
        assert_eq!(judge("3.8.35"), Verdict::NoStreams);
        let faults = |version| match judge(version) {
            Verdict::Faults(faults) => faults.len(),
            other => panic!("{version}: {other:?}"),
        };
        assert_eq!(
            [faults("3.9.13"), faults("3.9.14"), faults("3.10.5")],
            [2, 1, 1]
        );
        for version in ["3.10.6", "3.10.8", "3.13.7", "4.0.9"] {
            assert_eq!(judge(version), Verdict::Slow(5_000), "{version}");
        }
        assert_eq!(judge("4.1.4+2.gabc"), Verdict::Slow(13_500));
        for version in ["4.2.0-rc.1", "4.2", "5.0.0"] {
            assert_eq!(judge(version), Verdict::Good, "{version}");
        }
    }
}
