//! Wire formats and state machines.
