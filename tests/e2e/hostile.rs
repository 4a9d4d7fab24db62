//! Peers that mean harm: what they cost the agent, and that others go on meanwhile. The figures
//! are those of SECURITY.md ("What a hostile peer can cost").

mod crowd;
mod silent;
mod targets;

use std::time::Duration;

use lab::stack::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::PATIENCE;

const MIB: u64 = 1024 * 1024;

/// What a process holds of the machine.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    /// Bytes of memory, its program not counted.
    memory: u64,
    descriptors: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        Self {
            memory: kibibytes.parse::<u64>().unwrap() * 1024,
            descriptors: descriptors.count() as u64,
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// Looks at the agent all the time; [`Watch::most`] tells the most that it held beyond what it
/// held at the beginning.
struct Watch {
    before: Usage,
    stop: CancellationToken,
    looking: JoinHandle<Usage>,
}

impl Watch {
    fn start(lab: &Lab) -> Self {
        let pid = lab.agent.pid().unwrap();
        let before = Usage::of(pid);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let looking = tokio::spawn(async move {
            let mut most = before;
            let mut often = tokio::time::interval(Duration::from_millis(20));
            while !stopped.is_cancelled() {
                often.tick().await;
                most = most.most(Usage::of(pid));
            }
            most
        });
        Self {
            before,
            stop,
            looking,
        }
    }

    async fn most(self) -> Usage {
        self.stop.cancel();
        let most = self.looking.await.unwrap();
        Usage {
            memory: most.memory - self.before.memory,
            descriptors: most.descriptors - self.before.descriptors,
        }
    }
}

/// A line typed into a session that echoes comes back.
async fn echoes(session: &mut Child) -> Duration {
    let since = std::time::Instant::now();
    let line = b"still here\n";
    let stdin = session.stdin.as_mut().unwrap();
    stdin.write_all(line).await.unwrap();
    stdin.flush().await.unwrap();
    let mut back = [0; 11];
    let read = session.stdout.as_mut().unwrap().read_exact(&mut back);
    let read = tokio::time::timeout(PATIENCE, read).await;
    read.expect("an echo in time").unwrap();
    assert_eq!(back, *line);
    since.elapsed()
}
