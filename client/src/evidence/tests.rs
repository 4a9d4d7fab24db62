//! A client's store, as the SSM commands write it and as the audit commands read it.

mod failure;
mod log;
mod recording;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use age::x25519::Identity;
use postern_proto::audit::event::Source;
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::verify::{Fault, OutsideCheckpoint, Report, SessionState, Trust, verify};
use postern_proto::recording::play::{Played, Player};

use super::store::LocalStore;
use super::*;
use crate::audit::log::{Sessions, walk};
use crate::audit::store::Folder;
use crate::audit::text;
use crate::config::{Environment, KeyringChoice, Settings};
use crate::output::Printer;

/// A client with a state folder of its own.
struct Home {
    folder: tempfile::TempDir,
    context: Context,
    auditor: Identity,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let auditor = Identity::generate();
        let settings = Settings {
            agents: Vec::new(),
            profile: "alice".to_owned(),
            profile_named: false,
            login_user: None,
            via: crate::cli::Via::Auto,
            aliases: std::collections::BTreeMap::new(),
            ssm_sessions: 4,
            keyring: KeyringChoice::Kernel,
            state: folder.path().join("state"),
            audit_store: None,
            auditor_identity: None,
            evidence: folder.path().join("state/evidence"),
            auditors: vec![auditor.to_public().to_string()],
            mfa_code: None,
        };
        let mut context = Context::new(Printer::plain_json(), settings, Environment::default());
        context.may_ask = false;
        Self {
            folder,
            context,
            auditor,
        }
    }

    /// As another process has it: nothing remembered.
    fn elsewhere(&self) -> Context {
        Context {
            memory: crate::identity::Memory::default(),
            ..self.context.clone()
        }
    }

    fn store(&self) -> LocalStore {
        local_stores(&self.context).unwrap().pop().unwrap()
    }

    fn verified(&self, outside: &[OutsideCheckpoint]) -> Report {
        let store = self.store();
        let trust = Trust {
            log: store.log,
            outside,
            identities: std::slice::from_ref(&self.auditor),
        };
        verify(&Folder::new(&store.folder).unwrap(), &trust).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let folder = Folder::new(&self.store().folder).unwrap();
        walk(&folder, std::slice::from_ref(&self.auditor), |entry| {
            assert_eq!(entry.source, Source::Client);
            lines.push(text::event(&entry.event.unwrap()));
        })
        .unwrap();
        lines
    }

    fn played(&self, record: &Record) -> Vec<Played> {
        let path = self
            .store()
            .folder
            .join(format!("recordings/{}-0", record.id()));
        played(&path, &self.auditor)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        forget_for_test(&self.context);
    }
}

fn played(path: &Path, identity: &Identity) -> Vec<Played> {
    let file = fs::File::open(path).unwrap();
    let mut player = Player::new(file, std::slice::from_ref(identity)).unwrap();
    let mut played = Vec::new();
    while let Some(line) = player.next_line().unwrap() {
        played.push(line.what);
    }
    played
}

fn facts(carries: Carries) -> Facts {
    Facts {
        target: "i-0123456789abcdef0".parse().unwrap(),
        name: "app-1".to_owned(),
        caller: Caller {
            account: "111122223333".to_owned(),
            user_id: "AIDAAAAAAAAAAAAAAAAA".to_owned(),
            arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
        },
        mfa_at: 1_700_000_000,
        ssm: ssm("alice-1"),
        carries,
    }
}

fn ssm(id: &str) -> SsmSession {
    SsmSession {
        id: id.to_owned(),
        document: "SSM-SessionManagerRunShell".to_owned(),
        region: "eu-west-1".to_owned(),
        reason: Some("ticket 7".to_owned()),
        request_id: Some("r-1".to_owned()),
    }
}

fn shell() -> Facts {
    facts(Carries::Shell {
        columns: 80,
        rows: 24,
        term: "xterm".to_owned(),
    })
}

fn tunnel() -> Facts {
    facts(Carries::Tunnel {
        host: None,
        port: 5432,
    })
}

fn done() -> End {
    End {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(0),
    }
}

/// Waits for something that another thread does soon.
async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is() {
        assert!(tokio::time::Instant::now() < until, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
