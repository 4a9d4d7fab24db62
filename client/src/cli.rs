//! The command line: types, help text, examples. No behaviour.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use postern_proto::names::{LoginUser, TargetName};
use secrecy::SecretString;

mod audit;
mod policy;

pub use audit::*;
pub use policy::*;

/// Shells and tunnels to private hosts, for people who proved MFA to AWS
#[derive(Debug, Parser)]
#[command(
    name = "postern",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Start with:\n  \
        postern login                    give the MFA code once\n  \
        postern ls                       targets and what you may do there\n  \
        postern connect web-1            a shell\n  \
        postern forward db-1 5432        a tunnel\n\n\
        Exit codes: 0 done, 1 denied or failed, 2 usage, 3 could not reach, 4 login needed, 70 our bug.\n\
        `connect` and `proxy` return the remote status, and 255 for every failure of ours."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// AWS profile [environment: AWS_PROFILE]
    #[arg(long, global = true, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Answer in JSON, the stable form; the same as `--output json`
    #[arg(long, global = true)]
    pub json: bool,
    /// Form of the answer
    #[arg(long, global = true, value_name = "FORM", conflicts_with = "json")]
    pub output: Option<OutputForm>,
    /// Tell more on stderr; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Configuration file [environment: POSTERN_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// For people
    Text,
    /// For programs
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give the MFA code to AWS and keep the session
    Login(LoginArgs),
    /// Forget sessions and certificates
    Logout(LogoutArgs),
    /// Who is logged in, since when, for how long
    Status(StatusArgs),
    /// Targets, how each can be reached, what policy lets you do
    Ls(LsArgs),
    /// A shell or a command on a target
    Connect(ConnectArgs),
    /// Tunnels to ports, until Ctrl-C
    Forward(ForwardArgs),
    /// Carry stock `ssh` over stdin and stdout (for ProxyCommand)
    Proxy(ProxyArgs),
    /// Print the configuration that stock `ssh` needs
    SshConfig(SshConfigArgs),
    /// Why policy allows or denies, without opening anything
    Why(WhyArgs),
    /// Read and verify the audit log and recordings
    Audit(AuditArgs),
    /// IAM policies that make AWS itself demand MFA: print them, check an account
    Policy(PolicyArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
}

/// `postern login`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    postern login                            asks for the six digits\n  \
    postern login --profile work --duration 8h\n\n\
    The code may also come from `mfa_process` in the AWS profile, or from POSTERN_MFA_CODE.")]
pub struct LoginArgs {
    /// Six digits of the MFA device; without it they are asked for on the terminal
    #[arg(long, value_name = "DIGITS")]
    pub mfa_code: Option<SecretString>,
    /// How long the session lives, 15m to 36h [default: `duration_seconds` of the profile, else 12h]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
}

/// `postern logout`.
#[derive(Debug, Clone, Args)]
pub struct LogoutArgs {
    /// Forget the sessions of every profile, and the wrapping key
    #[arg(long)]
    pub all: bool,
}

/// `postern status`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exits with 4 when no session lives, so scripts can ask: \
    `postern status || postern login`."
)]
pub struct StatusArgs {}

/// `postern ls`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  postern ls\n  postern ls web tag:env=staging")]
pub struct LsArgs {
    /// Only targets that match all of these: part of a name, id or address, `tag:KEY=VALUE`, `tag:KEY`, `platform=NAME`
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Whose targets: the agent's, those that SSM manages, or both where both are configured (`auto`) [environment: POSTERN_VIA]
    #[arg(long, value_enum)]
    pub via: Option<Via>,
}

/// Ways to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Via {
    /// The agent if it is configured, answers and knows the target, else SSM
    #[default]
    Auto,
    /// Through the agent
    Bastion,
    /// Through AWS Systems Manager
    Ssm,
}

/// `postern connect`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    postern connect web-1\n  \
    postern connect web-1 -- systemctl status nginx\n  \
    postern connect web-1 -- 'cd /srv && du -sh * | sort -h'\n  \
    postern connect web-1 -L 8080:localhost:80\n\n\
    Returns the remote status (128+n for a signal), and 255 for every failure of ours.")]
