//! The lab's controls over HTTP, for tests in other languages and for people: faults of the AWS
//! side of a running lab. On loopback, for everybody there: it opens nothing but the lab.
//!
//! `lab --serve` says the address. Bodies and answers are JSON.
//!
//! | request | body |
//! |---|---|
//! | `GET /knobs` | |
//! | `PATCH /knobs` | what is to change: `{"to_client": {"drop": 1}, "pace": 0}` |
//! | `GET /sessions` | ids of those that run |
//! | `GET /complaints` | what ends of data channels did against the protocol |
//! | `POST /cut` | `{"side": "client", "how": "abort"}`, and `session` for one alone |
//! | `POST /end` | `{"session": "alice-…", "output": "text for the client"}` |
//! | `POST /ssm-agent` | `{"host": "app-1", "order": "vanish"}`, or `kill`, `return` |
//! | `POST /expire` | `{"user": "alice"}`: all temporary credentials |
//! | `POST /key` | `{"name": "alias/lab-sessions", "enabled": false}` |
//! | `POST /fault` | `{"service": "ssm", "action": "StartSession", "times": 1, "code": "ThrottlingException"}` |
//! | `DELETE /fault` | |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::aws::{Aws, Fault, FaultRule, Service};
use crate::ssm::{Cut, Side, SsmHosts, merge};

/// The running server. It ends when dropped.
pub struct Control {
    /// Where it listens.
    pub address: SocketAddr,
    shutdown: CancellationToken,
    task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Levers {
    aws: Arc<Aws>,
    ssm: Arc<SsmHosts>,
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

impl Control {
    /// Starts it on a free port.
    pub async fn start(ip: IpAddr, aws: &Arc<Aws>, ssm: &Arc<SsmHosts>) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0))
            .await
            .context("the lab's controls")?;
        let address = listener.local_addr()?;
        let levers = Levers {
            aws: Arc::clone(aws),
            ssm: Arc::clone(ssm),
        };
        let router = Router::new()
            .route("/knobs", get(knobs).patch(change_knobs))
            .route("/sessions", get(sessions))
            .route("/complaints", get(complaints))
            .route("/cut", post(cut))
            .route("/end", post(end))
            .route("/ssm-agent", post(ssm_agent))
            .route("/expire", post(expire))
            .route("/key", post(key))
            .route("/fault", post(fault).delete(clear_faults))
            .with_state(levers);
        let shutdown = CancellationToken::new();
        let ended = shutdown.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(ended);
            if let Err(error) = served.await {
                tracing::warn!("the lab's controls: {error}");
            }
        });
        Ok(Self {
            address,
            shutdown,
            task: AbortOnDropHandle::new(task),
        })
    }

    /// `http://ADDRESS`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it and waits.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.abort();
        // Aborted or done: either way nothing of it is left.
        let _ = self.task.await;
    }
}

fn refused(why: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, why.into())
}

fn done(count: usize) -> Answer {
    Ok(Json(json!({"done": count})))
}

async fn knobs(State(levers): State<Levers>) -> Answer {
    let knobs = serde_json::to_value(levers.aws.knobs());
    knobs.map(Json).map_err(|error| refused(error.to_string()))
}

/// An object with what is to change, as `GET /knobs` shows it.
async fn change_knobs(State(levers): State<Levers>, Json(change): Json<Value>) -> Answer {
    let changed = merge(&levers.aws.knobs(), &change).map_err(refused)?;
    levers.aws.change_knobs(|knobs| *knobs = changed);
    knobs(State(levers)).await
}

async fn sessions(State(levers): State<Levers>) -> Answer {
    Ok(Json(json!(levers.aws.sessions())))
}

async fn complaints(State(levers): State<Levers>) -> Answer {
    Ok(Json(json!(levers.aws.complaints())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CutOrder {
    side: Side,
    how: Cut,
    session: Option<String>,
}

async fn cut(State(levers): State<Levers>, Json(order): Json<CutOrder>) -> Answer {
    let session = order.session.as_deref();
    done(levers.aws.cut(order.side, order.how, session))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndOrder {
    session: String,
    #[serde(default)]
    output: String,
}

async fn end(State(levers): State<Levers>, Json(order): Json<EndOrder>) -> Answer {
    let ended = levers.aws.end_session(&order.session, &order.output);
    done(usize::from(ended))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentOrder {
    host: String,
    /// `kill`, `vanish` or `return`.
    order: String,
}

async fn ssm_agent(State(levers): State<Levers>, Json(order): Json<AgentOrder>) -> Answer {
    let had_effect = match order.order.as_str() {
        "kill" => levers.ssm.kill(&order.host),
        "vanish" => levers.ssm.vanish(&order.host),
        "return" => levers.ssm.bring_back(&order.host),
        other => return Err(refused(format!("`{other}` is not kill, vanish or return"))),
    };
    done(usize::from(had_effect))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpireOrder {
    user: String,
}

/// Ends the temporary credentials of a user.
async fn expire(State(levers): State<Levers>, Json(order): Json<ExpireOrder>) -> Answer {
    levers.aws.expire_sessions_of(&order.user);
    done(1)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOrder {
    name: String,
    enabled: bool,
}

async fn key(State(levers): State<Levers>, Json(order): Json<KeyOrder>) -> Answer {
    done(usize::from(
        levers.aws.enable_key(&order.name, order.enabled),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultOrder {
    /// As in a credential scope: `ssm`, `kms`, `sts`.
    service: String,
    action: Option<String>,
    times: Option<u32>,
    code: String,
    #[serde(default)]
    message: String,
    status: Option<u16>,
}

async fn fault(State(levers): State<Levers>, Json(order): Json<FaultOrder>) -> Answer {
    let service = Service::of_name(&order.service)
        .ok_or_else(|| refused(format!("`{}` is not emulated", order.service)))?;
    levers.aws.inject(FaultRule {
        service,
        action: order.action,
        times: order.times,
        fault: Fault::Error {
            status: order.status.unwrap_or(400),
            code: order.code,
            message: order.message,
        },
    });
    done(1)
}

async fn clear_faults(State(levers): State<Levers>) -> Answer {
    levers.aws.clear_faults();
    done(1)
}
