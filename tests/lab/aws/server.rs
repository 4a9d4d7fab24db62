//! HTTP over TLS in front of the emulator: bounded connections, bounded bodies, a deadline for everything.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming as Body;
use hyper::header::{CONTENT_TYPE, DATE, HeaderName, HeaderValue, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::dispatch::Incoming;
use super::faults::Fault;
use super::reply::Answer;
use super::request::RawRequest;

const MAX_CONNECTIONS: usize = 512;
const MAX_BODY: usize = 256 * 1024;
/// How much of a body that is too long is read and dropped, so that its sender can hear why.
const MAX_DROPPED: usize = 1024 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(10);
const BODY: Duration = Duration::from_secs(10);
/// A connection that lives longer is closed; clients dial again.
const CONNECTION: Duration = Duration::from_secs(600);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// Accepts until cancelled, then drops what is still open.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let Ok(slot) = slot else { break };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (tls, shared, shutdown) = (tls.clone(), Arc::clone(&shared), shutdown.clone());
        tasks.spawn(async move {
            let connection = timeout(CONNECTION, connection(stream, peer, tls, shared));
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = connection => {
                    if ended.is_err() {
                        tracing::debug!(%peer, "connection closed after its time");
                    }
                }
            }
            drop(slot);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, tls: TlsAcceptor, shared: Arc<Shared>) {
    let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(&shared, request, peer.ip()).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(64 * 1024)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

async fn respond(shared: &Shared, request: Request<Body>, peer: IpAddr) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let raw = match read(request).await {
        Ok(raw) => raw,
        Err(status) => return plain(status),
    };
    let incoming = Incoming::read(raw, peer);
    let faults = shared.with(|state| incoming.faults(state));
    let delay = faults.iter().map(Fault::delay).sum::<Duration>();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let now = shared.clock.now();
    let answer = shared.with(|state| incoming.process(state, now, &faults));
    render(answer, incoming.request_id(), now)
}

async fn read(request: Request<Body>) -> Result<RawRequest, StatusCode> {
    let (parts, body) = request.into_parts();
    let body = timeout(BODY, gather(body))
        .await
        .unwrap_or(Err(StatusCode::REQUEST_TIMEOUT))?;
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    Ok(RawRequest {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or("").to_owned(),
        headers,
        body,
    })
}

/// A body of at most [`MAX_BODY`].
async fn gather(mut body: Body) -> Result<Bytes, StatusCode> {
    let mut kept = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length <= MAX_BODY {
            kept.extend_from_slice(&data);
        } else if length > MAX_DROPPED {
            break;
        }
    }
    match length <= MAX_BODY {
        true => Ok(kept.freeze()),
        false => Err(StatusCode::PAYLOAD_TOO_LARGE),
    }
}

fn render(answer: Answer, request_id: &str, now: time::OffsetDateTime) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    let texts = [
        (REQUEST_ID, Some(request_id.to_owned())),
        (DATE, http_date(now)),
        (LOCATION, answer.location),
    ];
    for (name, value) in texts {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

/// The emulator's own time: clients correct their skew by it.
fn http_date(now: time::OffsetDateTime) -> Option<String> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    now.format(format).ok()
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