pub struct ConnectArgs {
    /// Instance id, Name tag, private address or DNS name, or `tag:KEY=VALUE`
    pub target: TargetName,
    /// Login user on the target
    #[arg(short = 'l', long)]
    pub user: Option<LoginUser>,
    /// Route to the target [default: auto] [environment: POSTERN_VIA]
    #[arg(long, value_enum)]
    pub via: Option<Via>,
    /// Through SSM: speak SSH with the target's own server, not the shell of the SSM Agent
    #[arg(long)]
    pub ssh: bool,
    /// Port of that server
    #[arg(
        short = 'p',
        long,
        value_name = "PORT",
        default_value_t = 22,
        requires = "ssh"
    )]
    pub port: u16,
    /// Forward the SSH agent, where policy allows
    #[arg(short = 'A')]
    pub forward_agent: bool,
    /// Ask for a terminal even for a command
    #[arg(short = 't', overrides_with = "no_terminal")]
    pub terminal: bool,
    /// Ask for no terminal
    #[arg(short = 'T', overrides_with = "terminal")]
    pub no_terminal: bool,
    /// Listen here, connect from the target
    #[arg(short = 'L', value_name = "[BIND:]PORT:HOST:PORT")]
    pub local: Vec<String>,
    /// Listen on the target, connect from here
    #[arg(short = 'R', value_name = "[BIND:]PORT:HOST:PORT")]
    pub remote: Vec<String>,
    /// Listen here as a SOCKS proxy, connect from the target
    #[arg(short = 'D', value_name = "[BIND:]PORT")]
    pub dynamic: Vec<String>,
    /// A command instead of a shell: one word is a line for the target's shell, several arrive as they are
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `postern forward`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    postern forward db-1 5432                  the same local port, or a free one if it is taken\n  \
    postern forward db-1 15432:5432\n  \
    postern forward bastion-1 0:db.internal:5432   a free local port\n  \
    postern forward db-1 0:5432 -- sh -c 'psql -p $POSTERN_FORWARD_PORT'\n  \
    postern forward --via ssm app-1 8080:db.internal:80")]
pub struct ForwardArgs {
    /// Instance id, Name tag, private address or DNS name, or `tag:KEY=VALUE`
    pub target: TargetName,
    /// Ports to carry
    #[arg(required = true, value_name = "[LOCAL:]PORT | [LOCAL:]HOST:PORT")]
    pub ports: Vec<String>,
    /// SSM sessions at once, over which connections are spread [default: 4] [environment: POSTERN_SSM_SESSIONS]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub sessions: Option<u8>,
    /// Forward only while this command runs, and return its status
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
    /// Route to the target [default: auto] [environment: POSTERN_VIA]
    #[arg(long, value_enum)]
    pub via: Option<Via>,
}

/// `postern proxy`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "In ~/.ssh/config (see `postern ssh-config`):\n  \
    ProxyCommand postern proxy %r@%h %p")]
pub struct ProxyArgs {
    /// Login user and target
    #[arg(value_name = "USER@TARGET")]
    pub destination: String,
    /// Port that stock `ssh` names; the agent's inventory knows the real one
    pub port: Option<u16>,
    /// Route to the target [default: auto] [environment: POSTERN_VIA]
    #[arg(long, value_enum)]
    pub via: Option<Via>,
}

/// `postern ssh-config`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  postern ssh-config >> ~/.ssh/config && ssh web-1.postern")]
pub struct SshConfigArgs {
    /// Only this target
    pub target: Option<TargetName>,
}

/// `postern why`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  postern why web-1\n  postern why db-1 tunnel --port 5432")]
pub struct WhyArgs {
    /// Instance id, Name tag, private address or DNS name, or `tag:KEY=VALUE`
    pub target: TargetName,
    /// What would be done there
    #[arg(default_value = "connect")]
    pub action: String,
    /// Login user on the target
    #[arg(short = 'l', long)]
    pub user: Option<LoginUser>,
    /// Port, for `tunnel`
    #[arg(long)]
    pub port: Option<u16>,
    /// Host behind the target, for `tunnel`
    #[arg(long)]
    pub host: Option<String>,
}

/// `postern completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Whether these words are a command that returns the remote status, as far as can be told when
/// they do not parse.
pub(crate) fn passes_status(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--profile" | "--output" | "--config") => {
                words.next();
            }
            Some(flag) if flag.starts_with('-') => {}
            verb => return matches!(verb, Some("connect" | "proxy")),
        }
    }
    false
}

/// Whether these words ask for JSON, as far as can be told when they do not parse.
pub(crate) fn wants_json(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1).take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--json" | "--output=json") => return true,
            Some("--output") => return words.next().is_some_and(|form| form == "json"),
            _ => {}
        }
    }
    false
}

/// `90s`, `15m`, `12h`, `1d`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("expected a number and one of s, m, h, d, like `12h`".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a number and one of s, m, h, d, like `12h`".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(duration("900"), Ok(Duration::from_secs(900)));
        for bad in ["", "h", "12x", "-1h", "99999999999999999999d", "1h30m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mistake_in_connect_is_still_a_mistake_in_connect() {
        assert!(passes_status(&words("postern --profile x connect --wrong")));
        assert!(passes_status(&words("postern -v proxy")));
        assert!(!passes_status(&words("postern login connect")));
        assert!(wants_json(&words("postern ls --output json --wrong")));
        assert!(!wants_json(&words("postern connect web-1 -- --json")));
    }

    #[test]
    fn the_code_does_not_print() {
        let cli = Cli::try_parse_from(words("postern login --mfa-code 123456")).unwrap();
        assert!(!format!("{cli:?}").contains("123456"));
    }
}
