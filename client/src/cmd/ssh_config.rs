//! `postern ssh-config [TARGET]`: what stock `ssh`, `scp`, `sftp`, `rsync` and `git` need.
//!
//! The agent's host CA goes into a `known_hosts` file of ours, which the printed block names: so
//! `postern ssh-config >> ~/.ssh/config` is all there is to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;

use crate::cli::SshConfigArgs;
use crate::context::Context;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::http::Client;

/// What of `GET /v1/whoami` is of interest.
#[derive(Debug, Deserialize)]
struct Whoami {
    #[serde(default)]
    ssh_host_ca: Option<String>,
}

/// Writes the known hosts and prints the block.
pub async fn run(context: &Context, args: SshConfigArgs) -> Result<ExitCode, Error> {
    let gateway = Gateway::of(context).await?;
    let agent = gateway.agent().id.to_string();
    let whoami: Whoami = Client::connect(gateway)
        .await?
        .get_json("/v1/whoami")
        .await?;
    let ca = whoami
        .ssh_host_ca
        .as_deref()
        .and_then(one_key)
        .ok_or_else(|| {
            Error::failed(format!("agent `{agent}` does not tell its SSH host CA"))
                .hint("its operator finds out with `postern-agent check`")
        })?;
    let authority = format!("@cert-authority *{} {ca}", super::proxy::SUFFIX);
    let known_hosts = context.state.join("known_hosts");
    keep(&known_hosts, &authority)?;
    let block = block(&Block {
        target: args.target.as_ref().map(|target| target.as_str()),
        agent: &agent,
        command: &command(),
        user: context.login_user.as_deref(),
        known_hosts: &known_hosts,
        authority: &authority,
    });
    context.printer.raw(block.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

struct Block<'a> {
    target: Option<&'a str>,
    agent: &'a str,
    command: &'a str,
    user: Option<&'a str>,
    known_hosts: &'a Path,
    authority: &'a str,
}

fn block(block: &Block<'_>) -> String {
    let Block {
        target,
        agent,
        command,
        user,
        known_hosts,
        authority,
    } = block;
    let user = user
        .map(|user| format!("    User {user}\n"))
        .unwrap_or_default();
    format!(
        "# Targets behind agent {agent}: ssh NAME{suffix}
Host {name}{suffix}
    ProxyCommand {command} proxy %r@%h %p
{user}    UserKnownHostsFile {known_hosts}
    StrictHostKeyChecking yes
    PubkeyAuthentication no
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    ServerAliveInterval 0
# The known hosts hold this line:
# {authority}
",
        suffix = super::proxy::SUFFIX,
        name = target.unwrap_or("*"),
        known_hosts = quoted(&known_hosts.to_string_lossy()),
    )
}

/// One OpenSSH public key, without its comment: it goes into a file of lines.
fn one_key(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let plain = |word: &str| {
        word.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-@.+/=".contains(&byte))
    };
    (!line.trim_end().contains('\n') && plain(kind) && plain(key)).then(|| format!("{kind} {key}"))
}

/// `postern` when that is what the shell finds, else where this program is.
fn command() -> String {
    let Ok(this) = std::env::current_exe() else {
        return "postern".to_owned();
    };
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|folder| folder.join("postern"))
            .find(|file| file.is_file())
    });
    let same = |file: PathBuf| fs::canonicalize(file).ok() == fs::canonicalize(&this).ok();
    if found.is_some_and(same) {
        "postern".to_owned()
    } else {
        quoted(&this.to_string_lossy())
    }
}

/// As ssh_config and the shell behind ProxyCommand take it.
fn quoted(text: &str) -> String {
    if text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte))
    {
        text.to_owned()
    } else {
        format!("\"{text}\"")
    }
}

fn keep(path: &Path, line: &str) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::failed(format!("{} could not be written: {error}", path.display()))
            .hint("check the client's state folder (POSTERN_STATE): its owner, rights and space")
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, format!("{line}\n")).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_whole() {
        let text = block(&Block {
            target: None,
            agent: "bastion-1",
            command: "postern",
            user: Some("ec2-user"),
            known_hosts: Path::new("/home/a b/known_hosts"),
            authority: "@cert-authority *.postern ssh-ed25519 AAAA",
        });
        insta::assert_snapshot!(text, @r#"
        # Targets behind agent bastion-1: ssh NAME.postern
        Host *.postern
            ProxyCommand postern proxy %r@%h %p
            User ec2-user
            UserKnownHostsFile "/home/a b/known_hosts"
            StrictHostKeyChecking yes
            PubkeyAuthentication no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            ServerAliveInterval 0
        # The known hosts hold this line:
        # @cert-authority *.postern ssh-ed25519 AAAA
        "#);
    }

    #[test]
    fn an_agent_cannot_write_lines_into_the_known_hosts() {
        assert_eq!(
            one_key("ssh-ed25519 AAAA= host ca").as_deref(),
            Some("ssh-ed25519 AAAA=")
        );
        assert_eq!(one_key("ssh-ed25519 AAAA\n* ssh-ed25519 BBBB"), None);
        assert_eq!(one_key("ssh-ed25519"), None);
        assert_eq!(one_key("ssh,ed25519 A*"), None);
    }
}
