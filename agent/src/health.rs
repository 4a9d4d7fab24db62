//! Health and metrics, in clear text on an address of their own that is loopback by default:
//! `/healthz`, `/readyz`, `/metrics`. They name no principal and no target.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assemble::Core;

/// Connections at one time.
const CONNECTIONS: usize = 32;
/// How long one may last: a scrape is short.
const LIFETIME: Duration = Duration::from_secs(30);
/// How often measurements are folded together.
const TIDY: Duration = Duration::from_secs(5);
const HEADER_TIME: Duration = Duration::from_secs(10);
const HEADERS: usize = 16 * 1024;

/// The metrics of this process. Installed once, whoever asks first.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| PrometheusBuilder::new().install_recorder().ok())
        .as_ref()
}

/// Folds together what was measured since the last time. A histogram keeps every value until then,
/// and there may be nobody who ever asks for the metrics. The caller ends it.
pub(crate) async fn tidy() {
    let mut tick = tokio::time::interval(TIDY);
    loop {
        tick.tick().await;
        if let Some(handle) = recorder() {
            handle.run_upkeep();
        }
    }
}

/// Serves until told to stop.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(core);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            // Out of descriptors: the main loop says so; this one must not spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(HEADERS)
                .serve_connection(TokioIo::new(tcp), service);
            // Whatever went wrong is the scraper's to notice.
            timeout(LIFETIME, connection).await.ok();
            drop(place);
        }));
    }
    tasks.close();
    tasks.wait().await;
}

/// `200` when sessions may start, else `503` and one reason a line.
async fn ready(State(core): State<Arc<Core>>) -> Response {
    let reasons = core.troubles();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let text: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics(State(core): State<Arc<Core>>) -> Response {
    let Some(handle) = recorder() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "another recorder is installed in this process\n",
        )
            .into_response();
    };
    let (connections, strangers) = core.limits.connections();
    metrics::gauge!("postern_connections").set(connections as f64);
    metrics::gauge!("postern_connections_unauthenticated").set(strangers as f64);
    metrics::gauge!("postern_sessions").set(core.sessions.len() as f64);
    metrics::gauge!("postern_ready").set(if core.troubles().is_empty() { 1.0 } else { 0.0 });
    handle.run_upkeep();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], handle.render()).into_response()
}
