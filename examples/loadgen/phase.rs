//! The phases by the names that the command line gives them: `rate:1000:10`.

use std::str::FromStr;
use std::time::Duration;

#[derive(Clone)]
pub enum Phase {
    Connect,
    /// Without finding out who is subscribed.
    Join,
    Idle(Duration),
    Rate {
        per_second: u32,
        time: Duration,
    },
    Saturate(Duration),
    Burst(u32),
    Settle(Duration),
    Churn {
        per_second: u32,
        time: Duration,
    },
    Resubscribe,
    /// Updates per second while instances restart.
    Restarts(u32),
    /// Updates that are nearly all of users without a socket here.
    Foreign(Duration),
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|error| format!("{text:?}: {error}"))
        };
        let seconds = |text| number(text).map(|seconds| Duration::from_secs(seconds.into()));
        Ok(match parts[..] {
            ["connect"] => Self::Connect,
            ["join"] => Self::Join,
            ["idle", time] => Self::Idle(seconds(time)?),
            ["rate", per_second, time] => Self::Rate {
                per_second: number(per_second)?,
                time: seconds(time)?,
            },
            ["saturate", time] => Self::Saturate(seconds(time)?),
            ["burst", updates] => Self::Burst(number(updates)?),
            ["settle", time] => Self::Settle(seconds(time)?),
            ["churn", per_second, time] => Self::Churn {
                per_second: number(per_second)?,
                time: seconds(time)?,
            },
            ["resubscribe"] => Self::Resubscribe,
            ["restarts", per_second] => Self::Restarts(number(per_second)?),
            ["foreign", time] => Self::Foreign(seconds(time)?),
            _ => {
                return Err(
                    "connect, join, idle:S, rate:R:S, saturate:S, burst:N, settle:S, \
                            churn:C:S, resubscribe, restarts:R or foreign:S"
                        .into(),
                );
            }
        })
    }
}
