//! The words of the page: what was done, and what is known about why. No figures.

use crate::bench::Section;

pub(super) const INTRODUCTION: &str = "# Speed and size

Written by `cargo lab bench --docs docs` from the figures beside it (`performance.json`);
`cargo lab bench --from docs/performance.json --docs docs` writes it again, and a test compares.
Medians in bold, the quartiles of the runs behind them.
";

pub(super) const METHOD: &str = "
Everything runs on this one machine over loopback: the clients, the agent (the real
`postern-agent` with its evidence on), the targets and the emulated AWS share its cores. Bulk
figures are therefore what all ends together can do, not what a network card can. OpenSSH does the
same job in the same run: its stock client with an empty configuration, through its own sshd as
the bastion, to the same services. Postern records and logs what it carries; OpenSSH does not.

- Delays are added by a relay of the bench between client and bastion, in user space, since not
  every kernel has netem: it delays each byte by a fixed time in each direction, and the opening of a
  connection by one round trip. Direct TCP at a delay goes through the same relay.
- *Three bare hops* are two plain TCP relays in a row: what any tunnel through a bastion costs at
  least. The *limit* section adds what its TLS costs at least.
- CPU is user and system time of every process on the path, both ends included, per GiB moved.
- Memory is private memory (`Private_*` in `/proc/PID/smaps_rollup`), so shared program text does
  not count. Socket buffers of the kernel do not count either.
- The programs are built as the tests build them (`opt-level` 2 for our own code), not with
  `lto` or for one processor.
- A *session* of the crowd sections is one grant with one pipe over a TLS connection of its own,
  opened by the client's own library. Thousands of client programs do not fit on a small machine,
  so one process holds all of them; its memory is told apart. Shells of these sections lead to an
  SSH host of the lab that echoes and runs no process, since thousands of sshd processes do not
  fit either: the agent does all it does for a genuine one.
";

pub(super) const UNMEASURED: &str = "
Not measured here, so not claimed: two machines with a network between them; `session-manager-plugin`
beside the SSM route; what recording alone costs (it cannot be turned off to compare); more than one
agent.
";

/// What a section is.
pub(super) fn about(section: Section) -> &'static str {
    match section {
        Section::Limit => {
            "The limit that no tunnel over TLS passes: records of 16 KiB sealed and opened again \
             through rustls by the provider (aws-lc-rs, TLS 1.3), in memory, by one thread. What \
             a tunnel costs beyond three bare hops is at least the first cipher's line in s/GiB."
        }
        Section::Tunnel => {
            "`postern forward` beside `ssh -L` (with its default cipher, and with the fastest), \
             three bare hops, and TCP without anything between."
        }
        Section::Command => {
            "From the start of the program to its end, with a certificate at hand: `postern \
             connect web-1 -- true` beside `ssh -J bastion target true`, each with fresh TCP, key \
             exchange and authorization on both hops. And `postern --help`."
        }
        Section::Copy => {
            "A file of random bytes through `cat` on the target with our own SSH client, and \
             through stock `scp` over `postern proxy`, beside `ssh -J` and `scp -J`. Through the \
             agent every byte is recorded, sealed and hashed; a new program starts for each run."
        }
        Section::Idle => {
            "What one session costs that waits, after it moved 16 MiB (a shell) or its `forward` \
             64 MiB (a tunnel; each is one more connection of one session). The rival is a \
             session of sshd on the bastion, all its processes counted."
        }
        Section::Ssm => {
            "The SSM route against the lab's SSM Agent, which keeps the genuine one's pace \
             downwards (a message of 1 KiB, then 1 ms): that pace is what is measured there, over \
             one session and over several. Upwards nothing paces."
        }
        Section::Scale => {
            "Idle tunnels, idle shells and active tunnels at once in one agent with its default \
             limits, opened by as many people as those limits need. Active ones send a byte a \
             second. *To the first byte* includes waiting for the others that open at the same \
             time. An agent session's memory holds its TLS tickets too. When all have ended, the \
             allocator keeps most pages for the next sessions, and the tickets wait in their \
             bounded store: that is what *all ended* shows. An \
             agent needs three open files for a tunnel (two sockets and the recording); where the \
             machine allows one process too few for what was asked, there are fewer idle tunnels, \
             as the settings below tell."
        }
        Section::Storm => {
            "Everybody has given a code to AWS; then all clients come at the same moment with \
             nothing kept, each from an address of its own: TLS, enrolment (the agent asks the \
             emulated STS twice for each), certificate, TLS again, grant, target, first byte. \
             Times count from the common start, so the last one waits for all others. Clients, \
             agent and STS share the cores."
        }
        Section::Fairness => {
            "Shells in which somebody types fast, without and beside a tunnel that moves all it \
             can, through the same agent."
        }
        Section::Soak => {
            "People open, use and end sessions for as long as the soak lasts, beside others that \
             stay. Slopes are those of the nearest straight line after the first fifth of the time. \
             The store of TLS tickets fills during a soak: two for each connection, up to 8,192, \
             some 3 KiB each. Nothing else is known to grow."
        }
    }
}

/// Why a rival is ahead, where that is known.
pub(super) fn why(what: &str) -> &'static str {
    match what {
        "new connection" => {
            " Each connection is a decision: the agent checks certificate and policy again and \
             begins a record of the flow before the target is dialled; `ssh -L` opens a channel. \
             One round trip costs more than that."
        }
        "client memory, a shell" => {
            " A runtime, TLS, SSH and the AWS clients are in the one program."
        }
        what if what.starts_with("scp") || what.starts_with("connect -- cat") => {
            " The agent ends SSH and opens it again so that it can record: each byte is \
             deciphered and enciphered once more than through `-J`, hashed, and written sealed \
             before it is passed on."
        }
        _ => "",
    }
}
