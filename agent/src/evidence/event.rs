//! The agent's own events and the clock that dates every event.

use std::time::SystemTime;

use postern_proto::audit::event::{Event, Fact};

/// An event of the agent itself, now. Others add who, where and about what:
/// `Event { session, actor, ..agent_event(fact) }`.
pub(crate) fn agent_event(fact: Fact) -> Event {
    Event {
        time_ms: now_ms(),
        session: None,
        actor: None,
        source: None,
        target: None,
        fact,
    }
}

/// Milliseconds since 1970; 0 where the machine's clock is before that.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}
