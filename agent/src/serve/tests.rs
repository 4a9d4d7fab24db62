//! Pipes and sessions through the widest door: TLS on loopback, a real log, a real target socket.

mod endings;
mod hostile;
mod opening;
mod races;
mod resume;
mod tunnels;
