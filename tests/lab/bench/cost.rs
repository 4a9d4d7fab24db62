//! What a measurement costs: CPU seconds, memory, descriptors and threads of processes, from /proc.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// CPU time, user and system, that `pid` and its reaped children used so far.
pub fn cpu(pid: u32) -> Result<Duration> {
    cpu_of(pid, true)
}

/// The same without children: they may have nothing to do with what is measured.
pub fn cpu_alone(pid: u32) -> Result<Duration> {
    cpu_of(pid, false)
}

/// Whether a process could not be read since it is no longer there.
pub fn has_ended(error: &anyhow::Error) -> bool {
    let source = error.downcast_ref::<std::io::Error>();
    source.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn cpu_of(pid: u32, children: bool) -> Result<Duration> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    // The name in parentheses may hold spaces; fields are counted behind it (proc(5)).
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .context("malformed stat")?;
    let ticks = |index: usize| -> Result<u64> {
        Ok(fields.get(index).context("short stat")?.parse::<u64>()?)
    };
    // utime, stime, cutime, cstime are fields 14 to 17; the name was field 2.
    let reaped = if children { ticks(13)? + ticks(14)? } else { 0 };
    let total = ticks(11)? + ticks(12)? + reaped;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(total as f64 / per_second as f64))
}

/// Resident memory of `pid` in KiB that is its own (private pages).
pub fn private_memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| -> u64 {
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .sum()
    };
    Ok(field("Private_Clean:") + field("Private_Dirty:"))
}

/// Open descriptors of `pid`.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Threads of `pid`.
pub fn threads(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// Processes below `ancestor` (its children, theirs, …) whose name begins with `name`.
pub fn descendants_named(ancestor: u32, name: &str) -> Result<Vec<u32>> {
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|pid| pid.parse::<u32>().ok())
        else {
            continue;
        };
        // A process may end between the listing and the reading.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((head, tail)) = stat.rsplit_once(')') else {
            continue;
        };
        let command = head
            .split_once('(')
            .map_or("", |(_, command)| command)
            .to_owned();
        let parent = tail
            .split_whitespace()
            .nth(1)
            .and_then(|parent| parent.parse::<u32>().ok());
        processes.push((pid, parent.unwrap_or(0), command));
    }
    let mut family = vec![ancestor];
    let mut found = Vec::new();
    while let Some(parent) = family.pop() {
        for (pid, _, command) in processes.iter().filter(|(_, of, _)| *of == parent) {
            family.push(*pid);
            if command.starts_with(name) {
                found.push(*pid);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_gone_is_told_from_who_cannot_be_read() {
        assert!(has_ended(&cpu(u32::MAX).unwrap_err()));
        assert!(!has_ended(&anyhow::anyhow!("malformed stat")));
        cpu(std::process::id()).unwrap();
    }
}
