//! `connect --via ssm --ssh`: our own SSH client, to the target's own SSH server, over SSM.

use std::process::ExitCode;
use std::sync::Arc;

use postern_proto::gateway::message::CloseReason;
use postern_proto::names::{LoginUser, TargetName};

use super::{finish, on_terminal};
use crate::context::Context;
use crate::error::Error;
use crate::evidence::{Carries, End, Record};
use crate::ssh::SshError;
use crate::ssh::forward::Forwards;
use crate::ssh::known_hosts::KnownHosts;
use crate::ssh::link::Link;
use crate::ssh::login::Login;
use crate::ssh::shell::{Job, Status};
use crate::ssm::raw::{self, Raw};
use crate::ssm::target::{self, Node};
use crate::ssm::{Session, Ssm, claim};

/// Runs a shell or a command and returns its status. `to`: the target, and the port of its SSH
/// server.
pub(super) async fn run(
    context: &Context,
    user: LoginUser,
    to: (&TargetName, u16),
    job: Job,
    forwards: Forwards,
) -> Result<ExitCode, Error> {
    let ssm = Ssm::of(context)?;
    let result = connect(context, &ssm, user, to, job, forwards).await;
    // Whatever happened: what was started at AWS is ended there.
    ssm.settle().await;
    Ok(ExitCode::from(result?.code()))
}

async fn connect(
    context: &Context,
    ssm: &Arc<Ssm>,
    user: LoginUser,
    to: (&TargetName, u16),
    mut job: Job,
    forwards: Forwards,
) -> Result<Status, Error> {
    let (name, port) = to;
    let node = target::find(ssm, name.as_str()).await?;
    let start = raw::start(&node.id, port);
    let session = Session::start(ssm, start.clone()).await?;
    let terminal = job.terminal.as_ref();
    let carries = Carries::Ssh {
        user: user.clone(),
        line: job.command.clone(),
        terminal: terminal.map(|it| (it.size.columns, it.size.rows, it.kind.clone())),
    };
    let record = claim::open(context, ssm, &node, &session, &start, carries).await?;
    let way = Way {
        context,
        ssm,
        node: &node,
        typed: name.as_str(),
        port,
        user,
        record: &record,
    };
    let result = way.go(session, &mut job, forwards).await;
    let end = match &result {
        Ok(status) => End {
            reason: CloseReason::Done,
            message: None,
            exit_status: match status {
                Status::Exited(status) => Some(*status),
                Status::Killed { .. } | Status::Left => None,
            },
        },
        Err(error) => End {
            reason: CloseReason::Target,
            message: Some(error.to_string()),
            exit_status: None,
        },
    };
    record.close(end).await?;
    result
}

/// What both connections of a job need.
struct Way<'a> {
    context: &'a Context,
    ssm: &'a Arc<Ssm>,
    node: &'a Node,
    typed: &'a str,
    port: u16,
    user: LoginUser,
    record: &'a Record,
}

impl Way<'_> {
    async fn go(
        &self,
        session: Session,
        job: &mut Job,
        forwards: Forwards,
    ) -> Result<Status, Error> {
        let printer = self.context.printer;
        let mut link = self.link(session).await?;
        let forwarding = if forwards.is_empty() {
            None
        } else {
            Some(forwards.start(self.another(), printer).await?)
        };
        let result = tokio::select! {
            result = on_terminal(printer, &mut link, job, Some(self.record.clone())) => result,
            error = self.record.failed() => Err(SshError::Carrier(error.into())),
        };
        if let Some(forwarding) = forwarding {
            forwarding.stop().await;
        }
        finish(printer, link, result).await
    }

    async fn link(&self, session: Session) -> Result<Link, SshError> {
        let Context {
            environment,
            may_ask,
            printer,
            ..
        } = self.context;
        let hosts = KnownHosts::of(environment, &self.node.id, self.typed, self.port, *may_ask);
        let login = Login::with_keys(self.user.clone(), environment, *may_ask, *printer);
        Link::over_ssm(
            Raw::of(session),
            self.record.clone(),
            hosts,
            login,
            *may_ask,
        )
        .await
    }

    /// A connection for the forwards, in an SSM session of its own.
    async fn another(&self) -> Result<Link, SshError> {
        let start = raw::start(&self.node.id, self.port);
        let carrier = |error: Error| SshError::Carrier(error);
        let session = Session::start(self.ssm, start.clone())
            .await
            .map_err(|error| carrier(error.into()))?;
        let facts = claim::ssm_session(self.ssm, &session, &start);
        let noted = self.record.ssm_session(facts).await;
        noted.map_err(|error| carrier(error.into()))?;
        self.link(session).await
    }
}
