//! One program for all targets: `POSTERN_FUZZ_TARGET` names the one to run, the arguments are
//! libFuzzer's. README.md says what each target covers.
//!
//! A target is one function of bytes; what it finds is a panic, an overflow, a time or memory
//! limit, or one of its own assertions.
#![no_main]

mod agent;
mod audit;
mod gateway;
mod modules;
mod ssm;
mod streams;
mod witness;

use agent::{evidence, session};

/// The agent's SSH modules that do no I/O, as they stand there.
#[path = "../../../agent/src/ssh"]
#[expect(dead_code, reason = "the agent uses the rest of these modules")]
mod ssh {
    mod identity;
    mod link;
    mod message;
    mod relay;
    mod sftp;
    mod transport;
    mod user;

    use identity::HostIdentity;

    /// As the agent's `end` has it.
    #[derive(Debug)]
    pub(crate) struct SshEnd {
        pub(crate) exit_status: Option<u32>,
        pub(crate) up: u64,
        pub(crate) down: u64,
        pub(crate) reason: postern_proto::gateway::message::CloseReason,
        pub(crate) message: Option<String>,
    }

    /// Dials targets there.
    mod upstream {
        pub(super) fn goodbye(target: &str, error: &super::transport::TransportError) -> String {
            format!("the connection to {target} broke: {error}")
        }
    }

    #[path = "../../../tests/fuzz/src/ssh.rs"]
    pub(crate) mod targets;

    #[path = "../../../tests/fuzz/src/relay/target.rs"]
    pub(crate) mod relayed;

    #[path = "../../../tests/fuzz/src/login.rs"]
    pub(crate) mod logins;
}

use std::sync::LazyLock;

libfuzzer_sys::fuzz_target!(|input: &[u8]| (*TARGET)(input));

const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("frames", gateway::frames),
    ("pipe", gateway::pipe),
    ("resume", gateway::resume),
    ("messages", gateway::messages),
    ("audit", audit::audit),
    ("claim", audit::claim),
    ("claims", evidence::claimed::claims),
    ("witness", witness::witness),
    ("tree", audit::tree),
    ("store", audit::store),
    ("recording", audit::recording),
    ("ssh_transport", ssh::targets::ssh_transport),
    ("ssh_login", ssh::logins::ssh_login),
    ("ssh_messages", ssh::targets::ssh_messages),
    ("ssh_relay", ssh::relayed::ssh_relay),
    ("sftp", ssh::targets::sftp_streams),
    ("sts_answer", modules::identity::sts_answer),
    ("policies", modules::policies),
    ("lines", modules::lines),
    ("streams", streams::streams),
    ("ssm_message", ssm::any_bytes::message),
    ("ssm_channel", ssm::ssm_channel),
    ("ssm_operations", ssm::any_bytes::operations),
    ("ssm_mux", ssm::ssm_mux),
    ("ssm_streams", ssm::any_bytes::mux),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("POSTERN_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found
        .unwrap_or_else(|| panic!("POSTERN_FUZZ_TARGET={name} is none of README.md"))
        .1
});

/// Pieces of the input: a length byte before each.
fn pieces(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first()?;
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(*length) * 4));
        input = rest;
        Some(piece)
    })
}
