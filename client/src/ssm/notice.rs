//! What is told while sessions run: one sentence about one connection or one session each.

use std::fmt::Display;

use crate::error::Error;

/// A session of several ended, and connections with it.
pub(super) fn session_ended(destination: &str, connections: usize, why: &impl Display) -> String {
    format!("an SSM session to {destination} ended, and {connections} connections with it: {why}")
}

/// A connection that nobody reads holds up the others of its session.
pub(super) fn held_up(peer: &impl Display, others: usize, destination: &str) -> String {
    format!(
        "the connection from {peer} does not read: {others} other connections to {destination} wait \
         for it"
    )
}

/// A local program did not get through.
pub(super) fn not_carried(peer: &impl Display, why: &impl Display) -> String {
    format!("the connection from {peer} was not carried: {why}")
}

/// A connection broke.
pub(super) fn connection_ended(peer: &impl Display, why: &impl Display) -> String {
    format!("the connection from {peer} ended: {why}")
}

/// The target was reached, and its port is shut.
pub(super) fn nothing_answers(destination: &str) -> String {
    format!("nothing answers at {destination}")
}

/// The SSM Agent says nothing, though it is connected or nobody says that it is not.
pub(super) fn no_answer(destination: &str) -> Error {
    Error::unreachable(format!(
        "the SSM Agent on the way to {destination} does not answer"
    ))
    .hint("connect again: a new session reaches an SSM Agent that was restarted")
}

/// The end came before all data.
pub(super) fn incomplete() -> Error {
    Error::failed("the session ended before all of its data had arrived")
        .hint("connect again; what was carried last is not complete")
}

/// What came is no multiplexed stream.
pub(super) fn protocol(error: &impl Display) -> Error {
    Error::failed(format!("the SSM Agent broke the protocol: {error}"))
        .hint("connect again; if it stays, restart the SSM Agent of the target")
}

/// It was ended, by a person or by AWS.
pub(super) fn ended_there() -> Error {
    Error::failed("the session was ended at the other side")
}

/// The target has no SSH server, or it is elsewhere.
pub(super) fn no_ssh() -> Error {
    Error::unreachable("nothing answers at the SSH port of the target")
        .hint("`postern connect TARGET` needs no SSH server there")
}
