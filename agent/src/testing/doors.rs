//! What stands in for the network behind an agent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use postern_proto::gateway::message::{CloseReason, DenyCode, HostKeyCheck, HostKeySeen};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::ca::ssh::SshExtension;
use crate::doors::{Dial, Dialled, Doors, Fresh, SshLogin, SshTarget, TakeApproval};
use crate::end::SshEnd;
use crate::refusal::NotReached;

/// What a test may turn meanwhile.
pub(super) struct Stand {
    /// Where every target lives.
    pub(super) target: Arc<Mutex<SocketAddr>>,
    /// While true, dialling waits.
    pub(super) hold: watch::Receiver<bool>,
    /// What each login was to permit.
    pub(super) permitted: Arc<Mutex<Vec<Vec<SshExtension>>>>,
    /// Hashes of `Open`s for which a fresh code was given.
    pub(super) approvals: Arc<Mutex<Vec<[u8; 32]>>>,
}

impl Stand {
    pub(super) fn doors(self) -> Doors {
        Doors {
            dial: dial(self.target, self.hold),
            ssh: ssh(self.permitted),
            approval: approval(self.approvals),
            troubles: vec![],
            ssh_host_ca: Some("ssh-ed25519 AAAA".to_owned()),
        }
    }
}

fn dial(dialled: Arc<Mutex<SocketAddr>>, held: watch::Receiver<bool>) -> Dial {
    Arc::new(move |_, _, _| {
        let address = *dialled.lock().unwrap();
        let mut held = held.clone();
        async move {
            held.wait_for(|held| !held).await.unwrap();
            let stream = TcpStream::connect(address).await;
            stream
                .map(|stream| Dialled { stream, address })
                .map_err(|error| NotReached {
                    code: DenyCode::TargetUnreachable,
                    message: error.to_string(),
                    hint: None,
                })
        }
        .boxed()
    })
}

/// Stands in for an SSH server: what the target says, then status 7.
fn ssh(permitted: Arc<Mutex<Vec<Vec<SshExtension>>>>) -> SshLogin {
    Arc::new(move |tcp, login| {
        permitted.lock().unwrap().push(login.extensions);
        async move {
            Ok(SshTarget {
                host_key: HostKeySeen {
                    fingerprint: "SHA256:x".to_owned(),
                    check: HostKeyCheck::Pinned,
                },
                serve: Box::new(move |mut near, _| {
                    async move {
                        let mut tcp = tcp;
                        let copied = tokio::io::copy(&mut tcp, &mut near).await;
                        SshEnd {
                            exit_status: Some(7),
                            up: 0,
                            down: copied.unwrap_or(0),
                            reason: CloseReason::Done,
                            message: None,
                        }
                    }
                    .boxed()
                }),
            })
        }
        .boxed()
    })
}

fn approval(approvals: Arc<Mutex<Vec<[u8; 32]>>>) -> TakeApproval {
    Arc::new(move |_, open, _| {
        let mut approvals = approvals.lock().unwrap();
        let index = approvals.iter().position(|approved| approved == open)?;
        approvals.remove(index);
        Some(Fresh {
            given_at: 1000,
            aws_request_ids: vec!["fresh".to_owned()],
        })
    })
}
