//! `connect --via ssm --ssh`: our own SSH client, to the target's own SSH server, over SSM.

use std::process::ExitCode;
use std::sync::Arc;

use postern_proto::gateway::message::CloseReason;
use postern_proto::names::LoginUser;

use super::{finish, on_terminal};
use crate::cli::ConnectArgs;
use crate::cmd::proxy::killed;
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
use crate::ssm::target::{Feature, Node};
use crate::ssm::{Session, Ssm, Start, claim};

/// Runs a shell or a command and returns its status.
pub(super) async fn run(
    context: &Context,
    args: &ConnectArgs,
    ssm: &Arc<Ssm>,
    node: &Node,
    forwards: Forwards,
    job: Job,
) -> Result<ExitCode, Error> {
    node.demand(Feature::Port)?;
    let (user, name) = super::destination(context, args.user.clone(), &args.target)?;
    let way = Way {
        context,
        ssm,
        node,
        typed: name.as_str(),
        port: args.port,
        user,
    };
    Ok(ExitCode::from(way.go(forwards, job).await?.code()))
}

/// What both connections of a job need.
struct Way<'a> {
    context: &'a Context,
    ssm: &'a Arc<Ssm>,
    node: &'a Node,
    typed: &'a str,
    port: u16,
    user: LoginUser,
}

impl Way<'_> {
    async fn go(&self, forwards: Forwards, mut job: Job) -> Result<Status, Error> {
        let start = self.start();
        // Cut short, what was begun at AWS is still ended there.
        let session = tokio::select! {
            session = Session::start(self.ssm, start.clone()) => session?,
            () = killed() => return Ok(Status::Left),
        };
        let terminal = job.terminal.as_ref();
        let carries = Carries::Ssh {
            user: self.user.clone(),
            line: job.command.clone(),
            terminal: terminal.map(|it| (it.size.columns, it.size.rows, it.kind.clone())),
        };
        let (context, ssm, node) = (self.context, self.ssm, self.node);
        let record = claim::open(context, ssm, node, &session, &start, carries).await?;
        let result = self.run(session, &record, &mut job, forwards).await;
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

    async fn run(
        &self,
        session: Session,
        record: &Record,
        job: &mut Job,
        forwards: Forwards,
    ) -> Result<Status, Error> {
        let printer = self.context.printer;
        let mut link = tokio::select! {
            link = self.link(session, record) => link?,
            () = killed() => return Ok(Status::Left),
        };
        let forwarding = if forwards.is_empty() {
            None
        } else {
            Some(forwards.start(self.another(record), printer).await?)
        };
        let result = tokio::select! {
            result = on_terminal(printer, &mut link, job, Some(record.clone())) => result,
            error = record.failed() => Err(SshError::Carrier(error.into())),
        };
        if let Some(forwarding) = forwarding {
            forwarding.stop().await;
        }
        finish(printer, link, result).await
    }

    fn start(&self) -> Start {
        raw::start(&self.node.id, self.port)
    }

    async fn link(&self, session: Session, record: &Record) -> Result<Link, SshError> {
        let Context {
            environment,
            may_ask,
            printer,
            ..
        } = self.context;
        let hosts = KnownHosts::of(environment, &self.node.id, self.typed, self.port, *may_ask);
        let login = Login::with_keys(self.user.clone(), environment, *may_ask, *printer);
        Link::over_ssm(Raw::of(session), record.clone(), hosts, login, *may_ask).await
    }

    /// A connection for the forwards, in an SSM session of its own.
    async fn another(&self, record: &Record) -> Result<Link, SshError> {
        let start = self.start();
        let carrier = |error: Error| SshError::Carrier(error);
        let session = Session::start(self.ssm, start.clone())
            .await
            .map_err(|error| carrier(error.into()))?;
        let facts = claim::ssm_session(self.ssm, &session, &start);
        let noted = record.ssm_session(facts).await;
        noted.map_err(|error| carrier(error.into()))?;
        self.link(session, record).await
    }
}
