//! The resources that another process has used, read from `/proc`.

use std::time::Duration;

use procfs::process::Process;

pub struct Watched(i32);

impl Watched {
    pub fn new(pid: i32) -> Self {
        Self(pid)
    }

    /// User and system time; a process that is gone has used none.
    pub fn cpu(&self) -> Duration {
        let stat = Process::new(self.0).and_then(|process| process.stat());
        let ticks = stat.map_or(0, |stat| stat.utime + stat.stime);
        Duration::from_millis(ticks * 1000 / procfs::ticks_per_second())
    }

    pub fn rss_kb(&self) -> u64 {
        let status = Process::new(self.0).and_then(|process| process.status());
        status.ok().and_then(|status| status.vmrss).unwrap_or(0)
    }
}
