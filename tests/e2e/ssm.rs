//! The lab's SSM route with peers that share no code with it: the `aws` command, and a stand-in for
//! `session-manager-plugin` (plugin/) that was written from the protocol's description.

mod faults;
mod node;
mod peer;
mod ports;
mod shells;
